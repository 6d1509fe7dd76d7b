package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/localpg"
)

// between draws a duration of at least least and less than most.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

func terminateBackends(ctx context.Context, e *environment, random *rand.Rand) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		for range 1 + random.IntN(8) {
			if _, err := conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'coupond'`); err != nil {
				return err
			}
			pause(ctx, between(random, 20*time.Millisecond, 300*time.Millisecond))
		}
		return nil
	})
}

func crashPostgres(ctx context.Context, e *environment, random *rand.Rand) error {
	if err := e.stopPostgres((*localpg.Server).Kill); err != nil {
		return err
	}
	pause(ctx, between(random, 0, 3*time.Second))
	// Also when ctx has ended: the fault must be undone.
	return e.startPostgres(context.WithoutCancel(ctx))
}

func lockRow(ctx context.Context, e *environment, random *rand.Rand) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		coupon := e.saleCoupon.Load()
		if coupon == nil {
			return errors.New("no coupon is on sale")
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `select from coupond.coupons where name = $1 for update`, *coupon); err != nil {
			return err
		}
		pause(ctx, between(random, 200*time.Millisecond, 4*time.Second))
		return tx.Rollback(context.WithoutCancel(ctx))
	})
}

func reinstallFunctions(ctx context.Context, e *environment, random *rand.Rand) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		for range 5 + random.IntN(16) {
			if _, err := db.Apply(context.WithoutCancel(ctx), conn, db.Options{}); err != nil {
				return err
			}
			pause(ctx, between(random, 0, 100*time.Millisecond))
		}
		return nil
	})
}

func fillWAL(ctx context.Context, e *environment, random *rand.Rand) (err error) {
	defer func() {
		err = errors.Join(err, e.walDisk.free(), e.waitPostgres(context.WithoutCancel(ctx)))
	}()
	// The existing segments have room for a while; each pg_switch_wal uses one up. The temporary
	// replication slot, which is dropped with its session, keeps checkpoints from recycling them.
	full := false
	problem := e.asOwner(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `select pg_create_physical_replication_slot('faults', true, true)`); err != nil {
			return err
		}
		if err := e.walDisk.fill(); err != nil {
			return err
		}
		for range 100 {
			if _, err := conn.Exec(ctx, `select pg_logical_emit_message(false, 'faults', 'x'), pg_switch_wal()`); err != nil {
				full = true
				return err
			}
		}
		return nil
	})
	if !full {
		return errors.Join(problem, errors.New("PostgreSQL did not run out of space for its WAL"))
	}
	pause(ctx, between(random, 500*time.Millisecond, 3*time.Second))
	return nil
}

func cutConnections(ctx context.Context, e *environment, random *rand.Rand) error {
	for range 1 + random.IntN(6) {
		e.proxy.CutAll()
		pause(ctx, between(random, 20*time.Millisecond, 400*time.Millisecond))
	}
	return nil
}

func makeUnreachable(ctx context.Context, e *environment, random *rand.Rand) error {
	e.proxy.SetDown(true)
	defer e.proxy.SetDown(false)
	pause(ctx, between(random, 300*time.Millisecond, 3*time.Second))
	return nil
}

func stallConnections(ctx context.Context, e *environment, random *rand.Rand) error {
	e.proxy.Freeze()
	defer e.proxy.Thaw()
	pause(ctx, between(random, 500*time.Millisecond, 5*time.Second))
	return nil
}

func slowConnections(ctx context.Context, e *environment, random *rand.Rand) error {
	var calls atomic.Uint64
	seed := random.Uint64()
	e.proxy.Inject(func(string) faultproxy.Fault {
		draw := rand.New(rand.NewPCG(seed, calls.Add(1)))
		if draw.IntN(4) == 0 {
			time.Sleep(between(draw, time.Millisecond, time.Second))
		}
		return faultproxy.Pass
	})
	defer e.proxy.Inject(nil)
	pause(ctx, between(random, time.Second, 4*time.Second))
	return nil
}

// injectIntoCalls returns an inject function for a fault of the proxy. It hits one in n calls,
// where n is a random multiple of least, up to ten times least.
func injectIntoCalls(kind faultproxy.Fault, least int) func(context.Context, *environment, *rand.Rand) error {
	return func(ctx context.Context, e *environment, random *rand.Rand) error {
		n := least * (1 + random.IntN(10))
		var calls atomic.Uint64
		seed := random.Uint64()
		e.proxy.Inject(func(sql string) faultproxy.Fault {
			if !strings.Contains(sql, "coupond.") { // pings and health checks
				return faultproxy.Pass
			}
			if rand.New(rand.NewPCG(seed, calls.Add(1))).IntN(n) == 0 {
				return kind
			}
			return faultproxy.Pass
		})
		defer e.proxy.Inject(nil)
		pause(ctx, between(random, time.Second, 4*time.Second))
		return nil
	}
}

func killInstance(ctx context.Context, e *environment, random *rand.Rand) error {
	first := random.IntN(instances)
	killed := []*instance{e.instances[first]}
	if random.IntN(3) == 0 {
		killed = append(killed, e.instances[(first+1)%instances])
	}
	for _, one := range killed {
		one.kill()
	}
	pause(ctx, between(random, 0, 2*time.Second))
	for _, one := range killed {
		if err := one.start(); err != nil {
			return err
		}
	}
	return nil
}

func restartInstances(ctx context.Context, e *environment, _ *rand.Rand) error {
	ctx = context.WithoutCancel(ctx) // it takes a bounded time, and stopped half-way it would leave one instance
	for _, one := range e.instances {
		if err := errors.Join(one.stop(), one.start()); err != nil {
			return err
		}
		// As a load balancer does before it restarts the next one.
		bounded, cancel := context.WithTimeout(ctx, recoveryTimeout)
		err := one.waitHealthy(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("after a restart: %w", err)
		}
	}
	return nil
}
