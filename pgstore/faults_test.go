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
)

// faults are the moments at which a connection is cut under a call, and whether the
// server has then committed it (nil: that is for the server to know).
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

// cutFirst cuts the first call of a function, and no other.
func (s *stand) cutFirst(function string, f faultproxy.Fault) {
	var cut atomic.Bool
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, function) && cut.CompareAndSwap(false, true) {
			return f
		}
		return faultproxy.Pass
	})
}

// A claim whose connection is cut is told exactly, or as unknown, never guessed:
// "claimed" only if the call that said so was committed, "already_claimed" never
// when it may be our own first try.
func TestClaimCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			s.create(t, "c", 2)
			s.create(t, "sold out", 1)
			s.exec(t, `select public.claim_coupon('somebody', 'sold out')`)

			s.cutFirst("claim_coupons", test.fault)
			status, err := s.Claim(t.Context(), "u", "c")
			switch {
			case test.committed == nil && status == Claimed && err == nil:
			case test.committed == nil || *test.committed:
				if status != "" || !errors.Is(err, ErrOutcomeUnknown) {
					t.Errorf("%q, %v; want it unknown", status, err)
				}
			case status != Claimed || err != nil:
				t.Errorf("%q, %v; want claimed, by the second call", status, err)
			}
			s.wantHolders(t, "c", "u")

			// The rest depends on what the second call sees alone: it is the same after each cut.
			s.cutFirst("claim_coupons", test.fault)
			if status, err := s.Claim(t.Context(), "u", "c"); status != "" || !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("a user who had it before: %q, %v; want it unknown", status, err)
			}
			s.cutFirst("claim_coupons", test.fault)
			if status, err := s.Claim(t.Context(), "v", "sold out"); status != OutOfStock || err != nil {
				t.Errorf("sold out: %q, %v; want out_of_stock, for stock never grows", status, err)
			}
			s.cutFirst("claim_coupons", test.fault)
			if status, err := s.Claim(t.Context(), "u", "unknown"); status != "" || !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("no such coupon: %q, %v; want it unknown", status, err)
			}
			s.proxy.Inject(nil)
			if status, err := s.Claim(t.Context(), "v", "c"); status != Claimed || err != nil {
				t.Errorf("afterwards: %q, %v", status, err)
			}
			s.wantNoCancelRequest(t)
		})
	}
}

// A mixed crowd whose call is cut is asked again coupon by coupon.
func TestCrowdCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		if test.committed == nil {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			s.create(t, "x", 1)
			s.create(t, "y", 5)
			s.cutFirst("claim_batch", test.fault)
			claims := crowd("a", "y", "a", "x", "b", "x", "a", "y", "b", "y")
			s.sendWithin(t, patience, claims)

			// Not committed, all of it is exact: the user who asks twice too, because the second
			// call granted one of the two. Committed, only "out_of_stock" is.
			want := []ClaimStatus{Claimed, Claimed, OutOfStock, AlreadyClaimed, Claimed}
			if *test.committed {
				want = []ClaimStatus{"", "", OutOfStock, "", ""}
			}
			for i, c := range claims {
				if c.status != want[i] || (c.status == "") != errors.Is(c.err, ErrOutcomeUnknown) {
					t.Errorf("claim %d, of %s for %s: %q, %v; want %q", i, c.user, c.coupon, c.status, c.err, want[i])
				}
			}
			s.wantHolders(t, "x", "a")
			s.wantHolders(t, "y", "a", "b")
		})
	}
}

func TestCreateCut(t *testing.T) {
	t.Parallel()
	for _, test := range faults {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			s.cutFirst("create_coupon", test.fault)
			status, err := s.CreateCoupon(t.Context(), "c", 7)
			switch {
			case test.committed == nil && status == Created && err == nil:
			case test.committed == nil || *test.committed:
				if status != "" || !errors.Is(err, ErrOutcomeUnknown) {
					t.Errorf("%q, %v; want it unknown", status, err)
				}
			case status != Created || err != nil:
				t.Errorf("%q, %v; want created, by the second call", status, err)
			}
			s.proxy.Inject(nil)
			if status, err := s.CreateCoupon(t.Context(), "c", 7); status != CouponExists || err != nil {
				t.Errorf("afterwards: %q, %v", status, err)
			}
		})
	}
}

