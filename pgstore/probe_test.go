package pgstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/wait"
)

// setStandbyName sets synchronous_standby_names; "": commits wait for no standby.
func (s *testStore) setStandbyName(t testing.TB, name string) {
	t.Helper()
	for _, sql := range []string{
		`set synchronous_commit = local`, // for the owner's session
		`alter system set synchronous_standby_names = '` + name + `'`,
		`select pg_reload_conf()`,
	} {
		if _, err := s.owner.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// loseStandby makes commits wait for a standby that does not exist. The end of the test takes that
// back, so that the server can stop.
func (s *testStore) loseStandby(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { s.setStandbyName(t, "") })
	s.setStandbyName(t, "missing")
	// Commits wait only after the checkpointer has read the new setting.
	conn, err := pgx.Connect(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	wait.For(t, "a commit that waits for the standby", func() bool {
		committed := make(chan struct{})
		go func() {
			defer close(committed)
			_, _ = conn.Exec(t.Context(), probeCommitSQL)
		}()
		// cancelWaiting may end the wait of another session: repeat it until this commit returns.
		for waited := false; ; {
			tag, err := s.owner.Exec(t.Context(), cancelWaiting)
			waited = waited || err == nil && tag.RowsAffected() > 0
			select {
			case <-committed:
				return waited
			case <-time.After(time.Millisecond):
			}
		}
	})
}

// cancelWaiting ends the wait for the standby, as an administrator may.
const cancelWaiting = `select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`

// sessionsWaiting returns the number of sessions that wait for the standby.
func (s *testStore) sessionsWaiting(t *testing.T) int {
	t.Helper()
	return queryValue[int](t, s.owner, `select count(*) from pg_stat_activity where wait_event = 'SyncRep'`)
}

const commitsHang = "commits do not complete"

// A server that answers reads and does not commit is not ready, with the reason, and becomes ready
// again without a restart. Health checks meanwhile leave no sessions behind.
func TestReady_commitsHang(t *testing.T) {
	t.Parallel()
	s := newServerStore(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 100)
	wantReady(t, s.Store)

	s.loseStandby(t)
	s.wantClaim(t, "u", "c", ErrOutcomeUnknown)
	wantReady(t, s.Store, commitsHang, "synchronous standby")
	before := s.sessions(t)
	for range 3 {
		wantReady(t, s.Store, commitsHang)
	}
	if after := s.sessions(t); after > before {
		t.Errorf("three calls of Ready left %d sessions behind", after-before)
	}
	s.wantNoCancelRequest(t)

	s.setStandbyName(t, "")
	wait.For(t, "Ready", func() bool { return isReady(t, s.Store) })
	s.wantClaim(t, "after", "c", Claimed)
	if holders := s.holders(t, "c"); !slices.Contains(holders, "after") {
		t.Errorf("holders are %q, want \"after\" among them", holders)
	}
}

// The claims of a second instance do not wait for the standby but for the lock of the first one's
// claim. That makes the server suspect as well.
func TestReady_commitsOfAnotherInstanceHang(t *testing.T) {
	t.Parallel()
	shortTimeout := func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second }
	s := newServerStore(t, shortTimeout)
	other := openStore(t, s.url, shortTimeout)
	s.create(t, "c", 100)
	wantReady(t, other)

	s.loseStandby(t)
	s.wantClaim(t, "first", "c", ErrOutcomeUnknown)
	wantReady(t, other) // for it, the server is not suspect yet
	waiting := s.sessionsWaiting(t)
	for range 3 {
		other.wantClaim(t, "second", "c", ErrUnavailable)
	}
	wantReady(t, other, commitsHang)
	if more := s.sessionsWaiting(t) - waiting; more > 1 {
		t.Errorf("%d sessions of the second instance wait for the standby, want at most one, the probe", more)
	}

	s.setStandbyName(t, "")
	wait.For(t, "both instances to be ready", func() bool { return isReady(t, s.Store) && isReady(t, other) })
	wait.For(t, "the first claim to be visible", func() bool { return len(s.holders(t, "c")) > 0 })
	s.wantHolders(t, "c", "first")
	other.wantClaim(t, "second", "c", Claimed)
}

// A locked coupon makes the server suspect, but the probe commits: other coupons are not affected.
func TestReady_lockedCoupon(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "locked", 100)
	s.create(t, "c", 100)
	s.lock(t, "locked")
	s.wantClaim(t, "u", "locked", ErrUnavailable)
	s.wantClaim(t, "u", "c", Claimed)
	wantReady(t, s.Store)
}

