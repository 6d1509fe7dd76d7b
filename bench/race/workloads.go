package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	// charted is the metric of the chart; the zero value: claims per second.
	charted metric
	// database is the name of its database; "": the race's own.
	database string
	// prepare creates what the workload needs, before its services start. cleanup, which is never
	// nil, removes it.
	prepare func(ctx context.Context, r *race) (cleanup func() error, err error)
	run     runner
	// variants are entries of coupond under other conditions, for comparison.
	variants []variant
}

// variant is an entry of coupond under other conditions. An empty field is the same as the
// workload's.
type variant struct {
	name      string
	database  string
	instances int
	run       runner
}

// entries returns the entries of the contestants in names, and the variants for each of them that
// is coupond.
func (w workload) entries(names []string) []entry {
	var entries []entry
	for _, name := range names {
		as := name
		if isCoupond(name) {
			as = contestants.Coupond
		}
		if w.contestants == nil || slices.Contains(w.contestants, as) {
			entries = append(entries, entry{name: name, contestant: name, database: w.database, run: w.run})
		}
	}
	for _, name := range names {
		if !isCoupond(name) {
			continue
		}
		for _, v := range w.variants {
			other := entry{name: v.name, contestant: name, database: cmp.Or(v.database, w.database), instances: v.instances, run: w.run}
			if name != contestants.Coupond {
				other.name += ", " + name
			}
			if v.run != nil {
				other.run = v.run
			}
			entries = append(entries, other)
		}
	}
	return entries
}

// figures are the results of one run of a workload by one entry.
type figures struct {
	Rate        float64 `json:"rate"`                         // claims answered per second
	P50         float64 `json:"p50_ms"`                       // latency of claims
	P99         float64 `json:"p99_ms"`                       //
	P999        float64 `json:"p999_ms"`                      //
	ServiceCPU  float64 `json:"service_cpu_us"`               // of the service, for each request
	DatabaseCPU float64 `json:"database_cpu_us"`              // of PostgreSQL or Redis, for each request
	ProxyCPU    float64 `json:"proxy_cpu_us,omitempty"`       // of the proxies, for each request
	StandbyCPU  float64 `json:"standby_cpu_us,omitempty"`     // of the standbys, for each request
	LoadCPU     float64 `json:"load_cpu_us,omitempty"`        // of the load generator, for each request
	LowRateP50  float64 `json:"low_rate_p50_ms,omitempty"`    // latency of claims at lowRate
	FreeRate    float64 `json:"none_locked_rate,omitempty"`   // Rate when no coupon is locked
	FreeP50     float64 `json:"none_locked_p50_ms,omitempty"` // P50 when no coupon is locked
	Commits     float64 `json:"commits,omitempty"`            // writing transactions, for each claim
	ReadRate    float64 `json:"read_rate,omitempty"`          // GETs answered per second, concurrent with the claims
	CopyRatio   float64 `json:"times_psql_copy,omitempty"`    // time of a GET divided by the time of psql's COPY
	AddedMemory float64 `json:"added_memory_mib,omitempty"`   // peak memory of the service during that GET, less the memory before
	Unexpected  string  `json:"unexpected,omitempty"`         // answers that the workload does not expect
}

// Names of contestants that a workload or a target refers to.
const (
	interactive   = "interactive"
	single        = "one call per claim"
	plain         = "plain function"
	ceiling       = "ceiling"
	redisEverysec = redisPrefix + "everysec"
)

// Names of the workloads that a target refers to.
const (
	hotCoupon      = "hot coupon"
	soldOut        = "sell-out"
	manyEvenly     = "1,000 coupons"
	oneLocked      = "one coupon locked"
	fourLocked     = "four coupons locked"
	onSlowDisk     = "slow disk"
	idleClient     = "one idle client"
	manyClients    = "2,000 connections"
	openSnapshot   = "open snapshot"
	tenMillion     = "10,000,000 claims stored"
	oldPlans       = "old plans"
	readsInSale    = "reads in a sale"
	oneMillionRead = "1,000,000 claims by GET"
)

