package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"scalable-coupon-system/internal/faultproxy"
)

// After faults of every kind nothing is left behind: as long as the store is open, no
// session that the pool does not know and no statement beyond those that we send;
// after Close, no goroutine, no connection and no session. (TestCloseLeavesNothing is
// the same without faults.) Not parallel: goroutines belong to nobody.
func TestFaultsLeaveNothing(t *testing.T) {
	const timeout = time.Second
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout = timeout })
	// The proxy has a goroutine that waits for clients as long as it is open.
	before := goleak.IgnoreCurrent()

	for i := range 4 {
		s.create(t, fmt.Sprint("c", i), 100_000)
	}
	user := 0
	burst := func() {
		var callers sync.WaitGroup
		for i := range 40 {
			user++
			name, coupon := fmt.Sprint("u", user), fmt.Sprint("c", i%4)
			callers.Go(func() {
				if _, err := s.Claim(t.Context(), name, coupon); err != nil && !isWeather(err) {
					t.Errorf("claim: %v", err)
				}
			})
			if i%10 > 0 {
				continue
			}
			callers.Go(func() {
				if _, err := s.CreateCoupon(t.Context(), "of "+name, 1); err != nil && !isWeather(err) {
					t.Errorf("creation: %v", err)
				}
			})
			callers.Go(func() {
				if _, _, err := s.Coupon(t.Context(), coupon); err != nil && !isWeather(err) {
					t.Errorf("read: %v", err)
				}
			})
		}
		callers.Wait()
	}
	for _, fault := range append([]faultproxy.Fault{faultproxy.Stall}, cutFaults()...) {
		var mu sync.Mutex
		calls := 0
		s.proxy.Inject(func(sql string) faultproxy.Fault {
			mu.Lock()
			defer mu.Unlock()
			if calls++; strings.Contains(sql, "public.") && calls%2 == 0 {
				return fault
			}
			return faultproxy.Pass
		})
		burst()
	}
	s.proxy.Inject(nil)
	s.proxy.SetDown(true)
	burst()
	s.proxy.SetDown(false)
	s.exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'coupond'`)
	burst()
	s.proxy.Freeze()
	burst()
	s.proxy.Thaw()
	eventually(t, "claims and reads are served again", func() bool {
		user++
		_, claimed := s.Claim(t.Context(), fmt.Sprint("u", user), "c0")
		_, _, read := s.Coupon(t.Context(), "c0")
		return claimed == nil && read == nil
	})
	burst()

	// pgx closes what it has given up in the background.
	eventually(t, "the server has no session that the pools do not know", func() bool {
		return s.sessions(t) <= int(s.pool.Stat().TotalConns()+s.watch.Stat().TotalConns())
	})
	eventually(t, "a session has prepared something, and all of them what we send only", func() bool { return s.statements(t) > 0 })

	s.Close()
	eventually(t, "the sessions end", func() bool { return s.sessions(t) == 0 })
	eventually(t, "the proxy's connections end", func() bool { return s.proxy.Open() == 0 })
	eventually(t, "the goroutines end", func() bool { return goleak.Find(before) == nil })
}

func isWeather(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrOverloaded)
}

// cutFaults are the faults of TestClaimCut.
func cutFaults() (all []faultproxy.Fault) {
	for _, f := range faults {
		all = append(all, f.fault)
	}
	return all
}

// statements counts those that the pool's idle sessions keep prepared, and says that
// each is one of the few that we send, and none is there twice.
func (s *stand) statements(t *testing.T) (looked int) {
	t.Helper()
	ours := []string{claimCouponsSQL, claimBatchSQL, createCouponSQL, getCouponSQL, claimersSQL}
	for _, conn := range s.pool.AcquireAllIdle(t.Context()) {
		// In the simple protocol, so that the question leaves none itself.
		rows, err := conn.Query(context.WithoutCancel(t.Context()), `select statement from pg_catalog.pg_prepared_statements`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		conn.Release()
		looked += len(statements)
		seen := map[string]bool{}
		for _, sql := range statements {
			if seen[sql] || !slices.Contains(ours, sql) {
				t.Errorf("a session keeps %q prepared (twice: %v)", sql, seen[sql])
			}
			seen[sql] = true
		}
	}
	return looked
}
