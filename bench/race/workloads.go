package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// runner runs a workload once against a service.
type runner func(ctx context.Context, r *race, s *service) (figures, error)

// workload is one kind of load, run by several entries in turn.
type workload struct {
	name        string
	description string
	// contestants are the names of the contestants that run it; nil: all.
	contestants []string
	// quick says that it is also part of the quick race.
	quick bool
	// compared is the figure of the chart; "": claims per second.
	compared metric
	// setUp prepares its databases; nil: they are empty.
	setUp func(context.Context, *pgx.Conn) error
	run   runner
	// baseline is a second entry of each contestant, under other conditions, for comparison.
	baseline *baseline
}

type baseline struct {
	name string
	bare bool   // in a database that setUp has not prepared
	run  runner // nil: the workload's
}

func workloads() []workload {
	hotCoupon, hotTimes := hot(load.Plan{}), hot(load.Plan{Requests: 150_000})
	onlyCoupond := []string{contestants.Coupond}
	return []workload{{
		name: "hot coupon", description: "all win", quick: true,
		run: hotCoupon,
	}, {
		name: "sell-out", description: "50,000 users for 1,000 coupons", quick: true,
		run: sellOut,
	}, {
		name: "1,000 coupons", description: "claimed evenly, all win", quick: true,
		run: evenly(1000),
	}, {
		name: "slow disk", description: "hot coupon, a commit takes 2 ms longer",
		contestants: []string{
			contestants.Coupond, contestants.Interactive, contestants.Optimistic, contestants.Serializable, contestants.Single, contestants.Plain,
		},
		run: hotCoupon, setUp: delayCommits,
	}, {
		name: "one idle client", description: "one connection", quick: true,
		contestants: []string{contestants.Coupond, contestants.Interactive, contestants.Single, contestants.Plain},
		compared:    p50, run: hot(load.Plan{Connections: 1}),
	}, {
		name: "one coupon locked", description: "by a forgotten transaction; claims on 50 others",
		contestants: []string{contestants.Coupond, contestants.Interactive, contestants.Plain},
		compared:    p50, run: besideLocked, baseline: &baseline{name: "none locked", run: evenly(50)},
	}, {
		name: "2,000 connections", description: "hot coupon", contestants: onlyCoupond,
		run: hot(load.Plan{Connections: 2000}), baseline: &baseline{name: "128 connections", run: hot(load.Plan{Connections: 128})},
	}, {
		name: "10,000,000 claims stored", description: "a new coupon, all win", contestants: onlyCoupond,
		run: hotCoupon, setUp: store(1000, 10_000), baseline: &baseline{name: "empty tables", bare: true},
	}, {
		name: "open snapshot", description: "a dump holds it during 150,000 claims of a hot coupon", contestants: onlyCoupond,
		run: underSnapshot(hotTimes), baseline: &baseline{name: "no snapshot", run: hotTimes},
	}, {
		name: "1,000,000 claims by GET", description: "one client reads them again and again while others claim a hot coupon", contestants: onlyCoupond,
		run: hotWithReads, setUp: store(1, 1_000_000), baseline: &baseline{name: "no reads", run: hotCoupon},
	}}
}

// entries returns the entries of the contestants that run the workload, and their baselines.
func (w workload) entries(racing []contestants.Contestant) []*entry {
	var entries, baselines []*entry
	for _, c := range racing {
		if w.contestants != nil && !slices.Contains(w.contestants, c.Name) && c.Binary == "" {
			continue
		}
		// A binary has its own database, with the schema that it installs.
		e := entry{name: c.Name, contestant: c, database: "race", setUp: w.setUp, run: w.run}
		if c.Binary != "" {
			e.database = strings.ReplaceAll(c.Name, " ", "_")
		}
		entries = append(entries, &e)
		if w.baseline == nil {
			continue
		}
		b := e
		b.name += ", " + w.baseline.name
		if w.baseline.bare {
			b.database, b.setUp = e.database+"_bare", nil
		}
		if w.baseline.run != nil {
			b.run = w.baseline.run
		}
		baselines = append(baselines, &b)
	}
	return append(entries, baselines...)
}

