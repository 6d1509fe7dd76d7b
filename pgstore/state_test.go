package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/wait"
)

// isolated returns a server without a database.
func isolated() *server {
	return &server{timeout: testTimeout, state: healthy, changed: make(chan struct{})}
}

func (s *server) currentState() serverState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func TestState_admits(t *testing.T) {
	t.Parallel()
	for st, want := range map[serverState]struct{ read, write bool }{
		healthy:       {true, true},
		suspect:       {true, false},
		notCommitting: {true, false},
		unreachable:   {false, false},
	} {
		if st.admits(false) != want.read || st.admits(true) != want.write {
			t.Errorf("%s admits reads: %v, writes: %v; want %v, %v", st, st.admits(false), st.admits(true), want.read, want.write)
		}
	}
}

// A call that may not be sent waits as long as the server is suspect, at most until ctx ends.
func TestServer_admit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		from, to serverState // to: after a second
		write    bool
		after    time.Duration
		refused  bool
	}{
		{"a write to a healthy server", healthy, unreachable, true, 0, false},
		{"a write to a suspect server", suspect, healthy, true, time.Second, false},
		{"a write to a suspect server that does not answer", suspect, unreachable, true, time.Second, true},
		{"a write to a suspect server that does not commit", suspect, notCommitting, true, time.Second, true},
		{"a write to a suspect server until ctx ends", suspect, suspect, true, testTimeout, true},
		{"a write to a server that does not commit", notCommitting, healthy, true, 0, true},
		{"a read of a suspect server", suspect, healthy, false, 0, false},
		{"a read of a server that does not commit", notCommitting, healthy, false, 0, false},
		{"a read of a server that does not answer", unreachable, healthy, false, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
				defer cancel()
				s := isolated()
				s.record(test.from, "of the test")
				timer := time.AfterFunc(time.Second, func() { s.record(test.to, "of the test") })
				defer timer.Stop()
				began := time.Now()
				err := s.admit(ctx, test.write)
				if _, refused := errors.AsType[refusedError](err); refused != test.refused || time.Since(began) != test.after {
					t.Errorf("%v after %v; want it refused: %v, after %v", err, time.Since(began), test.refused, test.after)
				}
			})
		})
	}
}

// While a step of the probe takes too long, the state changes, but not after it has ended.
func TestServer_meanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := isolated()
		s.record(suspect, "of the test")
		_ = s.meanwhile(unreachable, "late", func() error { time.Sleep(testTimeout/5 - 1); return nil })
		time.Sleep(testTimeout)
		if got := s.currentState(); got != suspect {
			t.Errorf("after a step that took less than a fifth of the time-out: %s, want suspect", got)
		}
		_ = s.meanwhile(notCommitting, "late", func() error {
			time.Sleep(testTimeout/5 + 1)
			if got := s.currentState(); got != notCommitting {
				t.Errorf("during a step that takes a fifth of the time-out: %s, want not committing", got)
			}
			return nil
		})
	})
}

// During a probe the state is that of the step that is not answered. Each step ends after a while.
func TestServer_probeOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		silent string // SQL of a step
		want   serverState
	}{
		{probeReadSQL, unreachable},
		{probeCommitSQL, notCommitting},
	} {
		t.Run(string(test.want), func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 2 * time.Second })
			s.proxy.Inject(func(sql string) faultproxy.Fault {
				if sql == test.silent {
					return faultproxy.Stall
				}
				return faultproxy.Pass
			})
			srv := s.serverOf("c")
			srv.record(suspect, "of the test")
			var ended, committed atomic.Bool
			go func() {
				committed.Store(srv.probeOnce(t.Context(), s.timeout))
				ended.Store(true)
			}()
			wait.For(t, "the probe to find out", func() bool { return srv.currentState() == test.want })
			wait.For(t, "the probe to end", ended.Load)
			if committed.Load() || srv.currentState() != test.want {
				t.Errorf("the probe has committed: %v; the server is %s, want %s", committed.Load(), srv.currentState(), test.want)
			}
			s.proxy.Inject(nil)
			if !srv.probeOnce(t.Context(), longTimeout) || !srv.isHealthy() {
				t.Errorf("afterwards the server is %s", srv.currentState())
			}
		})
	}
}

