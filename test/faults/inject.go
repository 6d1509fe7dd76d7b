package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/faultproxy"
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
	if err := e.postgres.Kill(); err != nil {
		return err
	}
	pause(ctx, between(random, 0, 3*time.Second))
	return e.startPostgres(ctx)
}

// lockRow locks the coupons of all sales.
func lockRow(ctx context.Context, e *environment, random *rand.Rand) error {
	return e.lock(ctx, "sale-", func() error {
		pause(ctx, between(random, 200*time.Millisecond, 4*time.Second))
		return nil
	})
}

// lock locks the rows of all coupons whose names have the prefix while locked runs, in a
// transaction, as a psql session with a forgotten transaction does.
func (e *environment) lock(ctx context.Context, prefix string, locked func() error) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx) // ends with the connection
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `select from coupond.coupons where starts_with(name, $1) order by name for update`, prefix)
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("there is no coupon to lock")
		}
		if err != nil {
			return err
		}
		return locked()
	})
}

func reinstallFunctions(ctx context.Context, e *environment, random *rand.Rand) error {
	return repeat(ctx, random, 5, 21, 100*time.Millisecond, func() error { return e.migrate(ctx) })
}

// fillWAL fills the disk of the WAL until PostgreSQL panics, and leaves it full for some time.
func fillWAL(ctx context.Context, e *environment, random *rand.Rand) error {
	balloon := filepath.Join(e.pgWAL(), "balloon") // uses all space that is left
	err := os.WriteFile(balloon, make([]byte, walDiskSize), 0o600)
	if errors.Is(err, syscall.ENOSPC) {
		// The existing segments have room for a while; each pg_switch_wal uses one up. The temporary
		// replication slot, which is dropped with its session, keeps checkpoints from recycling them.
		err = e.asOwner(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `select pg_create_physical_replication_slot('faults', true, true)`)
			for range 100 {
				if err == nil {
					_, err = conn.Exec(ctx, `select pg_logical_emit_message(false, 'faults', 'x'), pg_switch_wal()`)
				}
			}
			return err
		})
	}
	select {
	case <-e.postgres.Done():
		pause(ctx, between(random, 500*time.Millisecond, 3*time.Second))
		err = nil // it is that of the panic
	case <-time.After(recoveryTimeout):
		err = errors.Join(errors.New("PostgreSQL did not run out of space for its WAL"), err)
	}
	return errors.Join(err, os.Remove(balloon), e.startPostgres(ctx))
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

// injectIntoCalls returns an inject function that affects calls through the proxy for some seconds.
// It delays one in n calls by up to delay and lets kind happen to it, where n is a random multiple
// of least, up to ten times least.
func injectIntoCalls(kind faultproxy.Fault, least int, delay time.Duration) func(context.Context, *environment, *rand.Rand) error {
	return func(ctx context.Context, e *environment, random *rand.Rand) error {
		n, seed := least*(1+random.IntN(10)), random.Uint64()
		var calls atomic.Uint64
		e.proxy.Inject(func(sql string) faultproxy.Fault {
			draw := rand.New(rand.NewPCG(seed, calls.Add(1)))
			if !strings.Contains(sql, "coupond.") || draw.IntN(n) > 0 { // a ping, or spared
				return faultproxy.Pass
			}
			time.Sleep(between(draw, 0, delay+1))
			return kind
		})
		defer e.proxy.Inject(nil)
		pause(ctx, between(random, time.Second, 4*time.Second))
		return nil
	}
}

// killInstance kills one instance, or both, and starts them later.
func killInstance(ctx context.Context, e *environment, random *rand.Rand) error {
	one := random.IntN(instances)
	killed := e.instances[one : one+1]
	if random.IntN(3) == 0 {
		killed = e.instances
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
	for _, one := range e.instances {
		// As a load balancer does before it restarts the next one, it waits until this one is healthy.
		if err := errors.Join(one.stop(), one.start(), one.waitHealthy(ctx)); err != nil {
			return fmt.Errorf("a restart: %w", err)
		}
	}
	return nil
}
