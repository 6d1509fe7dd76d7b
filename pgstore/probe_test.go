package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// wantStandby has the server wait for a synchronous standby of that name, or for none.
func (s *stand) wantStandby(t testing.TB, name string) {
	t.Helper()
	for _, sql := range []string{
		`set synchronous_commit = local`, // our own changes do not wait
		`alter system set synchronous_standby_names = '` + name + `'`,
		`select pg_reload_conf()`,
	} {
		if _, err := s.owner.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

// loseStandby has the server wait for a standby that nobody is. The end of the test
// takes that back, so that the server can be stopped in peace.
func (s *stand) loseStandby(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { s.wantStandby(t, "") })
	s.wantStandby(t, "nobody")
	// Sessions read the new setting at once, but a commit waits only when the checkpointer has read it, too.
	probe, err := pgx.Connect(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = probe.Close(context.Background()) }()
	eventually(t, "commits wait for the standby", func() bool {
		committed := make(chan struct{})
		go func() {
			defer close(committed)
			_, _ = probe.Exec(t.Context(), inquirySQL)
		}()
		// Whose waiting is ended may be somebody else's, so it goes on until the probe's is.
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

// cancelWaiting ends the waiting for the standby, as an administrator may.
const cancelWaiting = `select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`

// waitForStandby counts the sessions that wait for the standby.
func (s *stand) waitForStandby(t *testing.T) (count int) {
	t.Helper()
	err := s.owner.QueryRow(t.Context(), `select count(*) from pg_stat_activity where wait_event = 'SyncRep'`).Scan(&count)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

const noCommits = "commits do not come back"

// A server that reads and does not commit is not ready, says why, and is ready again by
// itself. Whoever asks meanwhile leaves no session behind.
func TestReadyWhenCommitsDoNotComeBack(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 100)
	wantReady(t, s.Store)

	s.loseStandby(t)
	if status, err := s.Claim(t.Context(), "u", "c"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a claim: %q, %v", status, err)
	}
	wantReady(t, s.Store, noCommits, "synchronous standby")
	before := s.sessions(t)
	for range 3 {
		wantReady(t, s.Store, noCommits)
	}
	if after := s.sessions(t); after > before {
		t.Errorf("asking three times left %d sessions more", after-before)
	}
	s.wantNoCancelRequest(t)

	s.wantStandby(t, "")
	eventually(t, "it is ready", func() bool { return s.Ready(t.Context()) == nil })
	if status, err := s.Claim(t.Context(), "after", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
	if holders := s.holders(t, "c"); !slices.Contains(holders, "after") {
		t.Errorf("held by %q", holders)
	}
}

// A second instance has no claim of its own that waits for the standby: it meets only
// the lock of the first one's, and asks.
func TestReadyWhenTheCommitsOfOthersDoNotComeBack(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	quick := func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second }
	s := standOn(t, url, connect(t, url), quick)
	other := openStore(t, url, quick)
	s.create(t, "c", 100)
	wantReady(t, other)

	s.loseStandby(t)
	if status, err := s.Claim(t.Context(), "first", "c"); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("of the first instance: %q, %v", status, err)
	}
	wantReady(t, other) // it has no reason for doubt
	waiting := s.waitForStandby(t)
	for range 3 {
		if status, err := other.Claim(t.Context(), "second", "c"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("of the second: %q, %v; want it to be surely not done", status, err)
		}
	}
	wantReady(t, other, noCommits)
	if more := s.waitForStandby(t) - waiting; more > 1 {
		t.Errorf("the second has %d sessions that wait; want one, which asks whether commits come back", more)
	}

	s.wantStandby(t, "")
	eventually(t, "both are ready", func() bool { return s.Ready(t.Context()) == nil && other.Ready(t.Context()) == nil })
	s.wantHolders(t, "c", "first")
	if status, err := other.Claim(t.Context(), "second", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
}

// A coupon that somebody has locked is reason for doubt as well, but commits come back:
// nobody else hears of it.
func TestReadyWhileACouponIsLocked(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "locked", 100)
	s.create(t, "c", 100)
	s.lock(t, "locked")
	if status, err := s.Claim(t.Context(), "u", "locked"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("of the locked one: %q, %v", status, err)
	}
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Errorf("of the other: %q, %v", status, err)
	}
	wantReady(t, s.Store)
}

// PostgreSQL keeps the session of a claim that was given up for as long as the standby
// is away. However many come meanwhile, they take no more than a pool's worth of
// max_connections, and whoever is not sent is told so.
func TestSessionsLeftBehind(t *testing.T) {
	t.Parallel()
	const maxConns, coupons, clients = 8, 400, 40
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url), func(cfg *Config) {
		cfg.ClaimTimeout = 2 * time.Second
		cfg.MaxConns, cfg.ClaimConcurrency = maxConns, 2
	})
	for i := range coupons {
		s.create(t, fmt.Sprint("c", i), 100)
	}
	wantReady(t, s.Store)

	s.loseStandby(t)
	var next, refused, unknown atomic.Int64
	stop := make(chan struct{})
	var crowd sync.WaitGroup
	for range clients {
		crowd.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				// Every third makes a coupon, which needs no lane.
				n := next.Add(1)
				var err error
				if n%3 == 0 {
					_, err = s.CreateCoupon(t.Context(), fmt.Sprint("new", n), 1)
				} else {
					_, err = s.Claim(t.Context(), "u", fmt.Sprint("c", n%coupons))
				}
				switch {
				case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOverloaded):
					refused.Add(1)
				case errors.Is(err, ErrOutcomeUnknown):
					unknown.Add(1)
				default:
					t.Errorf("%d: %v", n, err)
				}
			}
		})
	}
	time.Sleep(3 * s.timeout)
	close(stop)
	crowd.Wait()
	waiting := s.waitForStandby(t)
	t.Logf("%d calls may have been done and %d were surely not; %d sessions wait for the standby", unknown.Load(), refused.Load(), waiting)
	if waiting > maxConns {
		t.Errorf("%d sessions wait for the standby; want no more than %d", waiting, maxConns)
	}
	if unknown.Load() == 0 || refused.Load() < 10*unknown.Load() {
		t.Errorf("%d may have been done and %d were surely not; want nearly all of them not to be sent", unknown.Load(), refused.Load())
	}
	wantReady(t, s.Store, noCommits)
	s.wantNoCancelRequest(t)

	s.wantStandby(t, "")
	eventually(t, "it is ready", func() bool { return s.Ready(t.Context()) == nil })
	if status, err := s.Claim(t.Context(), "after", "c1"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
	eventually(t, "nothing waits any more", func() bool { return s.waitForStandby(t) == 0 })
}

