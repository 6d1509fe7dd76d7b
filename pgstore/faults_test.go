package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/wait"
)

// faults are the moments at which a connection is cut during a call, and whether the server has
// committed the call by then (nil: it may have).
var faults = []struct {
	name      string
	fault     faultproxy.Fault
	committed *bool
}{
	{"before the call", faultproxy.CutBeforeCall, new(false)},
	{"before the commit", faultproxy.CutBeforeCommit, new(false)},
	{"answered but not committed", faultproxy.CutAnsweredBeforeCommit, new(false)},
	{"during the call", faultproxy.CutDuring, nil},
	{"after the commit", faultproxy.CutAfterCommit, new(true)},
	{"answered and committed but not confirmed", faultproxy.CutAnsweredAfterCommit, new(true)},
}

// injectOnce injects a fault into the first call of a function, and no other.
func (s *testStore) injectOnce(function string, f faultproxy.Fault) {
	var cut atomic.Bool
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, function) && cut.CompareAndSwap(false, true) {
			return f
		}
		return faultproxy.Pass
	})
}

// wantAfterCut checks the outcome of a call after its first attempt was cut: that of the retry,
// unless the first attempt was committed, or may have been.
func wantAfterCut[S ~string](t *testing.T, committed *bool, status S, err error, retry S) {
	t.Helper()
	if committed == nil && status == retry {
		committed = new(false)
	}
	if committed == nil || *committed {
		wantOutcome(t, "after the cut", status, err, ErrOutcomeUnknown)
	} else {
		wantOutcome(t, "by the retry", status, err, retry)
	}
}

// After its connection is cut, a claim gets an exact outcome or ErrOutcomeUnknown: "claimed" only
// if the call that returned it was committed, and never "already_claimed" if that may be the effect
// of the first attempt.
func TestClaim_connectionCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t)
			s.create(t, "c", 2)
			s.create(t, "sold out", 1)
			s.exec(t, `select coupond.claim_coupon('another user', 'sold out')`)

			s.injectOnce("claim_coupon($1", test.fault)
			status, err := s.Claim(t.Context(), "u", "c")
			wantAfterCut(t, test.committed, status, err, Claimed)
			s.wantHolders(t, "c", "u")

			// These outcomes depend only on the retry: they are the same after each fault.
			s.injectOnce("claim_coupon($1", test.fault)
			s.wantClaim(t, "u", "c", ErrOutcomeUnknown)
			s.injectOnce("claim_coupon($1", test.fault)
			s.wantClaim(t, "v", "sold out", OutOfStock)
			s.injectOnce("claim_coupon($1", test.fault)
			s.wantClaim(t, "u", "unknown", ErrOutcomeUnknown)
			s.proxy.Inject(nil)
			s.wantClaim(t, "v", "c", Claimed)
			s.wantNoCancelRequest(t)
		})
	}
}

// A batch for one coupon is retried as a whole after its connection is cut.
func TestSendBatch_oneCouponConnectionCut(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 2)
	s.injectOnce("claim_coupons", faultproxy.CutBeforeCommit)
	claims := newClaims("a", "c", "b", "c", "a", "c", "d", "c")
	s.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, Claimed, Claimed, AlreadyClaimed, OutOfStock)
	s.wantHolders(t, "c", "a", "b")
}

// A batch for many coupons is retried coupon by coupon after its connection is cut.
func TestSendBatch_connectionCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		if test.committed == nil {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t)
			s.create(t, "x", 1)
			s.create(t, "y", 5)
			s.injectOnce("claim_batch", test.fault)
			claims := newClaims("a", "y", "a", "x", "b", "x", "a", "y", "b", "y")
			s.sendWithin(t, longTimeout, claims)

			// If the first attempt was not committed, all outcomes are exact, also for the user
			// with two claims, because the retry granted one of them. If it was committed, only
			// "out_of_stock" is exact.
			want := []any{Claimed, Claimed, OutOfStock, AlreadyClaimed, Claimed}
			if *test.committed {
				want = []any{ErrOutcomeUnknown, ErrOutcomeUnknown, OutOfStock, ErrOutcomeUnknown, ErrOutcomeUnknown}
			}
			wantStatuses(t, claims, want...)
			s.wantHolders(t, "x", "a")
			s.wantHolders(t, "y", "a", "b")
		})
	}
}