// Names of the workloads that use several servers.
const (
	twoInstances = "two instances"
	throughProxy = "shards"
	withStandby  = "standby"
)

// Names of variants.
const (
	with128      = "with 128 connections"
	withoutDump  = "without a dump"
	emptyTables  = "empty tables"
	freshSession = "a fresh session"
	noReads      = "no reads"
	inTwo        = "with 2 instances"
)

func workloads() []workload {
	onlyCoupond := []string{contestants.Coupond}
	return []workload{
		{name: hotCoupon, description: "one coupon, all win", quick: true, run: hot},
		{name: soldOut, description: "50,000 users for 1,000 coupons", quick: true, run: sellOut},
		{name: manyEvenly, description: "evenly", quick: true, run: evenly},
		{name: "Zipf", description: "1,000 coupons, exponent 1.1", run: func(ctx context.Context, r *race, s *service) (figures, error) {
			return r.many(ctx, s, load.Zipf(manyRequests, r.coupons, 1.1, r.seed))
		}},
		{name: oneLocked, description: "of 51, by a forgotten transaction; claims on the others", run: besideLocked(1),
			charted: metric{"p50 relative to none locked", "%.2f", lockedRatio}, contestants: withRowLocks()},
		{name: fourLocked, description: "of 51, by a forgotten transaction; claims on the others", run: besideLocked(4),
			charted: metric{"p50 relative to none locked", "%.2f", lockedRatio}, contestants: withRowLocks()},
		{name: "repeats", description: "all users have the coupon already", run: repeats},
		{name: onSlowDisk, description: "a commit takes 2 ms longer", run: hotOnSlowDisk,
			contestants: []string{contestants.Coupond, interactive, "optimistic", "serializable", single, plain}},
		{name: idleClient, description: "one connection; latency", quick: true, run: hotWith1Connection,
			charted:     metric{"p50 in ms", "%.2f", func(f figures) float64 { return f.P50 }},
			contestants: []string{contestants.Coupond, single, plain, interactive}},
		{name: manyClients, description: "one coupon, all win", contestants: onlyCoupond, run: hotWith2000Connections,
			variants: []variant{{name: with128, run: hotWith128Connections}}},
		{name: twoInstances, description: "one coupon, all win; the clients are split between two instances", contestants: onlyCoupond, run: hot,
			variants: []variant{{name: inTwo, instances: 2}}},
		{name: openSnapshot, description: "a dump holds its snapshot during 150,000 claims", contestants: onlyCoupond, run: hotUnderSnapshot,
			variants: []variant{{name: withoutDump, run: hot150000}}},
		{name: readsInSale, description: "while 16 connections read a coupon of 1,000 claims", run: hotWithReads,
			charted:     metric{"reads per second", "%.0f", readRate},
			contestants: []string{contestants.Coupond, single, interactive}},
		{name: oneMillionRead, description: "one connection reads it repeatedly while others claim", contestants: onlyCoupond, run: readMillion,
			database: "million", prepare: prepareMillion, variants: []variant{{name: noReads, run: hot}}},
		{name: oldPlans, description: "rejections in a session that planned on empty tables, 200,000 claims later",
			contestants: onlyCoupond, run: rejectByOldSession, database: "plans", prepare: prepareOldPlans,
			variants: []variant{{name: freshSession, run: rejectByFreshSession}}},
		{name: tenMillion, description: "a new coupon, all win", contestants: onlyCoupond, run: hot,
			database: "stored", prepare: prepareTenMillion, variants: []variant{{name: emptyTables, database: "empty"}}},
		{name: throughProxy, description: "1,000 coupons evenly, directly on one server and through a proxy", contestants: onlyCoupond, run: evenly,
			prepare: prepareShards, variants: []variant{{name: oneShard, database: oneShard}, {name: fourShards, database: fourShards}}},
		{name: withStandby, description: "one coupon, all win; then 200 per second", contestants: onlyCoupond, run: hotThenLowRate,
			database: noStandby, prepare: prepareStandbys, variants: []variant{
				{name: asynchronous, database: asynchronous},
				{name: synchronous, database: synchronous},
				{name: anyOfTwo, database: anyOfTwo},
			}},
	}
}