// A commit that an administrator ends proves nothing about the next one.
func TestServer_probeOnce_cancelledCommit(t *testing.T) {
	t.Parallel()
	s := newServerStore(t)
	s.loseStandby(t)
	srv := s.serverOf("c")
	srv.record(suspect, "of the test")
	committed := make(chan bool, 1)
	go func() { committed <- srv.probeOnce(t.Context(), longTimeout) }()
	wait.For(t, "the probe to wait for the standby", func() bool { return s.sessionsWaiting(t) > 0 })
	s.exec(t, cancelWaiting)
	if <-committed || srv.currentState() != notCommitting {
		t.Errorf("after a commit without the standby, the server is %s; want not committing", srv.currentState())
	}
}

// If the server has no connection left, the probe takes one of those that calls use.
func TestServer_probeOnce_noConnectionLeft(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	name, url := s.newLogin(t, `in role coupon_service`)
	limited := openStore(t, url)
	if _, err := limited.Claim(t.Context(), "u", "c"); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `alter role `+name+` connection limit 1`)
	if !limited.serverOf("c").probeOnce(t.Context(), longTimeout) {
		t.Error("the only connection is idle, and the probe does not get it")
	}
}

// What makes the server suspect: signs that commits hang, and nothing else.
func TestServer_attempt_suspect(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if _, err := s.Claim(t.Context(), "u", "c"); err != nil { // makes a connection
		t.Fatal(err)
	}
	srv := s.serverOf("c")
	fails := func(err error) callFunc {
		return func(context.Context, *pgx.Conn) error { return err }
	}
	silent := func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `select pg_catalog.pg_sleep(60)`)
		return err
	}
	notReplicated := func(_ context.Context, conn *pgx.Conn) error {
		serverConnOf(conn).ambiguous = true
		return nil
	}
	soon := statementTimeout(s.timeout) / 2 // before the server's own time-out
	for _, test := range []struct {
		name    string
		kind    callKind
		call    callFunc
		timeout time.Duration
		want    bool
	}{
		{"a write that is not answered", callKind{write: true, reconnect: true}, silent, soon, true},
		{"a read that is not answered", callKind{}, silent, soon, false},
		{"a lock time-out of a solo call", callKind{write: true}, fails(pgError("ERROR", "55P03")), s.timeout, true},
		{"a lock time-out of a shared call", callKind{write: true, shared: true}, fails(pgError("ERROR", "55P03")), s.timeout, false},
		{"a deadlock", callKind{write: true}, fails(pgError("ERROR", "40P01")), s.timeout, false},
		{"a write without the standby", callKind{write: true}, notReplicated, s.timeout, true},
	} {
		wait.For(t, "the end of the probe", srv.isHealthy)
		srv.mu.Lock()
		changed := srv.changed
		srv.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
		failed := srv.attempt(ctx, test.kind, test.call)
		cancel()
		suspected := false
		select {
		case <-changed:
			suspected = true
		default:
		}
		if failed == nil || suspected != test.want {
			t.Errorf("%s: %+v, makes the server suspect: %v; want %v", test.name, failed, suspected, test.want)
		}
	}
}

// A server that gives no connection in time may be silent, even if no call was sent. It is not if
// other calls have all connections.
func TestServer_connection_noneInTime(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	srv := s.serverOf("c")
	suspected := func() bool {
		_, _, changed := srv.current()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		conn, err := srv.connection(ctx, callKind{write: true})
		if err == nil {
			conn.Release()
			t.Error("there is a connection")
		}
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	s.proxy.Freeze()
	if !suspected() {
		t.Error("a server that does not accept a session is not suspect")
	}
	s.proxy.Thaw()
	wait.For(t, "the end of the probe", srv.isHealthy)
	for range s.pool.Config().MaxConns {
		conn, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release)
	}
	if suspected() {
		t.Error("a server is suspect because all connections are in use")
	}
}

// A call that waits for its connection is not sent if the server is not healthy by then, nor if it
// has too little time left.
func TestServer_connection(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 100 * time.Minute })
	s.create(t, "c", 1)
	srv := s.serverOf("c")
	never := func(context.Context, *pgx.Conn) error {
		t.Error("the call was sent")
		return errInconsistent
	}
	s.proxy.Freeze()
	ended := make(chan *failedAttempt, 1)
	go func() { ended <- srv.attempt(t.Context(), callKind{write: true}, never) }()
	wait.For(t, "the call to wait for a connection", func() bool { return s.pool.Stat().ConstructingConns() > 0 })
	srv.record(notCommitting, "of the test")
	s.proxy.Thaw()
	if failed := <-ended; failed == nil || !failed.refused || !failed.notCommitted {
		t.Errorf("a write to a server that has stopped to commit: %+v, want it refused", failed)
	}

	srv.record(healthy, "")
	for name, kind := range map[string]callKind{
		"read": {}, "write": {write: true}, "write that reconnects": {write: true, reconnect: true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), srv.timeNeeded(kind)*9/10)
		if failed := srv.attempt(ctx, kind, never); failed == nil || !errors.Is(failed.err, ErrOverloaded) || !failed.notCommitted {
			t.Errorf("a %s with too little time: %+v, want ErrOverloaded", name, failed)
		}
		cancel()
	}
}