// Close ends an inquiry that waits.
func TestCloseWhileAnInquiryWaits(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url))
	s.loseStandby(t)
	s.doubted("c")
	wantReady(t, s.Store, noCommits)
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close waits for a commit that does not come back")
	}
}

// A reader who leaves, or whose read takes too long, says nothing of commits: claims do not wait for an inquiry.
func TestReadsRaiseNoDoubt(t *testing.T) {
	t.Parallel()
	url := startServer(t).New(t).URL
	s := standOn(t, url, connect(t, url), func(cfg *Config) { cfg.ClaimTimeout = time.Second })
	s.fill(t, "big", 3*pageSize, 2*pageSize)
	s.create(t, "c", 1)
	wantReady(t, s.Store)
	coupon, found, err := s.Coupon(t.Context(), "big")
	if err != nil || !found {
		t.Fatal(found, err)
	}

	// An inquiry would not end. Whoever reads waits for the lock, until he has had enough.
	s.loseStandby(t)
	tx, err := s.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "lock table public.claims"); err != nil {
		t.Fatal(err)
	}
	for _, patience := range []time.Duration{100 * time.Millisecond, time.Minute} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for _, err := range coupon.Claimers(ctx) {
			if err == nil {
				t.Errorf("with a patience of %v: a page, although the table is locked", patience)
			}
			break
		}
		cancel()
	}
	s.commits.mu.Lock()
	if s.commits.inquiry != nil || s.commits.doubt {
		t.Error("a read has raised a doubt about commits")
	}
	s.commits.mu.Unlock()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.wantStandby(t, "")
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Errorf("%q, %v", status, err)
	}
}