func TestReadCut(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 7)
	s.exec(t, `select public.claim_coupons('{a,b}', 'c')`)
	for _, test := range faults {
		for _, function := range []string{"get_coupon", "coupon_claimers"} {
			s.cutFirst(function, test.fault)
			coupon, found, err := s.Coupon(t.Context(), "c")
			if err != nil || !found || coupon.RemainingAmount != 5 {
				t.Errorf("%s cut %s: %v, %v, %v", function, test.name, coupon, found, err)
				continue
			}
			if users, _ := coupon.Whole(); !slices.Equal(users, []string{"a", "b"}) {
				t.Errorf("%s cut %s: claimed by %q", function, test.name, users)
			}
		}
	}
}

// Both calls are cut, and no server to be found for a third look.
func TestBothCallsCut(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 7)
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "public.") && !strings.Contains(sql, "pg_proc") { // but for the question whether it is a proxy
			return faultproxy.CutBeforeCommit
		}
		return faultproxy.Pass
	})
	if status, err := s.Claim(t.Context(), "u", "c"); status != "" || !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("claim: %q, %v", status, err)
	}
	if status, err := s.CreateCoupon(t.Context(), "d", 1); status != "" || !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("creation: %q, %v", status, err)
	}
	if _, _, err := s.Coupon(t.Context(), "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("read: %v", err)
	}
	s.wantHolders(t, "c")
}

// A connection that falls silent under a call costs the call half of its time: the
// second one goes another way.
func TestStalledConnection(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout = 6 * time.Second })
	s.create(t, "c", 5)
	s.cutFirst("claim_coupons", faultproxy.Stall)
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed || err != nil {
		t.Errorf("claim: %q, %v", status, err)
	}
	s.cutFirst("create_coupon", faultproxy.Stall)
	if status, err := s.CreateCoupon(t.Context(), "d", 5); status != Created || err != nil {
		t.Errorf("creation: %q, %v", status, err)
	}
	s.cutFirst("get_coupon", faultproxy.Stall)
	if _, found, err := s.Coupon(t.Context(), "d"); !found || err != nil {
		t.Errorf("read: %v, %v", found, err)
	}
	s.wantNoCancelRequest(t)
}

// A call that was cut waits for a server that comes back in time, rather than being
// told as unknown.
func TestServerAwayForAMoment(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	awayAfter := func(function string) {
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
	awayAfter("claim_coupons")
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed || err != nil {
		t.Errorf("claim: %q, %v", status, err)
	}
	awayAfter("create_coupon")
	if status, err := s.CreateCoupon(t.Context(), "d", 5); status != Created || err != nil {
		t.Errorf("creation: %q, %v", status, err)
	}
}

// Once sent, a claim and a creation stand, and their callers get to know.
func TestCallersWhoLeaveAfterSending(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	leaveAt := func(function string) context.Context {
		ctx, leave := context.WithCancel(t.Context())
		t.Cleanup(leave)
		s.proxy.Inject(func(sql string) faultproxy.Fault {
			if strings.Contains(sql, function) {
				leave()
				time.Sleep(50 * time.Millisecond)
			}
			return faultproxy.Pass
		})
		return ctx
	}
	if status, err := s.Claim(leaveAt("claim_coupons"), "u", "c"); status != Claimed || err != nil {
		t.Errorf("claim: %q, %v", status, err)
	}
	if status, err := s.CreateCoupon(leaveAt("create_coupon"), "d", 5); status != Created || err != nil {
		t.Errorf("creation: %q, %v", status, err)
	}
	if made := s.pool.Stat().NewConnsCount(); made != 1 {
		t.Errorf("%d connections were made, and one is enough", made)
	}
}

// wantNoCancelRequest says that the proxy has never seen one.
func (s *stand) wantNoCancelRequest(t *testing.T) {
	t.Helper()
	if n := s.proxy.CancelRequests(); n != 0 {
		t.Errorf("%d cancel requests were sent", n)
	}
}

// One coupon that somebody keeps locked fails neither its neighbours nor their
// connection, and its own claim surely did not happen.
func TestLockedCoupon(t *testing.T) {
	t.Parallel()
	const timeout = 8 * time.Second // the server waits for locks for 1.2 s
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout = timeout })
	for _, coupon := range []string{"locked", "a", "z"} {
		s.create(t, coupon, 5)
	}
	s.exec(t, `select public.claim_coupon('had it', 'locked')`)
	unlock := s.lock(t, "locked")

	start := time.Now()
	claims := crowd("u", "a", "u", "locked", "had it", "locked", "u", "z", "u", "unknown")
	s.sendWithin(t, timeout, claims)
	if took := time.Since(start); took > timeout {
		t.Errorf("took %v of %v", took, timeout)
	}
	for i, want := range []ClaimStatus{Claimed, "", "", Claimed, CouponNotFound} {
		c := claims[i]
		if c.status != want || (want == "") != errors.Is(c.err, ErrUnavailable) {
			t.Errorf("%s for %s: %q, %v; want %q", c.user, c.coupon, c.status, c.err, want)
		}
	}
	if made := s.pool.Stat().NewConnsCount(); made > int64(s.askers.Load()) {
		t.Errorf("%d connections were made for %d askers: the lock has cost some", made, s.askers.Load())
	}
	s.wantHolders(t, "locked", "had it")

	// A rejection needs no lock.
	if status, err := s.Claim(t.Context(), "had it", "locked"); status != AlreadyClaimed || err != nil {
		t.Errorf("rejection: %q, %v", status, err)
	}
	unlock()
	if status, err := s.Claim(t.Context(), "u", "locked"); status != Claimed || err != nil {
		t.Errorf("unlocked: %q, %v", status, err)
	}
	s.wantNoCancelRequest(t)
}

