package pgstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/wait"
)

// claimFreely makes claims of coupons from 8 goroutines per store until stop is called, each for a
// user of its own, and pauses after each. Every claim must succeed.
func claimFreely(t *testing.T, pause time.Duration, coupons []string, stores ...*Store) (made *atomic.Int64, stop func()) {
	made = new(atomic.Int64)
	return made, concurrently(t, 8*len(stores), func(client, n int) {
		time.Sleep(pause)
		stores[client%len(stores)].wantClaim(t, fmt.Sprintf("u%d-%d", client, n), coupons[rand.IntN(len(coupons))], Claimed)
		made.Add(1)
	})
}

// createMany creates coupons with the prefix and returns their names.
func (s *testStore) createMany(t *testing.T, prefix string, count int) (names []string) {
	t.Helper()
	s.exec(t, `select coupond.create_coupon($1 || n, 1000000) from generate_series(0, $2 - 1) as n`, prefix, count)
	for n := range count {
		names = append(names, fmt.Sprint(prefix, n))
	}
	return names
}

// Coupons that another transaction keeps locked for longer than ClaimTimeout, more of them than
// there are connections, get ErrUnavailable or ErrOverloaded. Claims of the others do not fail and
// do not wait for them. When the locks are gone, all coupons can be claimed.
func TestClaim_lockedCoupons(t *testing.T) {
	t.Parallel()
	for _, locked := range []int{1, 50} {
		t.Run(fmt.Sprint(locked), func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.ClaimQueue = 4*time.Second, 1000 })
			free, stuck := s.createMany(t, "free", 50), s.createMany(t, "locked", locked)
			unlock := s.lock(t, stuck...)
			start := time.Now()
			var waiting sync.WaitGroup
			for _, coupon := range stuck {
				for user := range 3 {
					waiting.Go(func() {
						status, err := s.Claim(t.Context(), fmt.Sprint("w", user), coupon)
						if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrOverloaded) {
							t.Errorf("%s, which is locked: %q, %v", coupon, status, err)
						}
					})
				}
			}
			made, stop := claimFreely(t, 10*time.Millisecond, free, s.Store)
			wait.For(t, "the locked coupons to be sent alone", func() bool { return s.serverOf("").batcher.load().solo > 0 })
			// Claims go on while a solo call waits for its lock.
			before := made.Load()
			wait.For(t, "claims beside the solo calls", func() bool { return made.Load() > before+200 })
			if s.serverOf("").batcher.load().solo == 0 && time.Since(start) < lockTimeout(s.timeout) {
				t.Error("the solo calls ended before the other claims were made")
			}
			waiting.Wait()
			stop()
			if took := time.Since(start); took < lockTimeout(s.timeout) {
				t.Errorf("the claims of locked coupons were answered after %v, before a solo call gives up", took)
			}
			unlock()
			for _, coupon := range stuck {
				s.wantClaim(t, "after", coupon, Claimed)
				s.wantHolders(t, coupon, "after")
			}
			wantReady(t, s.Store)
		})
	}
}

// A coupon is locked and released again and again. Nothing is lost, and the other coupons go on.
func TestClaim_lockedAgainAndAgain(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 10 * time.Second })
	free := s.createMany(t, "free", 10)
	s.create(t, "locked", 1_000_000)
	made, stop := claimFreely(t, 10*time.Millisecond, free, s.Store)
	for round := range 5 {
		unlock := s.lock(t, "locked")
		claimed := make(chan error, 1)
		go func() {
			status, err := s.Claim(t.Context(), fmt.Sprint("w", round), "locked")
			if err == nil && status != Claimed {
				err = errors.New(string(status))
			}
			claimed <- err
		}()
		before := made.Load()
		wait.For(t, "claims of other coupons", func() bool { return made.Load() > before+20 })
		unlock()
		if err := <-claimed; err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	stop()
	s.wantHolders(t, "locked", "w0", "w1", "w2", "w3", "w4")
}

// Shared calls lock in one order, and solo calls hold no other lock, so instances cannot deadlock.
// With a transaction that locks coupons in another order they can, but a shared call gives up its
// lock within 0.1 T, before deadlock_timeout (1 s).
func TestClaim_noDeadlocks(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = 5 * time.Second })
	other := openStore(t, s.url, func(cfg *Config) { cfg.ClaimTimeout = 5 * time.Second })
	coupons := s.createMany(t, "c", 20)
	_, stop := claimFreely(t, 0, coupons, s.Store, other)
	// A transaction that takes locks one by one, in random order.
	conn := connect(t, s.url)
	for range 15 {
		names := slices.Clone(coupons)
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		execSQL(t, conn, `begin`)
		for _, name := range names[:5] {
			if _, err := conn.Exec(t.Context(), `select from coupond.coupons where name = $1 for update`, name); err != nil {
				t.Error(err)
			}
		}
		execSQL(t, conn, `commit`)
	}
	stop()
	if deadlocks := queryValue[int](t, s.owner, `select deadlocks from pg_stat_database where datname = current_database()`); deadlocks != 0 {
		t.Errorf("%d deadlocks", deadlocks)
	}
}

// Several coupons become locked, one after the other in shared calls. Only the first of these calls
// waits for a lock: the next ones ask which coupons are locked.
func TestClaim_lockedTogether(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.Log = 10*time.Second, zerolog.New(log) })
	locked := s.createMany(t, "locked", 3)
	s.create(t, "free", 10)
	srv := s.serverOf("")
	asked := func() string {
		return s.scrape(t)[`coupond_database_call_duration_seconds_count{function="locked_coupons"}`]
	}
	unlock := s.lock(t, locked...)
	var callers sync.WaitGroup
	for i, coupon := range locked {
		callers.Go(func() {
			s.wantClaim(t, "u", coupon, Claimed)
		})
		wait.For(t, "the coupon to be sent alone", func() bool { return srv.batcher.load().solo == i+1 })
		if until := time.Unix(0, srv.locksUntil.Load()); i == 0 && time.Until(until) < 0 {
			t.Errorf("a lock was waited for in vain, and the next calls ask until %v", until)
		}
		srv.locksUntil.Store(time.Now().Add(time.Hour).UnixNano()) // also on a busy machine
	}
	unlock()
	callers.Wait()

	// A claim that is left out of the call does not count as sent.
	unlock = s.lock(t, "locked0")
	sent := s.batchSizes(t)
	claims := newClaims("u", "free", "v", "locked0", "v", "free")
	srv.sendShared(t.Context(), claims)
	if claims[0].status != Claimed || claims[2].status != Claimed || !claims[1].toSendAgain() || claims[1].failed.ambiguous() {
		t.Errorf("a call with free and locked coupons: %+v, %+v, %+v; want only the locked one left for a solo call", claims[0], claims[1], claims[2])
	}
	if n := s.batchSizes(t) - sent; n != 2 {
		t.Errorf("the call counts as one with %v claims, want 2", n)
	}
	if failed := log.with(t, "a call of claims failed; its coupons are sent alone"); len(failed) != 1 {
		t.Errorf("%d shared calls have waited for a lock in vain, want 1", len(failed))
	}
	unlock()
	srv.locksUntil.Store(0)
	before := asked()
	if status, err := s.Claim(t.Context(), "w", "free"); status != Claimed || asked() != before {
		t.Errorf("later: %q, %v, locked_coupons was called %s times, want %s", status, err, asked(), before)
	}
}

// batchSizes returns how many claims were sent in all calls so far.
func (s *testStore) batchSizes(t *testing.T) float64 {
	t.Helper()
	sum, err := strconv.ParseFloat(s.scrape(t)["coupond_batch_size_sum"], 64)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