func TestCreateCoupon_connectionCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t)
			s.injectOnce("create_coupon", test.fault)
			status, err := s.CreateCoupon(t.Context(), "c", 7)
			wantAfterCut(t, test.committed, status, err, Created)
			s.proxy.Inject(nil)
			s.wantCreate(t, "c", 7, CouponExists)
		})
	}
}

func TestCoupon_connectionCut(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 7)
	s.exec(t, `select coupond.claim_coupons('{a,b}', 'c')`)
	for _, test := range faults {
		for _, function := range []string{"get_coupon", "coupon_claimers"} {
			s.injectOnce(function, test.fault)
			if users := s.claimers(t, "c"); !slices.Equal(users, []string{"a", "b"}) {
				t.Errorf("%s cut %s: claimers are %q", function, test.name, users)
			}
		}
	}
}

func TestStore_bothAttemptsCut(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 7)
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "coupond.") && !strings.Contains(sql, "pg_proc") { // not prepareSQL
			return faultproxy.CutBeforeCommit
		}
		return faultproxy.Pass
	})
	s.wantClaim(t, "u", "c", ErrOutcomeUnknown)
	s.wantCreate(t, "d", 1, ErrOutcomeUnknown)
	s.wantReadError(t, "c", ErrUnavailable)
	s.wantHolders(t, "c")
}

// A connection that stalls during a call uses up half of the call's time. The second attempt uses
// another connection.
func TestStore_stalledConnection(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	s.create(t, "c", 5)
	var stalled sync.Map
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		for _, function := range []string{"claim_coupon($1", "create_coupon", "get_coupon"} {
			if strings.Contains(sql, function) {
				if _, before := stalled.LoadOrStore(function, true); !before {
					return faultproxy.Stall
				}
			}
		}
		return faultproxy.Pass
	})
	var calls sync.WaitGroup
	calls.Go(func() { s.wantClaim(t, "u", "c", Claimed) })
	calls.Go(func() { s.wantCreate(t, "d", 5, Created) })
	calls.Go(func() { s.claimers(t, "c") })
	calls.Wait()
	s.wantNoCancelRequest(t)
}

// The retry of an ambiguous call waits for a server that comes back in time.
func TestStore_serverDownForAMoment(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	downDuring := func(function string) {
		var once sync.Once
		s.proxy.Inject(func(sql string) faultproxy.Fault {
			f := faultproxy.Pass
			if strings.Contains(sql, function) {
				once.Do(func() {
					f = faultproxy.CutBeforeCall
					s.proxy.SetDown(true)
					time.AfterFunc(300*time.Millisecond, func() { s.proxy.SetDown(false) })
				})
			}
			return f
		})
	}
	downDuring("claim_coupon($1")
	s.wantClaim(t, "u", "c", Claimed)
	downDuring("create_coupon")
	s.wantCreate(t, "d", 5, Created)
}

// A claim or a creation that was sent is answered although its context ends.
func TestStore_canceledAfterSending(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	cancelDuring := func(function string) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		s.proxy.Inject(func(sql string) faultproxy.Fault {
			if strings.Contains(sql, function) {
				cancel()
				time.Sleep(50 * time.Millisecond)
			}
			return faultproxy.Pass
		})
		return ctx
	}
	if status, err := s.Claim(cancelDuring("claim_coupon($1"), "u", "c"); status != Claimed || err != nil {
		t.Errorf("claim: %q, %v", status, err)
	}
	if status, err := s.CreateCoupon(cancelDuring("create_coupon"), "d", 5); status != Created || err != nil {
		t.Errorf("creation: %q, %v", status, err)
	}
	if made := s.pool.Stat().NewConnsCount(); made != 1 {
		t.Errorf("%d connections were made, want 1", made)
	}
}

// wantNoCancelRequest checks that no cancel request was sent.
func (s *testStore) wantNoCancelRequest(t *testing.T) {
	t.Helper()
	if n := s.proxy.CancelRequests(); n != 0 {
		t.Errorf("%d cancel requests were sent, want 0", n)
	}
}

