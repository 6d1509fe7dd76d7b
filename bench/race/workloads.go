package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// workload is one kind of load, run by several entries in turn.
type workload struct {
	name        string
	description string
	// contestants are the names of the contestants that run it; nil: all.
	contestants []string
	// compared is the figure of the chart.
	compared metric
	// variants are what is measured and, after it, other conditions for comparison.
	variants []variant
	entries  []*entry
}

type variant struct {
	name string // "": what is measured
	// setUp prepares the database; nil: it is empty.
	setUp func(context.Context, *pgx.Conn) error
	run   runner
}

// runner runs a workload once for an entry.
type runner func(ctx context.Context, r *race, e *entry) (figures, error)

func workloads() []workload {
	hotCoupon, hotTimes := evenly(1, load.Plan{}), evenly(1, load.Plan{Requests: 150_000})
	onlyCoupond := []string{contestants.Coupond}
	return []workload{{
		name: "hot coupon", description: "all win", compared: rate,
		variants: []variant{{run: hotCoupon}},
	}, {
		name: "sell-out", description: "50,000 users for 1,000 coupons", compared: rate,
		variants: []variant{{run: sellOut}},
	}, {
		name: "1,000 coupons", description: "claimed evenly, all win", compared: rate,
		variants: []variant{{run: evenly(1000, load.Plan{})}},
	}, {
		name: "slow disk", description: "hot coupon, a commit takes 2 ms longer", compared: rate,
		contestants: []string{
			contestants.Coupond, contestants.Interactive, contestants.Optimistic, contestants.Serializable, contestants.Single, contestants.Plain,
		},
		variants: []variant{{run: hotCoupon, setUp: delayCommits}},
	}, {
		name: "one idle client", description: "one connection",
		contestants: []string{contestants.Coupond, contestants.Interactive, contestants.Single, contestants.Plain},
		compared:    p50,
		variants:    []variant{{run: evenly(1, load.Plan{Connections: 1})}},
	}, {
		name: "one coupon locked", description: "by a forgotten transaction; claims on 50 others",
		contestants: []string{contestants.Coupond, contestants.Interactive, contestants.Plain},
		compared:    p50,
		variants:    []variant{{run: besideLocked}, {name: "none locked", run: evenly(50, load.Plan{})}},
	}, {
		name: "2,000 connections", description: "hot coupon", contestants: onlyCoupond, compared: rate,
		variants: []variant{{run: evenly(1, load.Plan{Connections: 2000})}, {name: "128 connections", run: hotCoupon}},
	}, {
		name: "10,000,000 claims stored", description: "a new coupon, all win", contestants: onlyCoupond, compared: rate,
		variants: []variant{{run: hotCoupon, setUp: store(1000, 10_000)}, {name: "empty tables", run: hotCoupon}},
	}, {
		name: "open snapshot", description: "a dump holds it during 150,000 claims of a hot coupon", contestants: onlyCoupond, compared: rate,
		variants: []variant{{run: underSnapshot(hotTimes)}, {name: "no snapshot", run: hotTimes}},
	}, {
		name: "1,000,000 claims by GET", description: "one client reads them again and again while others claim a hot coupon", contestants: onlyCoupond, compared: rate,
		variants: []variant{{run: hotWithReads, setUp: store(1, 1_000_000)}, {name: "no reads", run: hotCoupon, setUp: store(1, 1_000_000)}},
	}}
}

// enter adds the entries of these contestants, as far as they run the workload.
func (w *workload) enter(racing []contestants.Contestant) {
	for _, v := range w.variants {
		for _, c := range racing {
			if w.contestants != nil && !slices.Contains(w.contestants, c.Name) && c.Binary == "" {
				continue
			}
			e := &entry{Contestant: c, title: c.Name, variant: v, database: fmt.Sprintf("race_%d", len(w.entries))}
			if v.name != "" {
				e.title += ", " + v.name
			}
			w.entries = append(w.entries, e)
		}
	}
}

// evenly returns a runner that claims coupons equally often, in random order. None is ever sold
// out. p may have a number of connections, and a number of requests instead of a duration.
func evenly(coupons int, p load.Plan) runner {
	return func(ctx context.Context, r *race, e *entry) (figures, error) {
		sale, err := r.newSale(ctx, e, coupons, plenty)
		if err != nil {
			return nil, err
		}
		sale.Connections = cmp.Or(p.Connections, sale.Connections)
		if p.Requests > 0 {
			sale.Requests, sale.limit = p.Requests, requestTimeout
		}
		return r.run(ctx, e, sale)
	}
}