// The lock goes away between the first call and the second: after a proven rollback
// every answer is exact.
func TestLockedForAWhile(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout = 12 * time.Second })
	s.create(t, "c", 5)
	s.exec(t, `select public.claim_coupon('had it', 'c')`)
	unlock := s.lock(t, "c")
	time.AfterFunc(2600*time.Millisecond, unlock) // lock_timeout is 1.8 s

	claims := crowd("u", "c", "had it", "c", "u", "unknown")
	s.sendWithin(t, 12*time.Second, claims)
	for i, want := range []ClaimStatus{Claimed, AlreadyClaimed, CouponNotFound} {
		if claims[i].status != want {
			t.Errorf("%s: %q, %v; want %q", claims[i].user, claims[i].status, claims[i].err, want)
		}
	}
}

// When we give a claim up before the server does, the connection is closed, the
// server is not told to stop, and the place in the pool is free at once. What was
// sent stands: it is committed when the lock goes.
func TestGivingUpClosesInsteadOfCancelling(t *testing.T) {
	t.Parallel()
	for _, encryption := range []string{"disable", "prefer"} {
		t.Run("sslmode="+encryption, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, func(cfg *Config) {
				cfg.URL = withParam(cfg.URL, "sslmode", encryption)
				cfg.ClaimTimeout = time.Minute // the server waits for locks for 9 s
			})
			s.giveUp(t)
		})
	}
}

// giveUp gives a claim up that waits for a lock.
func (s *stand) giveUp(t *testing.T) {
	t.Helper()
	s.create(t, "c", 5)
	if status, err := s.Claim(t.Context(), "connected", "c"); status != Claimed {
		t.Fatal(status, err)
	}
	unlock := s.lock(t, "c")

	claims := crowd("u", "c")
	s.sendWithin(t, 2*time.Second, claims)
	if !errors.Is(claims[0].err, ErrOutcomeUnknown) {
		t.Errorf("%q, %v; want it unknown", claims[0].status, claims[0].err)
	}
	given := time.Now()
	eventually(t, "no place in the pool is taken", func() bool { return s.pool.Stat().AcquiredConns() == 0 })
	// pgx itself would take 15 s.
	if took := time.Since(given); took > 8*time.Second {
		t.Errorf("the places in the pool were free after %v", took)
	}
	s.wantNoCancelRequest(t)

	unlock()
	eventually(t, "the claim that was sent is committed", func() bool { return len(s.holders(t, "c")) == 2 })
	s.wantHolders(t, "c", "connected", "u")
}

// withParam is a connection URL with another value for one of its parameters.
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