// A coupon that another transaction has locked does not fail the other coupons of the batch, and
// its claim is not committed. The connection is kept.
func TestSendBatch_lockedCoupon(t *testing.T) {
	t.Parallel()
	const timeout = 8 * time.Second // the server waits for locks for 0.8 and 1.2 s
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = timeout })
	for _, coupon := range []string{"locked", "a", "z"} {
		s.create(t, coupon, 5)
	}
	s.exec(t, `select coupond.claim_coupon('had it', 'locked')`)
	unlock := s.lock(t, "locked")

	start := time.Now()
	claims := newClaims("u", "a", "u", "locked", "had it", "locked", "u", "z", "u", "unknown")
	s.sendWithin(t, timeout, claims)
	if took := time.Since(start); took > timeout {
		t.Errorf("took %v, want at most %v", took, timeout)
	}
	wantStatuses(t, claims, Claimed, ErrUnavailable, ErrUnavailable, Claimed, CouponNotFound)
	if made := s.pool.Stat().NewConnsCount(); made != 1 {
		t.Errorf("%d connections were made, want 1", made)
	}
	s.wantHolders(t, "locked", "had it")

	// A rejection needs no lock.
	s.wantClaim(t, "had it", "locked", AlreadyClaimed)
	unlock()
	s.wantClaim(t, "u", "locked", Claimed)
	s.wantNoCancelRequest(t)
}

// If the lock is released between the first attempt and the retry, all outcomes are exact, because
// lock_timeout proves a rollback.
func TestSendBatch_lockReleasedBeforeTheRetry(t *testing.T) {
	t.Parallel()
	const timeout = 12 * time.Second
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = timeout })
	s.create(t, "c", 5)
	s.exec(t, `select coupond.claim_coupon('had it', 'c')`)
	unlock := s.lock(t, "c")
	// A shared call waits for 1.2 s, a solo call for 1.8 s more.
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, setLockTimeout) {
			time.AfterFunc(100*time.Millisecond, unlock)
		}
		return faultproxy.Pass
	})

	claims := newClaims("u", "c", "had it", "c", "u", "unknown")
	s.sendWithin(t, timeout, claims)
	wantStatuses(t, claims, Claimed, AlreadyClaimed, CouponNotFound)
}

// If we give up a claim before the server does, the connection is closed, no cancel request is
// sent, and its place in the pool is free at once. The claim is committed as soon as the lock is
// released.
func TestServerConn_closesInsteadOfCancelling(t *testing.T) {
	t.Parallel()
	for _, encryption := range []string{"disable", "prefer"} {
		t.Run("sslmode="+encryption, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) {
				cfg.URL = withParam(cfg.URL, "sslmode", encryption)
				cfg.ClaimTimeout = time.Minute // the server waits for locks for 9 s
			})
			s.abandonLockedClaim(t)
		})
	}
}

// abandonLockedClaim gives up a claim that waits for a lock.
func (s *testStore) abandonLockedClaim(t *testing.T) {
	t.Helper()
	s.create(t, "c", 5)
	s.wantClaim(t, "connected", "c", Claimed)
	unlock := s.lock(t, "c")

	// A call that reconnects is sent although we give it up before the server's time-outs end it.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	srv := s.serverOf("c")
	if failed := srv.attempt(ctx, callKind{write: true, reconnect: true}, srv.claimCall(newClaims("u", "c"), true)); failed == nil || !failed.ambiguous() {
		t.Errorf("%+v; want the call to be ambiguous", failed)
	}
	start := time.Now()
	wait.For(t, "all connections of the pool to be released", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
	// pgx would take 15 s.
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("the connections were released after %v, want at most 8 s", took)
	}
	s.wantNoCancelRequest(t)

	unlock()
	wait.For(t, "the claim that was sent to be committed", func() bool { return len(s.holders(t, "c")) == 2 })
	s.wantHolders(t, "c", "connected", "u")
}

// withParam returns a connection URL with the value of one parameter changed.
func withParam(connectionURL, param, value string) string {
	u, err := url.Parse(connectionURL)
	if err != nil {
		panic(err)
	}
	query := u.Query()
	query.Set(param, value)
	u.RawQuery = query.Encode()
	return u.String()
}