func sellOut(ctx context.Context, r *race, e *entry) (figures, error) {
	const users, stock = 50_000, 1_000
	sale, err := r.newSale(ctx, e, 1, stock)
	if err != nil {
		return nil, err
	}
	order := load.Order(users, 0, seed)
	sale.Requests, sale.limit, sale.expected = users, 4*r.Duration, []load.Answer{load.Claimed, load.OutOfStock}
	sale.Request = func(i int) load.Request { return load.Request{User: r.users[order[i]], Coupon: sale.coupons[0]} }
	return r.run(ctx, e, sale)
}

// delayCommits makes every commit take 2 ms longer, as on a disk with a slower fsync.
func delayCommits(ctx context.Context, conn *pgx.Conn) error {
	name := conn.Config().Database
	_, err := conn.Exec(ctx, fmt.Sprintf("alter database %s set commit_delay = 2000; alter database %[1]s set commit_siblings = 0", name))
	return err
}

// underSnapshot runs a workload while a transaction holds a snapshot, as a dump does.
func underSnapshot(run runner) runner {
	return func(ctx context.Context, r *race, e *entry) (figures, error) {
		psql, err := r.hold(ctx, e.database, "set transaction isolation level repeatable read; select count(*) from "+e.Table)
		if err != nil {
			return nil, err
		}
		defer psql.Close(ctx)
		return run(ctx, r, e)
	}
}

// besideLocked claims 50 coupons evenly while a transaction has locked one more. Two other clients
// claim that one, so that waiting for the lock does not use up the clients measured.
func besideLocked(ctx context.Context, r *race, e *entry) (figures, error) {
	locked, err := r.newSale(ctx, e, 1, plenty)
	if err != nil {
		return nil, err
	}
	psql, err := r.hold(ctx, e.database, "select from "+e.Table+" where name = '"+locked.coupons[0]+"' for update")
	if err != nil {
		return nil, err
	}
	defer psql.Close(ctx)
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	locked.Connections, locked.Rate = 2, 20 // its share of a moderate load
	waiters, err := load.Start(waiting, locked.Plan)
	if err != nil {
		return nil, err
	}
	// A shared call of coupond waits less for a lock. Then coupond sends the locked coupon alone.
	time.Sleep(time.Second)
	if err := expectBlocking(ctx, psql); err != nil {
		return nil, err
	}
	f, err := evenly(50, load.Plan{})(ctx, r, e)
	if err != nil {
		return nil, err
	}
	stop()
	_ = psql.Close(ctx)
	return f, e.check(ctx, locked, waiters.Wait())
}

// expectBlocking returns an error unless another session waits for a lock of psql. coupond waits
// for a limited time, again and again, so it may not wait at the first look.
func expectBlocking(ctx context.Context, psql *pgx.Conn) error {
	for range 100 {
		var blocking bool
		err := psql.QueryRow(ctx, `
			select exists (
				select from pg_locks
				where not granted and pg_backend_pid() = any (pg_blocking_pids(pid))
			)`).Scan(&blocking)
		if err != nil || blocking {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("no claim waits for the locked coupon")
}

// store returns a set-up that stores coupons stored-1, stored-2 and so on, each claimed by the same
// users, with a remaining stock of one. SQL writes the rows that claims would write: claiming them
// would take an hour.
func store(coupons, users int) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		// Without triggers: the rows satisfy them, and checking ten million takes minutes.
		if _, err := conn.Exec(ctx, fmt.Sprintf(`
			set session_replication_role = replica;
			insert into coupond.coupons (name, amount, remaining_amount)
			select 'stored-' || c, %[2]d + 1, 1
			from generate_series(1, %[1]d) as c;
			insert into coupond.claims (coupon_name, claim_number, user_id)
			select 'stored-' || c, u, 'user-' || lpad(u::text, 7, '0')
			from generate_series(1, %[1]d) as c, generate_series(1, %[2]d) as u`, coupons, users)); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, "vacuum (freeze, analyze) coupond.claims")
		return err
	}
}

// hotWithReads claims a hot coupon while one client reads a stored one again and again.
func hotWithReads(ctx context.Context, r *race, e *entry) (figures, error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	reader, err := load.Start(reading, load.Plan{
		Address: e.client.Address, Connections: 1, Timeout: requestTimeout,
		Request: func(int) load.Request { return load.Request{Coupon: "stored-1", Read: true} },
	})
	if err != nil {
		return nil, err
	}
	f, err := evenly(1, load.Plan{})(ctx, r, e)
	stop()
	reads := reader.Wait()
	if err != nil {
		return nil, err
	}
	if failed := reads.Total() - reads.Answers[load.ReadOK]; failed > 0 {
		return nil, fmt.Errorf("%d of %d reads failed: %v", failed, reads.Total(), reads.Errors)
	}
	f[readP50] = ms(reads.Quantile(50))
	return f, nil
}
