package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/wait"
)

// After faults of every kind nothing is leaked. While the store is open: no session that the pools
// do not know, and no prepared statement that we do not send. After Close: no goroutine, no
// connection and no session. TestClose_leaksNothing is the same without faults.
//
// The test is not parallel because goroutines cannot be assigned to a test.
func TestStore_leaksNothingAfterFaults(t *testing.T) {
	const timeout = time.Second
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout = timeout })
	// The proxy has a goroutine that accepts clients until it is closed.
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
				if _, err := s.Claim(t.Context(), name, coupon); err != nil && !isOutage(err) {
					t.Errorf("claim: %v", err)
				}
			})
			if i%10 > 0 {
				continue
			}
			callers.Go(func() {
				if _, err := s.CreateCoupon(t.Context(), "of "+name, 1); err != nil && !isOutage(err) {
					t.Errorf("creation: %v", err)
				}
			})
			callers.Go(func() {
				if _, _, err := s.Coupon(t.Context(), coupon); err != nil && !isOutage(err) {
					t.Errorf("read: %v", err)
				}
			})
		}
		callers.Wait()
	}
	injected := []faultproxy.Fault{faultproxy.Stall}
	for _, f := range faults {
		injected = append(injected, f.fault)
	}
	for _, fault := range injected {
		var calls atomic.Int32
		s.proxy.Inject(func(sql string) faultproxy.Fault {
			if calls.Add(1)%2 == 0 && strings.Contains(sql, "coupond.") {
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
	wait.For(t, "claims and reads after the faults", func() bool {
		user++
		_, claimed := s.Claim(t.Context(), fmt.Sprint("u", user), "c0")
		_, _, read := s.Coupon(t.Context(), "c0")
		return claimed == nil && read == nil
	})
	burst()

	// pgx closes connections that were given up in the background.
	wait.For(t, "the server to end the sessions that the pools do not know", func() bool {
		return s.sessions(t) <= int(s.pool.Stat().TotalConns()+s.healthPool.Stat().TotalConns()+s.probePool.Stat().TotalConns()+s.Store.proxy.pool.Stat().TotalConns())
	})
	wait.For(t, "a session with a prepared statement", func() bool { return s.statements(t) > 0 })

	s.Close()
	wait.For(t, "the sessions to end", func() bool { return s.sessions(t) == 0 })
	wait.For(t, "the proxy's connections to end", func() bool { return s.proxy.Connections() == 0 })
	wait.For(t, "the goroutines to end", func() bool { return goleak.Find(before) == nil })
}

// isOutage reports whether err is one that faults may cause.
func isOutage(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrOverloaded)
}

// statements counts the prepared statements of the pool's idle sessions. It checks that each is one
// that we send, and that no session has one twice.
func (s *testStore) statements(t *testing.T) (count int) {
	t.Helper()
	for _, conn := range s.pool.AcquireAllIdle(t.Context()) {
		// The simple protocol, so that this query prepares no statement.
		rows, err := conn.Query(context.WithoutCancel(t.Context()), `select statement from pg_catalog.pg_prepared_statements`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		conn.Release()
		count += len(statements)
		seen := map[string]bool{}
		for _, sql := range statements {
			if seen[sql] || functions[sql] == "" {
				t.Errorf("a session has %q prepared (twice: %v)", sql, seen[sql])
			}
			seen[sql] = true
		}
	}
	return count
}