// A second attempt is not sent to a server that would not get the first one. If the first one may
// have been committed, it waits for the server, because only a second answer resolves it.
func TestServer_execute_secondAttempt(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	srv := s.serverOf("c")
	for _, test := range []struct {
		name    string
		write   bool
		failure error
		down    bool // all connections are cut; it is not known yet that the server does not answer
	}{
		{"a write that was rolled back", true, pgError("ERROR", "40P01"), false},
		{"a write that was rolled back, and no server", true, pgError("ERROR", "40P01"), true},
		{"a read", false, errors.New("cut"), false},
	} {
		calls := 0
		ctx, cancel := context.WithTimeout(t.Context(), s.timeout)
		_, err := srv.execute(ctx, test.write, nil, func(ctx context.Context, conn *pgx.Conn) error {
			calls++
			if test.down {
				s.proxy.SetDown(true)
				_ = conn.Close(ctx)
			} else {
				srv.record(unreachable, "of the test")
			}
			return test.failure
		})
		s.proxy.SetDown(false)
		if !errors.Is(err, ErrUnavailable) || calls != 1 || ctx.Err() != nil {
			t.Errorf("%s: %d calls, %v, %v; want ErrUnavailable at once, after one call", test.name, calls, err, ctx.Err())
		}
		cancel()
		srv.record(healthy, "")
	}

	ambiguous := &failedAttempt{err: errors.New("cut")}
	var calls atomic.Int32
	call := func(context.Context, *pgx.Conn) error { calls.Add(1); return nil }
	srv.record(unreachable, "of the test")
	if _, err := srv.execute(t.Context(), true, ambiguous, call); !errors.Is(err, ErrOutcomeUnknown) || calls.Load() != 0 {
		t.Errorf("a write that may be committed: %d calls, %v; want ErrOutcomeUnknown, and no call", calls.Load(), err)
	}
	srv.record(healthy, "")
	if first, err := srv.execute(t.Context(), true, ambiguous, call); first != ambiguous || err != nil || calls.Load() != 1 {
		t.Errorf("after the server is healthy: %+v, %v, %d calls; want an answer to the second attempt", first, err, calls.Load())
	}
}

// asProxy makes the idle session of the pool look like one on a proxy: its errors prove nothing.
func (s *testStore) asProxy(t *testing.T) {
	t.Helper()
	for _, conn := range s.pool.AcquireAllIdle(t.Context()) {
		serverConnOf(conn.Conn()).kind = kindProxy
		conn.Release()
	}
}

// A locked coupon fails a shared call. The claims of the others are sent again, in one call, and
// judged by the failure of the first one.
func TestServer_sendShared_lockedCoupon(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		proxy bool
		had   ClaimStatus // of the user that has the free coupon already
	}{
		{"a single server", false, AlreadyClaimed},
		{"a proxy", true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 8 * time.Second })
			s.create(t, "free", 5)
			s.create(t, "locked", 5)
			s.exec(t, `select coupond.claim_coupon('had it', 'free')`)
			if _, err := s.Claim(t.Context(), "u", "none"); err != nil {
				t.Fatal(err)
			}
			if test.proxy {
				s.asProxy(t)
			}
			s.lock(t, "locked")
			claims := newClaims("had it", "free", "new", "free", "u", "locked")
			ctx, cancel := context.WithTimeout(t.Context(), s.timeout)
			defer cancel()
			s.serverOf("free").sendShared(ctx, claims)
			had, granted, locked := claims[0], claims[1], claims[2]
			if had.status != test.had || test.proxy != errors.Is(had.err, ErrOutcomeUnknown) {
				t.Errorf("a user that has the coupon: %q, %v; want %q", had.status, had.err, test.had)
			}
			if granted.status != Claimed {
				t.Errorf("another user: %q, %v; want claimed", granted.status, granted.err)
			}
			if !locked.toSendAgain() || locked.failed.ambiguous() != test.proxy || !locked.failed.lockTimeout {
				t.Errorf("the locked coupon: %+v; want it left for a solo call", locked)
			}
		})
	}
}