// A server that says nothing costs each call its ClaimTimeout and the pool nothing.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.MaxConns = timeout, 3 })
	s.create(t, "c", 50)
	eventually(t, "the pool has a connection that works", func() bool {
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
				t.Errorf("%s: %v", what, err)
			}
			if took := time.Since(start); took > timeout+time.Second {
				t.Errorf("%s took %v", what, took)
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
	eventually(t, "claims are granted again", func() bool {
		status, _ := s.Claim(t.Context(), "after", "c")
		return status == Claimed || status == AlreadyClaimed
	})
	s.wantNoCancelRequest(t)
}

// While there is no server, calls are refused quickly and surely; when it is there
// again, they work, without a restart.
func TestServerAway(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.URL = strings.Replace(cfg.URL, "127.0.0.1", "127.0.0.1:1,127.0.0.1", 1) })
	s.create(t, "c", 50)
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Fatal("the second of two hosts is not found: ", status, err)
	}

	away := newStand(t, func(cfg *Config) {
		cfg.URL = "postgres://u:s3cr3t@127.0.0.1:1/nothing"
	})
	start := time.Now()
	claims := crowd("u", "c", "u", "d")
	away.sendWithin(t, patience, claims)
	_, created := away.CreateCoupon(t.Context(), "c", 1)
	_, _, read := away.Coupon(t.Context(), "c")
	for what, err := range map[string]error{
		"claim": claims[0].err, "its neighbour": claims[1].err, "creation": created, "read": read,
	} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		} else if strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s shows the password: %v", what, err)
		}
	}
	if took := time.Since(start); took > patience/3 {
		t.Errorf("three refusals took %v", took)
	}
}

// Sessions end in the middle of claims, again and again: what is told is true.
func TestTerminatedBackends(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	const users, stock = 600, 500
	s.create(t, "c", stock)
	s.create(t, "d", stock)

	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			s.exec(t, `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and application_name = 'coupond' order by random() limit 1`)
		}
	})

	const crowdSize = 10
	claims := make([]*claim, 2*users)
	for i := range users {
		claims[2*i] = &claim{user: fmt.Sprint("u", i), coupon: "c"}
		claims[2*i+1] = &claim{user: fmt.Sprint("u", i), coupon: "d"}
	}
	var clients sync.WaitGroup
	var next atomic.Int64
	for range 6 {
		clients.Go(func() {
			for {
				from := int(next.Add(crowdSize)) - crowdSize
				if from >= len(claims) {
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				s.send(ctx, claims[from:from+crowdSize])
				cancel()
			}
		})
	}
	clients.Wait()
	close(stop)
	killer.Wait()

	counts := make(map[string]int)
	for _, coupon := range []string{"c", "d"} {
		holders := s.holders(t, coupon)
		for _, c := range claims {
			if c.coupon != coupon {
				continue
			}
			has := slices.Contains(holders, c.user)
			switch {
			case c.status == Claimed && !has:
				t.Errorf("%s was told that he has %s, and does not", c.user, coupon)
			case c.status == OutOfStock && (has || len(holders) < stock):
				t.Errorf("%s was told that %s is sold out: has it %v, %d of %d sold", c.user, coupon, has, len(holders), stock)
			case c.status == AlreadyClaimed, c.status == CouponNotFound:
				t.Errorf("%s was told %s, though he asked once", c.user, c.status)
			case errors.Is(c.err, ErrUnavailable) && has:
				t.Errorf("%s was told that surely nothing happened, and has %s", c.user, coupon)
			case c.err != nil && !errors.Is(c.err, ErrUnavailable) && !errors.Is(c.err, ErrOutcomeUnknown):
				t.Errorf("%s: %v", c.user, c.err)
			}
			switch {
			case c.err == nil:
				counts[string(c.status)]++
			case errors.Is(c.err, ErrOutcomeUnknown):
				counts["unknown"]++
			default:
				counts["unavailable"]++
			}
		}
		s.wantHolders(t, coupon, holders...)
	}
	t.Logf("%v over %d connections", counts, s.pool.Stat().NewConnsCount())
	if made := s.pool.Stat().NewConnsCount(); made < 10 {
		t.Errorf("only %d connections were made: nothing was terminated", made)
	}
	s.wantNoCancelRequest(t)
}