// hot returns a runner that claims one coupon that is never sold out. p may have a number of
// connections, and a number of requests instead of a duration.
func hot(p load.Plan) runner {
	return func(ctx context.Context, r *race, s *service) (figures, error) {
		sale, err := r.newSale(ctx, s, 1, plenty)
		if err != nil {
			return nil, err
		}
		sale.Connections = cmp.Or(p.Connections, sale.Connections)
		if p.Requests > 0 {
			sale.Requests, sale.limit = p.Requests, requestTimeout
		}
		return r.run(ctx, s, sale)
	}
}

// underSnapshot runs a workload while a transaction holds a snapshot, as a dump does.
func underSnapshot(run runner) runner {
	return func(ctx context.Context, r *race, s *service) (figures, error) {
		end, err := r.hold(ctx, s.database, "set transaction isolation level repeatable read; select count(*) from "+s.contestant.Table)
		if err != nil {
			return nil, err
		}
		f, err := run(ctx, r, s)
		return f, errors.Join(err, end())
	}
}

func sellOut(ctx context.Context, r *race, s *service) (figures, error) {
	const users, stock = 50_000, 1_000
	sale, err := r.newSale(ctx, s, 1, stock)
	if err != nil {
		return nil, err
	}
	order := load.Order(users, 0, seed)
	sale.Requests, sale.limit, sale.expected = users, 4*r.Duration, []load.Answer{load.Claimed, load.OutOfStock}
	sale.Request = func(i int) load.Request { return load.Request{User: r.users[order[i]], Coupon: sale.coupons[0]} }
	return r.run(ctx, s, sale)
}

// evenly returns a runner that claims n coupons equally often, in random order.
func evenly(n int) runner {
	return func(ctx context.Context, r *race, s *service) (figures, error) {
		sale, err := r.newSale(ctx, s, n, plenty)
		if err != nil {
			return nil, err
		}
		which := load.Evenly(len(r.users), n, seed)
		sale.Request = func(i int) load.Request {
			i %= len(which)
			return load.Request{User: r.users[i], Coupon: sale.coupons[which[i]]}
		}
		return r.run(ctx, s, sale)
	}
}

// delayCommits makes every commit take 2 ms longer, as on a disk with a slower fsync.
func delayCommits(ctx context.Context, conn *pgx.Conn) error {
	name := conn.Config().Database
	_, err := conn.Exec(ctx, fmt.Sprintf("alter database %s set commit_delay = 2000; alter database %[1]s set commit_siblings = 0", name))
	return err
}

// besideLocked claims 50 coupons evenly while a transaction has locked one more. Two other clients
// claim that one, so that waiting for the lock does not use up the clients measured.
func besideLocked(ctx context.Context, r *race, s *service) (figures, error) {
	locked, err := r.newSale(ctx, s, 1, plenty)
	if err != nil {
		return nil, err
	}
	unlock, err := r.hold(ctx, s.database, "select from "+s.contestant.Table+" where name = $1 for update", locked.coupons[0])
	if err != nil {
		return nil, err
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	locked.Connections, locked.Rate = 2, 20 // its share of a moderate load
	waiters, err := load.Start(waiting, locked.Plan)
	if err == nil {
		err = r.awaitWaiter(ctx)
	}
	var f figures
	if err == nil {
		f, err = evenly(50)(ctx, r, s)
	}
	stop()
	if err = errors.Join(err, unlock()); err != nil {
		return nil, err
	}
	return f, s.check(ctx, locked, waiters.Wait())
}

// awaitWaiter waits until a claim has waited for a lock longer than a shared call of coupond does:
// then coupond sends the locked coupon alone.
func (r *race) awaitWaiter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for waits := false; !waits; {
		err := r.conn.QueryRow(ctx, `
			select exists (select from pg_locks where not granted and waitstart < clock_timestamp() - interval '600 ms'),
			  pg_sleep(0.02)`).Scan(&waits, nil)
		if err != nil {
			return fmt.Errorf("no claim waits for the locked coupon: %w", err)
		}
	}
	return nil
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
func hotWithReads(ctx context.Context, r *race, s *service) (figures, error) {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	reader, err := load.Start(reading, load.Plan{
		Address: s.client.Address, Connections: 1, Timeout: requestTimeout,
		Request: func(int) load.Request { return load.Request{Coupon: "stored-1", Read: true} },
	})
	if err != nil {
		return nil, err
	}
	f, err := hot(load.Plan{})(ctx, r, s)
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