// If the call that sends the others again fails as well, and is not committed, their first call may
// still be.
func TestServer_sendShared_staysAmbiguous(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 8 * time.Second })
	s.create(t, "free", 5)
	s.create(t, "locked", 5)
	if _, err := s.Claim(t.Context(), "u", "none"); err != nil {
		t.Fatal(err)
	}
	s.asProxy(t)
	s.lock(t, "locked")
	srv := s.serverOf("free")
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if sql == lockedCouponsSQL {
			srv.record(unreachable, "of the test")
		}
		return faultproxy.Pass
	})
	claims := newClaims("u", "free", "u", "locked")
	ctx, cancel := context.WithTimeout(t.Context(), s.timeout)
	defer cancel()
	srv.sendShared(ctx, claims)
	for _, c := range claims {
		if !c.toSendAgain() || !c.failed.ambiguous() {
			t.Errorf("%s: %+v; want an ambiguous claim", c.coupon, c)
		}
	}
}

// Claims for a server that is known not to commit are answered at once. They are not sent alone.
func TestServer_sendShared_refused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	srv := s.serverOf("c")
	srv.record(notCommitting, "of the test")
	claims := newClaims("u", "c", "u", "d")
	srv.sendShared(t.Context(), claims)
	for _, c := range claims {
		if c.toSendAgain() || !errors.Is(c.err, ErrUnavailable) {
			t.Errorf("%s: %q, %v; want ErrUnavailable", c.coupon, c.status, c.err)
		}
	}
}

// A coupon is kept out of shared calls if its lock cannot be had, or if PostgreSQL rejects the
// call. A call that is slow for another reason, or not sent, does not matter.
func TestServer_sendSolo_apart(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 8 * time.Second })
	s.create(t, "c", 5)
	srv := s.serverOf("c")
	send := func(user string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), s.timeout)
		defer cancel()
		return srv.sendSolo(ctx, newClaims(user, "c"))
	}
	if send("u") {
		t.Error("a call that is answered at once: the coupon is kept apart")
	}
	// Longer than a shared call waits for a lock, shorter than the statement_timeout.
	s.exec(t, `create function coupond.slow() returns trigger language plpgsql as 'begin perform pg_catalog.pg_sleep(1.1); return null; end'`)
	s.exec(t, `create trigger slow after insert on coupond.claims execute function coupond.slow()`)
	if send("slow") {
		t.Error("a call that is slow: the coupon is kept apart")
	}
	s.exec(t, `drop trigger slow on coupond.claims`)
	if !send("") {
		t.Error("a call that is rejected: the coupon shares calls, which it would fail")
	}
	srv.record(unreachable, "of the test")
	if send("u") {
		t.Error("a call that is refused: the coupon is kept apart")
	}
	srv.record(healthy, "")
	s.lock(t, "c")
	if !send("v") {
		t.Error("a call that waits for a lock in vain: the coupon shares calls, which it would delay")
	}
}

// A call that can delay no other waits longer for a lock than a shared call, in both of its
// attempts.
func TestStore_lockTimeouts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, lock string
		call       func(s *testStore, ctx context.Context) error
	}{
		{"solo call", `select from coupond.coupons where name = 'c' for update`, func(s *testStore, ctx context.Context) error {
			claims := newClaims("u", "c")
			s.serverOf("c").sendSolo(ctx, claims)
			return claims[0].err
		}},
		{"creation", `select coupond.create_coupon('new', 1)`, func(s *testStore, ctx context.Context) error {
			_, err := s.CreateCoupon(ctx, "new", 1)
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 5 * time.Second })
			s.create(t, "c", 5)
			s.exec(t, `begin`)
			s.exec(t, test.lock)
			ctx, cancel := context.WithTimeout(t.Context(), s.timeout)
			defer cancel()
			began := time.Now()
			if err := test.call(s, ctx); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v; want ErrUnavailable", err)
			}
			if took := time.Since(began); took < 2*lockTimeout(s.timeout) {
				t.Errorf("gave up after %v; want two attempts of %v each", took, lockTimeout(s.timeout))
			}
			s.exec(t, `rollback`)
		})
	}
}