const (
	manyCoupons  = 1000
	manyRequests = 1 << 20
	plenty       = 2_000_000_000
)

// run sends the load of p to s and measures it, with the CPU time of all processes that take part.
// The load ends after p.Requests, or after limit. Answers that are not in expected are reported in
// figures.Unexpected.
func (r *race) run(ctx context.Context, s *service, p load.Plan, limit time.Duration, expected ...load.Answer) (figures, load.Report, error) {
	p.Timeout, p.Seed = serviceTimeout, r.seed
	if p.Connections == 0 {
		p.Connections = r.connections
	}
	commits, err := r.commits(ctx, s)
	if err != nil {
		return figures{}, load.Report{}, err
	}
	before := r.machine.cpuUsage(s)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	report, err := s.send(limited, p)
	if err != nil {
		return figures{}, load.Report{}, err
	}
	n := float64(report.Claims.Answered() + report.Reads.Answered())
	if n == 0 {
		return figures{}, report, errors.New("no request was answered: " + strings.Join(report.Errors, "; "))
	}
	after := r.machine.cpuUsage(s)
	commitsAfter, err := r.commits(ctx, s)
	if err != nil {
		return figures{}, report, err
	}
	f := figures{
		Commits:     float64(commitsAfter-commits) / n,
		Rate:        float64(report.Claims.Answered()) / report.Elapsed.Seconds(),
		ReadRate:    float64(report.Reads.Answered()) / report.Elapsed.Seconds(),
		P50:         ms(report.Claims.Quantile(50)),
		P99:         ms(report.Claims.Quantile(99)),
		P999:        ms(report.Claims.Quantile(99.9)),
		ServiceCPU:  us(after.service-before.service) / n,
		DatabaseCPU: us(after.database-before.database) / n,
		ProxyCPU:    us(after.proxies-before.proxies) / n,
		StandbyCPU:  us(after.standbys-before.standbys) / n,
		LoadCPU:     us(after.generator-before.generator) / n,
	}
	if s.name == ceiling { // it answers every request as claimed
		return f, report, nil
	}
	for _, count := range slices.Concat(report.Claims.Answers, report.Reads.Answers) {
		if !slices.Contains(expected, count.Answer) {
			f.Unexpected += fmt.Sprintf("%d × %v ", count.Times, count.Answer)
		}
	}
	return f, report, nil
}

// send sends the load of p, in equal parts to each instance. The parts have different requests.
func (s *service) send(ctx context.Context, p load.Plan) (load.Report, error) {
	n := len(s.instances)
	var runs []*load.Run
	for i, one := range s.instances {
		part := p
		part.Address = one.address
		part.Connections = max(1, p.Connections/n)
		part.Requests = p.Requests / n
		part.Rate = p.Rate / float64(n)
		part.Request = func(k int) load.Request { return p.Request(k*n + i) }
		run, err := load.Start(ctx, part)
		if err != nil {
			return load.Report{}, err
		}
		runs = append(runs, run)
	}
	var all load.Report
	var longest time.Duration
	for _, run := range runs {
		report := run.Wait()
		longest = max(longest, report.Elapsed)
		all.Add(report)
	}
	all.Elapsed = longest // they ran at the same time
	return all, nil
}

