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

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/localpg"
)

// between draws a duration of at least least and less than most.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

// repeat calls f some times, at least and less than most, with pauses.
func repeat(ctx context.Context, random *rand.Rand, least, most int, longest time.Duration, f func() error) error {
	for range least + random.IntN(most-least) {
		if err := f(); err != nil {
			return err
		}
		pause(ctx, between(random, 0, longest))
	}
	return nil
}

func terminateBackends(ctx context.Context, e *environment, random *rand.Rand) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		return repeat(ctx, random, 1, 9, 300*time.Millisecond, func() error {
			_, err := conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'coupond'`)
			return err
		})
	})
}

func crashPostgres(ctx context.Context, e *environment, random *rand.Rand) error {
	if err := e.stopPostgres((*localpg.Server).Kill); err != nil {
		return err
	}
	pause(ctx, between(random, 0, 3*time.Second))
	return e.startPostgres(context.WithoutCancel(ctx)) // also when ctx has ended: the fault must be undone
}

func lockRow(ctx context.Context, e *environment, random *rand.Rand) error {
	coupon := e.saleCoupon.Load()
	if coupon == nil {
		return errors.New("no coupon is on sale")
	}
	unlock, err := e.lock(ctx, []string{*coupon})
	if err != nil {
		return err
	}
	pause(ctx, between(random, 200*time.Millisecond, 4*time.Second))
	return unlock()
}

// lock locks the rows of coupons in a transaction, as a psql session with a forgotten transaction
// does, until unlock is called.
func (e *environment) lock(ctx context.Context, coupons []string) (unlock func() error, err error) {
	conn, err := pgx.Connect(ctx, e.ownerURL)
	if err != nil {
		return nil, err
	}
	unlock = func() error { return conn.Close(context.WithoutCancel(ctx)) }
	if _, err = conn.Exec(ctx, `begin`); err == nil {
		_, err = conn.Exec(ctx, `select from coupond.coupons where name = any($1) for update`, coupons)
	}
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}

func reinstallFunctions(ctx context.Context, e *environment, random *rand.Rand) error {
	return repeat(ctx, random, 5, 21, 100*time.Millisecond, func() error { return e.migrate(context.WithoutCancel(ctx)) })
}

// fillWAL fills the disk of the WAL until PostgreSQL panics, and leaves it full for some time.
func fillWAL(ctx context.Context, e *environment, random *rand.Rand) (err error) {
	defer func() {
		err = errors.Join(err, e.freeWALDisk(), e.waitPostgres(context.WithoutCancel(ctx)))
	}()
	// The existing segments have room for a while; each pg_switch_wal uses one up. The temporary
	// replication slot, which is dropped with its session, keeps checkpoints from recycling them.
	full := false
	problem := e.asOwner(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `select pg_create_physical_replication_slot('faults', true, true)`); err != nil {
			return err
		}
		if err := e.fillWALDisk(); err != nil {
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
	return repeat(ctx, random, 1, 7, 400*time.Millisecond, func() error {
		e.proxy.CutAll()
		return nil
	})
}

func makeUnreachable(ctx context.Context, e *environment, random *rand.Rand) error {
	e.proxy.SetDown(true)
	defer e.proxy.SetDown(false)
	pause(ctx, between(random, 300*time.Millisecond, 3*time.Second))
	return nil
}

// stallConnections stalls both directions for up to longer than CLAIM_TIMEOUT.
func stallConnections(ctx context.Context, e *environment, random *rand.Rand) error {
	e.proxy.Freeze()
	defer e.proxy.Thaw()
	pause(ctx, between(random, 500*time.Millisecond, 5*time.Second))
	return nil
}

// slowConnections delays one call in four.
func slowConnections(ctx context.Context, e *environment, random *rand.Rand) error {
	injectFor(ctx, e, random, func(_ string, draw *rand.Rand) faultproxy.Fault {
		if draw.IntN(4) == 0 {
			time.Sleep(between(draw, time.Millisecond, time.Second))
		}
		return faultproxy.Pass
	})
	return nil
}

// injectIntoCalls returns an inject function for a fault of the proxy. It hits one in n calls,
// where n is a random multiple of least, up to ten times least.
func injectIntoCalls(kind faultproxy.Fault, least int) func(context.Context, *environment, *rand.Rand) error {
	return func(ctx context.Context, e *environment, random *rand.Rand) error {
		n := least * (1 + random.IntN(10))
		injectFor(ctx, e, random, func(sql string, draw *rand.Rand) faultproxy.Fault {
			if strings.Contains(sql, "coupond.") && draw.IntN(n) == 0 { // no ping
				return kind
			}
			return faultproxy.Pass
		})
		return nil
	}
}

// injectFor sets the fault of each call for some seconds. Each call has a random source of its own.
func injectFor(ctx context.Context, e *environment, random *rand.Rand, faultOf func(sql string, draw *rand.Rand) faultproxy.Fault) {
	var calls atomic.Uint64
	seed := random.Uint64()
	e.proxy.Inject(func(sql string) faultproxy.Fault { return faultOf(sql, rand.New(rand.NewPCG(seed, calls.Add(1)))) })
	defer e.proxy.Inject(nil)
	pause(ctx, between(random, time.Second, 4*time.Second))
}

// killInstance kills one instance, or both, and starts them later.
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

// restartInstances restarts one instance after the other.
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