// A session that was started before our functions were installed asks again what its server is.
func TestSession_askedAgain(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	kind := func() serverKind {
		conn, err := s.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		return serverConnOf(conn.Conn()).kind
	}
	s.exec(t, `alter function coupond.claim_coupon(text, text) rename to missing`)
	if got := kind(); got != kindUnknown {
		t.Errorf("before: kind %d, want unknown", got)
	}
	s.exec(t, `alter function coupond.missing(text, text) rename to claim_coupon`)
	if got := kind(); got != kindServer {
		t.Errorf("afterwards: kind %d, want a single server", got)
	}
	if made := s.pool.Stat().NewConnsCount(); made != 1 {
		t.Errorf("%d connections were made, want 1: it was not asked again", made)
	}
}

// When the map of partitions changes, a claim that meets the old server goes to the new one.
func TestStore_setServers(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	old := s.serverOf("c")
	var servers []*server
	for range 4 {
		servers = append(servers, s.newServer(old.probe))
	}
	old.batcher.close() // as setServers does, later
	time.AfterFunc(100*time.Millisecond, func() { s.setServers(servers) })
	s.wantClaim(t, "u", "c", Claimed)
	for n := range 100 {
		coupon := fmt.Sprint("c", n)
		if want := servers[hashText(coupon)%4]; s.serverOf(coupon) != want {
			t.Errorf("%s is not on the server of its partition", coupon)
		}
	}
	s.setServers([]*server{old})
	if _, err := servers[0].batcher.claim(t.Context(), "u", "c"); !errors.Is(err, errBatcherClosed) {
		t.Errorf("a server of the old map: %v, want errBatcherClosed", err)
	}
}

// A map that is read while the Store closes makes no servers: Close would not wait for their
// claims.
func TestProxy_setPartitions_closing(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	before := s.serverOf("c")
	s.Close()
	s.Store.proxy.setPartitions([]int{0, 1})
	if s.serverOf("c") != before || len(s.Store.proxy.all()) > 0 {
		t.Error("there are new servers")
	}
}

// withFailingProbe returns a Store and its server, with a probe that fails at once, again and
// again, and says nothing about the server. A shard has such a probe while its proxy is down.
func withFailingProbe(t *testing.T) (*testStore, *server) {
	t.Helper()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	srv := s.serverOf("c")
	srv.probe.read = `select 1 / 0`
	srv.probe.problem = func(error) string { return "" }
	srv.probe.background = newBackground()
	t.Cleanup(srv.probe.background.stop)
	return s, srv
}

// Calls do not wait for a probe that fails again and again: the server counts as unreachable.
func TestServer_giveUp(t *testing.T) {
	t.Parallel()
	_, srv := withFailingProbe(t)
	srv.markSuspect()
	wait.For(t, "the server to be unreachable", func() bool { return srv.currentState() == unreachable })
}

// The probe of a server ends when the server belongs to no map any more.
func TestServer_startProbe_retired(t *testing.T) {
	t.Parallel()
	s, old := withFailingProbe(t)
	old.markUnreachable("of the test")
	s.setServers([]*server{s.newServer(old.probe)})
	var ended atomic.Bool
	go func() {
		old.probe.background.running.Wait()
		ended.Store(true)
	}()
	wait.For(t, "the probe to end", ended.Load)
	if old.isHealthy() {
		t.Error("the probe has succeeded")
	}
}

// Calls of one kind that are not answered leave connections for the others.
func TestPool_silentCallsLeaveConnections(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, sql string
		limit     int32
		call      func(s *testStore, coupon string)
	}{
		{"creations", "create_coupon", 2, func(s *testStore, coupon string) { _, _ = s.CreateCoupon(context.Background(), coupon, 1) }},
		{"solo calls", setLockTimeout, 2, func(s *testStore, coupon string) { _, _ = s.Claim(context.Background(), "u", coupon) }},
		{"reads", "get_coupon", 3, func(s *testStore, coupon string) { _, _, _ = s.Coupon(context.Background(), coupon) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = 10 })
			s.create(t, "c", 5)
			blocked, release := s.hold(test.sql)
			var callers sync.WaitGroup
			for n := range 20 {
				coupon := fmt.Sprint("c", n)
				s.serverOf(coupon).batcher.keepSolo(coupon, true)
				callers.Go(func() { test.call(s, coupon) })
			}
			wait.For(t, "the calls that may run", func() bool { return blocked.Load() >= test.limit })
			s.wantClaim(t, "u", "c", Claimed)
			if n := blocked.Load(); n != test.limit {
				t.Errorf("%d calls run at the same time, want %d", n, test.limit)
			}
			release()
			callers.Wait()
		})
	}
}