// A server that refuses the login of a probe is described as by a health check.
func TestProbe_loginRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	_, url := s.newLogin(t, `in role coupon_service`)
	refused := openStore(t, strings.Replace(url, "s3cr3t", "wrong", 1))
	srv := refused.serverOf("c")
	srv.markSuspect()
	wait.For(t, "the probe to be refused", func() bool { return srv.refusalReason() != "" })
	wantReady(t, refused, "refuses the login", "check the user and the password")
}

// A login that may not write to the log by itself cannot be probed: the server counts as healthy.
func TestProbe_privilegeMissing(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 100)
	// Its parameters depend on the version of PostgreSQL.
	s.exec(t, `do $$
declare
  v_function regprocedure;
begin
  for v_function in select oid from pg_catalog.pg_proc where proname = 'pg_logical_emit_message' loop
    execute format('revoke execute on function %s from public', v_function);
  end loop;
end $$`)
	s.serverOf("c").markSuspect()
	s.wantClaim(t, "u", "c", Claimed)
	wantReady(t, s.Store)
}

// PostgreSQL keeps the session of a claim that was given up until the standby answers. These
// sessions are at most one per connection of the pool, and calls that are not sent return
// ErrUnavailable.
func TestProbe_boundsSessionsLeftBehind(t *testing.T) {
	t.Parallel()
	const maxConns, coupons, clientCount = 8, 400, 40
	s := newServerStore(t, func(cfg *Config) {
		cfg.ClaimTimeout = 2 * time.Second
		cfg.MaxConns, cfg.ClaimConcurrency = maxConns, 2
	})
	for i := range coupons {
		s.create(t, fmt.Sprint("c", i), 100)
	}
	wantReady(t, s.Store)

	s.loseStandby(t)
	var answers recorder
	stop := concurrently(t, clientCount, func(client, n int) {
		time.Sleep(20 * time.Millisecond)
		caller := fmt.Sprint(client, "/", n)
		if n%3 == 0 { // does not go through a batcher
			_, err := s.CreateCoupon(t.Context(), "new"+caller, 1)
			record(&answers, caller, "", err)
			return
		}
		_, err := s.Claim(t.Context(), "u", fmt.Sprint("c", (client+clientCount*n)%coupons))
		record(&answers, caller, "", err)
	})
	time.Sleep(2 * s.timeout)
	stop()
	waiting, ambiguous, not := s.sessionsWaiting(t), answers.count(unknown), answers.count(refused)
	t.Logf("%d calls are ambiguous and %d were not committed; %d sessions wait for the standby", ambiguous, not, waiting)
	if waiting > maxConns {
		t.Errorf("%d sessions wait for the standby, want at most %d", waiting, maxConns)
	}
	if ambiguous == 0 || not < 10*ambiguous || ambiguous+not != len(answers.outcomes) {
		t.Errorf("of %d calls, %d are ambiguous and %d were not committed; want at least 1, at least 10 times as many not committed, and no others",
			len(answers.outcomes), ambiguous, not)
	}
	wantReady(t, s.Store, commitsHang)
	s.wantNoCancelRequest(t)

	s.setStandbyName(t, "")
	wait.For(t, "Ready", func() bool { return isReady(t, s.Store) })
	s.wantClaim(t, "after", "c1", Claimed)
	wait.For(t, "all sessions to end their wait", func() bool { return s.sessionsWaiting(t) == 0 })
}

func TestClose_duringAProbe(t *testing.T) {
	t.Parallel()
	s := newServerStore(t)
	s.loseStandby(t)
	s.serverOf("c").markSuspect()
	wantReady(t, s.Store, commitsHang)
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close waits for the probe")
	}
}

// A canceled read, or one that takes too long, says nothing about commits: it does not start a
// probe.
func TestProbe_notStartedByReads(t *testing.T) {
	t.Parallel()
	s := newServerStore(t, func(cfg *Config) { cfg.ClaimTimeout = 2 * time.Second })
	s.fill(t, "big", 3*pageSize, 2*pageSize)
	s.create(t, "c", 1)
	wantReady(t, s.Store)
	coupon, found, err := s.Coupon(t.Context(), "big")
	if err != nil || !found {
		t.Fatal(found, err)
	}

	// A probe would not end. Reads wait for the lock until they are given up.
	s.loseStandby(t)
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	execSQL(t, tx, "lock table coupond.claims")
	for _, timeout := range []time.Duration{time.Second, time.Minute} {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		for _, err := range coupon.Claimers(ctx) {
			if err == nil {
				t.Errorf("with a time-out of %v: got a page, although the table is locked", timeout)
			}
			break
		}
		cancel()
	}
	if !s.serverOf("c").isHealthy() {
		t.Error("a read has made the server suspect")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.setStandbyName(t, "")
	s.wantClaim(t, "u", "c", Claimed)
}
