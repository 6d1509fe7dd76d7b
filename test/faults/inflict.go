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

// between draws a time.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

func terminate(ctx context.Context, w *world, random *rand.Rand) error {
	return w.asOwner(ctx, func(conn *pgx.Conn) error {
		for range 1 + random.IntN(8) {
			if _, err := conn.Exec(ctx, `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'coupond'`); err != nil {
				return err
			}
			pause(ctx, between(random, 20*time.Millisecond, 300*time.Millisecond))
		}
		return nil
	})
}

func crash(ctx context.Context, w *world, random *rand.Rand) error {
	if err := w.stopPostgres((*localpg.Server).Kill); err != nil {
		return err
	}
	pause(ctx, between(random, 0, 3*time.Second))
	// Also when the run is over: the world is left as it was found.
	return w.startPostgres(context.WithoutCancel(ctx))
}

func lockRow(ctx context.Context, w *world, random *rand.Rand) error {
	return w.asOwner(ctx, func(conn *pgx.Conn) error {
		coupon := w.onSale.Load()
		if coupon == nil {
			return errors.New("nothing is on sale")
		}
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `select from public.coupons where name = $1 for update`, *coupon); err != nil {
			return err
		}
		pause(ctx, between(random, 200*time.Millisecond, 4*time.Second))
		return tx.Rollback(context.WithoutCancel(ctx))
	})
}

func reinstall(ctx context.Context, w *world, random *rand.Rand) error {
	return w.asOwner(ctx, func(conn *pgx.Conn) error {
		for range 5 + random.IntN(16) {
			if _, err := db.Apply(context.WithoutCancel(ctx), conn); err != nil {
				return err
			}
			pause(ctx, between(random, 0, 100*time.Millisecond))
		}
		return nil
	})
}

func fillWAL(ctx context.Context, w *world, random *rand.Rand) (err error) {
	defer func() {
		err = errors.Join(err, w.wal.free(), w.comeBack(context.WithoutCancel(ctx)))
	}()
	// The segments that are there already have room for a while; each switch takes one away. The slot, which goes with its session,
	// keeps checkpoints from giving them back for ever.
	full := false
	problem := w.asOwner(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `select pg_create_physical_replication_slot('prove', true, true)`); err != nil {
			return err
		}
		if err := w.wal.fill(); err != nil {
			return err
		}
		for range 100 {
			if _, err := conn.Exec(ctx, `select pg_logical_emit_message(false, 'prove', 'x'), pg_switch_wal()`); err != nil {
				full = true
				return err
			}
		}
		return nil
	})
	if !full {
		return errors.Join(problem, errors.New("PostgreSQL does not find the disk of its WAL full"))
	}
	pause(ctx, between(random, 500*time.Millisecond, 3*time.Second))
	return nil
}

// comeBack waits until PostgreSQL answers, and starts it where it does not run. After a panic it recovers by itself, or gives up;
// and it may give up only when we have just seen it run.
func (w *world) comeBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, comeBackWithin)
	defer cancel()
	for {
		err := w.startPostgres(ctx)
		if err == nil {
			err = w.asOwner(ctx, func(conn *pgx.Conn) error { return conn.Ping(ctx) })
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, 50*time.Millisecond)
	}
}

func cutAll(ctx context.Context, w *world, random *rand.Rand) error {
	for range 1 + random.IntN(6) {
		w.proxy.CutAll()
		pause(ctx, between(random, 20*time.Millisecond, 400*time.Millisecond))
	}
	return nil
}

func outOfReach(ctx context.Context, w *world, random *rand.Rand) error {
	w.proxy.SetDown(true)
	defer w.proxy.SetDown(false)
	pause(ctx, between(random, 300*time.Millisecond, 3*time.Second))
	return nil
}

func freeze(ctx context.Context, w *world, random *rand.Rand) error {
	w.proxy.Freeze()
	defer w.proxy.Thaw()
	pause(ctx, between(random, 500*time.Millisecond, 5*time.Second))
	return nil
}

func slow(ctx context.Context, w *world, random *rand.Rand) error {
	var calls atomic.Uint64
	seed := random.Uint64()
	w.proxy.Inject(func(string) faultproxy.Fault {
		draw := rand.New(rand.NewPCG(seed, calls.Add(1)))
		if draw.IntN(4) == 0 {
			time.Sleep(between(draw, time.Millisecond, time.Second))
		}
		return faultproxy.Pass
	})
	defer w.proxy.Inject(nil)
	pause(ctx, between(random, time.Second, 4*time.Second))
	return nil
}

// cutting does something to one in so many calls, or fewer. Which of them is drawn by their number.
func cutting(kind faultproxy.Fault, most int) func(context.Context, *world, *rand.Rand) error {
	return func(ctx context.Context, w *world, random *rand.Rand) error {
		oneIn := most * (1 + random.IntN(10))
		var calls atomic.Uint64
		seed := random.Uint64()
		w.proxy.Inject(func(sql string) faultproxy.Fault {
			if !strings.Contains(sql, "public.") { // pings, and what health checks ask
				return faultproxy.Pass
			}
			if rand.New(rand.NewPCG(seed, calls.Add(1))).IntN(oneIn) == 0 {
				return kind
			}
			return faultproxy.Pass
		})
		defer w.proxy.Inject(nil)
		pause(ctx, between(random, time.Second, 4*time.Second))
		return nil
	}
}

func killInstance(ctx context.Context, w *world, random *rand.Rand) error {
	first := random.IntN(instances)
	killed := []*instance{w.instances[first]}
	if random.IntN(3) == 0 {
		killed = append(killed, w.instances[(first+1)%instances])
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

func roll(ctx context.Context, w *world, _ *rand.Rand) error {
	ctx = context.WithoutCancel(ctx) // it is bounded, and half a roll would leave one instance
	for _, one := range w.instances {
		if err := errors.Join(one.stop(), one.start()); err != nil {
			return err
		}
		// A load balancer waits for as much before it takes the next one away.
		within, cancel := context.WithTimeout(ctx, comeBackWithin)
		err := one.healthy(within)
		cancel()
		if err != nil {
			return fmt.Errorf("after a restart: %w", err)
		}
	}
	return nil
}