// A server that does not answer delays each call by its ClaimTimeout and takes no connection from
// the pool for longer.
func TestStore_frozenServer(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.MaxConns = timeout, 3 })
	s.create(t, "c", 50)
	wait.For(t, "a first claim", func() bool {
		_, err := s.Claim(t.Context(), "before", "c")
		return err == nil
	})

	s.proxy.Freeze()
	var callers sync.WaitGroup
	within := func(what string, call func() error, want ...error) {
		callers.Go(func() {
			start := time.Now()
			err := call()
			if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
				t.Errorf("%s: error %v, want one of %v", what, err, want)
			}
			if took := time.Since(start); took > timeout+time.Second {
				t.Errorf("%s took %v, want at most %v", what, took, timeout+time.Second)
			}
		})
	}
	for i := range 6 { // more than there are connections
		within("claim", func() error {
			_, err := s.Claim(t.Context(), fmt.Sprint("u", i), "c")
			return err
		}, ErrOutcomeUnknown, ErrUnavailable, ErrOverloaded)
	}
	within("creation", func() error {
		_, err := s.CreateCoupon(t.Context(), "d", 1)
		return err
	}, ErrOutcomeUnknown, ErrUnavailable)
	within("read", func() error {
		_, _, err := s.Coupon(t.Context(), "c")
		return err
	}, ErrUnavailable)
	callers.Wait()
	s.wantNoCancelRequest(t)

	s.proxy.Thaw()
	wait.For(t, "claims after the thaw", func() bool {
		status, _ := s.Claim(t.Context(), "after", "c")
		return status == Claimed || status == AlreadyClaimed
	})
	s.wantNoCancelRequest(t)
}

// While no server is reachable, calls fail quickly and are not committed.
func TestStore_serverDown(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.URL = strings.Replace(cfg.URL, "127.0.0.1", "127.0.0.1:1,127.0.0.1", 1) })
	s.create(t, "c", 50)
	s.wantClaim(t, "u", "c", Claimed)

	down := newTestStore(t, func(cfg *Config) {
		cfg.URL = "postgres://u:s3cr3t@127.0.0.1:1/nothing"
	})
	start := time.Now()
	claims := newClaims("u", "c", "u", "d")
	down.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, ErrUnavailable, ErrUnavailable)
	down.wantCreate(t, "c", 1, ErrUnavailable)
	down.wantReadError(t, "c", ErrUnavailable)
	if took := time.Since(start); took > longTimeout/3 {
		t.Errorf("the calls took %v, want at most %v", took, longTimeout/3)
	}
}

// Sessions are terminated during claims, again and again: all outcomes are true.
func TestSendBatch_terminatedBackends(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	const users, stock, batchSize = 300, 250, 10
	coupons := []string{"c", "d"}
	for _, coupon := range coupons {
		s.create(t, coupon, stock)
	}
	stopKilling := concurrently(t, 1, func(int, int) {
		time.Sleep(10 * time.Millisecond)
		_, _ = s.owner.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'coupond' order by random() limit 1`)
	})
	var answers [2]recorder
	var clients sync.WaitGroup
	var next atomic.Int64
	for range 6 {
		clients.Go(func() {
			for from := int(next.Add(batchSize)) - batchSize; from < 2*users; from = int(next.Add(batchSize)) - batchSize {
				var claims []*claim
				for i := from; i < from+batchSize; i++ {
					claims = append(claims, newClaims(fmt.Sprint("u", i/2), coupons[i%2])...)
				}
				ctx, cancel := context.WithTimeout(t.Context(), longTimeout)
				s.sendBatch(ctx, claims)
				cancel()
				for i, c := range claims {
					record(&answers[i%2], c.user, c.status, c.err)
				}
			}
		})
	}
	clients.Wait()
	stopKilling()
	for i, coupon := range coupons {
		holders := s.holders(t, coupon)
		answers[i].wantTrue(t, holders, stock)
		s.wantHolders(t, coupon, holders...)
	}
	if made := s.pool.Stat().NewConnsCount(); made < 10 {
		t.Errorf("%d connections were made, want at least 10: no session was terminated", made)
	}
	s.wantNoCancelRequest(t)
}