// commits returns machine.commits, or 0 if the service does not commit on the race's own server.
func (r *race) commits(ctx context.Context, s *service) (int64, error) {
	if _, elsewhere := r.machine.sites[s.database]; elsewhere || s.redis != nil || s.name == ceiling {
		return 0, nil
	}
	return r.machine.commits(ctx)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// create creates a coupon with a new name, which it returns.
func (r *race) create(ctx context.Context, s *service, stock int) (string, error) {
	name := fmt.Sprintf("race-%d-%x", r.nextCoupon.Add(1), rand.Uint32())
	return name, s.client.Create(ctx, name, stock)
}

// check compares what the service has stored of coupons, each with the same stock, with the answers
// in report. It returns an error if they differ, or if a coupon is oversold or a user has it twice.
func (r *race) check(ctx context.Context, s *service, stock int, report load.Report, coupons ...string) error {
	if s.name == ceiling {
		return nil
	}
	answered, stored := report.Claims.Count(load.Claimed), 0
	for _, coupon := range coupons {
		reported, err := s.client.Coupon(ctx, coupon)
		if err != nil {
			return err
		}
		users := slices.Clone(reported.ClaimedBy)
		slices.Sort(users)
		switch {
		case reported.Amount != stock || len(users)+reported.Remaining != stock:
			return fmt.Errorf("%s: stock %d of %d remains, but %d users have the coupon", s.name, reported.Remaining, reported.Amount, len(users))
		case len(slices.Compact(users)) != len(reported.ClaimedBy):
			return fmt.Errorf("%s: a user has the coupon twice", s.name)
		}
		stored += len(reported.ClaimedBy)
	}
	if answered != stored {
		return fmt.Errorf("%s: %d claims were answered as claimed, %d are stored", s.name, answered, stored)
	}
	return nil
}

// claimers is the number of different users of a run. The claims of a run with more requests would
// be repeats.
const claimers = 1 << 20

// claims returns requests for coupon, each of another user.
func (r *race) claims(coupon string) func(int) load.Request {
	return func(i int) load.Request { return load.Request{User: r.users[i%claimers], Coupon: coupon} }
}

// hot sends claims of one coupon that is never sold out.
func hot(ctx context.Context, r *race, s *service) (figures, error) {
	return r.hot(ctx, s, load.Plan{})
}

func (r *race) hot(ctx context.Context, s *service, p load.Plan) (figures, error) {
	coupon, err := r.create(ctx, s, plenty)
	if err != nil {
		return figures{}, err
	}
	p.Request = r.claims(coupon)
	f, report, err := r.run(ctx, s, p, r.duration, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, s, plenty, report, coupon)
}

func sellOut(ctx context.Context, r *race, s *service) (figures, error) {
	const users, stock = 50_000, 1_000
	coupon, err := r.create(ctx, s, stock)
	if err != nil {
		return figures{}, err
	}
	order := load.Order(users, 0, r.seed)
	f, report, err := r.run(ctx, s, load.Plan{
		Requests: users,
		Request:  func(i int) load.Request { return load.Request{User: r.users[order[i]], Coupon: coupon} },
	}, 4*r.duration, load.Claimed, load.OutOfStock)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, s, stock, report, coupon)
}

func evenly(ctx context.Context, r *race, s *service) (figures, error) {
	return r.many(ctx, s, load.Evenly(manyRequests, r.coupons, r.seed))
}

// many sends claims of many coupons; which[i] is the index of the coupon of request i.
func (r *race) many(ctx context.Context, s *service, which []int32) (figures, error) {
	coupons := make([]string, r.coupons)
	for i := range coupons {
		var err error
		if coupons[i], err = r.create(ctx, s, plenty); err != nil {
			return figures{}, err
		}
	}
	f, report, err := r.run(ctx, s, load.Plan{Request: func(i int) load.Request {
		return load.Request{User: r.users[i%claimers], Coupon: coupons[which[i%manyRequests]]}
	}}, r.duration, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, s, plenty, report, coupons...)
}