// Creations of one name run one after the other, so those that wait for a lock use one connection.
func TestStore_creationsOfOneName(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = 10 })
	running, release := s.hold(createCouponSQL)
	var callers sync.WaitGroup
	var created atomic.Int32
	for range 2 {
		callers.Go(func() {
			if status, err := s.CreateCoupon(t.Context(), "c", 1); status == Created {
				created.Add(1)
			} else if status != CouponExists {
				t.Error(status, err)
			}
		})
	}
	wait.For(t, "both creations", func() bool { return running.Load()+s.creating.waiting.Load() == 2 })
	if n := running.Load(); n != 1 {
		t.Errorf("%d creations of the coupon run at the same time, want 1", n)
	}
	release()
	callers.Wait()
	if n := created.Load(); n != 1 {
		t.Errorf("%d of them have created it, want 1", n)
	}
}

// Callers of Ready share a check while it runs, and its result for a moment.
func TestReady_shared(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	checks, release := s.hold(readySQL)
	left, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = s.Ready(left)
	wait.For(t, "the check", func() bool { return checks.Load() > 0 })
	joined := s.readiness.checks.DoChan("", func() (any, error) { return nil, errors.New("a second check") })
	release()
	if ended := <-joined; ended.Err != nil {
		t.Error(ended.Err)
	}
	s.readiness.setEnd(time.Now().Add(time.Hour)) // a moment that does not end
	if _, err := s.Ready(t.Context()); err != nil || checks.Load() != 1 {
		t.Errorf("a moment later: %v, %d checks; want the result of the first", err, checks.Load())
	}
	s.readiness.setEnd(time.Now().Add(-recentResult))
	if _, err := s.Ready(t.Context()); err != nil || checks.Load() != 2 {
		t.Errorf("later: %v, %d checks; want a new one", err, checks.Load())
	}
}

// A check goes on when the caller that has started it leaves, because others wait for it.
func TestReady_firstCallerLeaves(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	_, release := s.hold(readySQL)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Ready(ctx); err == nil {
		t.Error("a caller that leaves gets an answer")
	}
	release()
	wait.For(t, "the end of the check", func() bool { return s.readiness.last.Load() != nil })
	if err := s.readiness.last.Load().result; err != nil {
		t.Errorf("%v; want the check to succeed", err)
	}
}

// Of a server of an unknown kind, no error proves what a proxy's would not.
func TestServerConn_mayBeProxy(t *testing.T) {
	t.Parallel()
	full, missing := pgError("ERROR", "53100"), pgError("ERROR", "42883")
	for _, test := range []struct {
		kind serverKind
		err  error
		want bool
	}{
		{kindServer, full, false}, {kindServer, missing, false},
		{kindProxy, full, true}, {kindProxy, missing, true},
		{kindUnknown, full, true}, {kindUnknown, missing, false}, // our functions are not there
	} {
		sc := &serverConn{kind: test.kind}
		if got := sc.mayBeProxy(test.err); got != test.want {
			t.Errorf("kind %d, %v: %v, want %v", test.kind, test.err, got, test.want)
		}
	}
}

// A shard has one health check at a time, and none while it is probed.
func TestShard_beginCheck(t *testing.T) {
	t.Parallel()
	sh := &shard{server: isolated()}
	if !sh.beginCheck() || sh.beginCheck() {
		t.Error("want one check at a time")
	}
	sh.checking.Store(false)
	sh.record(unreachable, "of the test")
	if sh.beginCheck() {
		t.Error("a shard that is probed is checked as well")
	}
	sh.record(healthy, "")
	if !sh.beginCheck() {
		t.Error("a healthy shard is not checked")
	}
}

// A connection is not kept if the server has ended the session, or is read-only, as a standby is.
func TestKeepConnection(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		severity, code string
		want           bool
	}{
		{"ERROR", "55P03", true},
		{"ERROR", "25006", false},
		{"FATAL", "57P01", false},
		{"PANIC", "53100", false},
	} {
		if got := keepConnection(nil, &pgconn.PgError{SeverityUnlocalized: test.severity, Code: test.code, Message: "of the test"}); got != test.want {
			t.Errorf("%s %s: %v, want %v", test.severity, test.code, got, test.want)
		}
	}
}