func repeats(ctx context.Context, r *race, s *service) (figures, error) {
	const users = 1000
	coupon, err := r.create(ctx, s, plenty)
	if err != nil {
		return figures{}, err
	}
	again := func(i int) load.Request { return load.Request{User: r.users[i%users], Coupon: coupon} }
	_, claimed, err := r.run(ctx, s, load.Plan{Requests: users, Request: again}, serviceTimeout, load.Claimed)
	if err != nil {
		return figures{}, err
	}
	f, _, err := r.run(ctx, s, load.Plan{Request: again}, r.duration, load.AlreadyClaimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, s, plenty, claimed, coupon)
}

func hotOnSlowDisk(ctx context.Context, r *race, s *service) (figures, error) {
	if err := r.machine.setSlowDisk(ctx, true); err != nil {
		return figures{}, err
	}
	f, err := r.hot(ctx, s, load.Plan{})
	return f, errors.Join(err, r.machine.setSlowDisk(ctx, false))
}

func hotWith1Connection(ctx context.Context, r *race, s *service) (figures, error) {
	return r.hot(ctx, s, load.Plan{Connections: 1})
}

func hotWith128Connections(ctx context.Context, r *race, s *service) (figures, error) {
	return r.hot(ctx, s, load.Plan{Connections: 128})
}

func hotWith2000Connections(ctx context.Context, r *race, s *service) (figures, error) {
	return r.hot(ctx, s, load.Plan{Connections: 2000})
}

// hotUnderSnapshot is hot150000 while a transaction holds a snapshot, as a dump does.
func hotUnderSnapshot(ctx context.Context, r *race, s *service) (figures, error) {
	// Not on machine.conn, because machine.commits must see new commits there.
	dump, err := pgx.Connect(ctx, r.machine.postgres.URL(s.database))
	if err != nil {
		return figures{}, err
	}
	var f figures
	if _, err = dump.Exec(ctx, "begin isolation level repeatable read; select count(*) from coupond.coupons"); err == nil {
		f, err = hot150000(ctx, r, s)
	}
	return f, errors.Join(err, dump.Close(ctx))
}

// hot150000 is hot with a fixed number of claims.
func hot150000(ctx context.Context, r *race, s *service) (figures, error) {
	const n = 150_000
	coupon, err := r.create(ctx, s, plenty)
	if err != nil {
		return figures{}, err
	}
	f, report, err := r.run(ctx, s, load.Plan{Requests: n, Request: r.claims(coupon)}, serviceTimeout, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, s, plenty, report, coupon)
}

// hotWithReads is hot while 16 connections read another coupon, which 1,000 users have claimed.
func hotWithReads(ctx context.Context, r *race, s *service) (figures, error) {
	const readers, already = 16, 1000
	coupon, err := r.create(ctx, s, plenty)
	if err != nil {
		return figures{}, err
	}
	if _, _, err := r.run(ctx, s, load.Plan{Requests: already, Request: r.claims(coupon)}, serviceTimeout, load.Claimed); err != nil {
		return figures{}, err
	}
	other, err := r.create(ctx, s, plenty)
	if err != nil {
		return figures{}, err
	}

	var reading load.Report
	done := make(chan error, 1)
	readCtx, cancel := context.WithTimeout(ctx, r.duration)
	defer cancel()
	go func() {
		run, err := load.Start(readCtx, load.Plan{
			Address: s.client.Address, Connections: readers, Timeout: serviceTimeout,
			Request: func(int) load.Request { return load.Request{Coupon: coupon, Read: true} },
		})
		if err == nil {
			reading = run.Wait()
		}
		done <- err
	}()
	f, report, err := r.run(ctx, s, load.Plan{Request: r.claims(other)}, r.duration, load.Claimed)
	if err = errors.Join(err, <-done); err != nil {
		return f, err
	}
	if good := reading.Reads.Count(load.ReadOK); good < reading.Reads.Total() {
		f.Unexpected += fmt.Sprintf("%d of %d reads failed", reading.Reads.Total()-good, reading.Reads.Total())
	}
	f.ReadRate = float64(reading.Reads.Answered()) / reading.Elapsed.Seconds()
	return f, r.check(ctx, s, plenty, report, other)
}
