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

// runner runs a workload for a contestant once.
type runner func(ctx context.Context, r *race, c *contestant) (figures, error)

// workload is one kind of crowd.
type workload struct {
	name string
	what string
	// rivals who run it; nil: all of them.
	rivals []string
	// quick: also part of the short race.
	quick bool
	// shows is the figure in the chart; the zero value: claims a second.
	shows measure
	// database is where it runs; "": the race's own.
	database string
	// prepare makes what it needs, before its services start; tidy, which is never nil, takes it away.
	prepare func(ctx context.Context, r *race) (tidy func() error, err error)
	run     runner
	// beside is ours again under the conditions it is compared with: in turn with it, so that the machine is the same.
	beside []variant
}

// variant is what differs from the workload; what is not set is the same.
type variant struct {
	name     string
	database string
	run      runner
}

// entries are those of names who take part.
func (w workload) entries(names []string) []entry {
	var entries []entry
	for _, name := range names {
		if w.rivals == nil || slices.Contains(w.rivals, name) {
			entries = append(entries, entry{name: name, rival: name, database: cmp.Or(w.database, database), run: w.run})
		}
	}
	if !slices.Contains(names, contestants.Coupond) {
		return entries
	}
	for _, v := range w.beside {
		other := entry{name: v.name, rival: contestants.Coupond, database: cmp.Or(v.database, w.database, database), run: w.run}
		if v.run != nil {
			other.run = v.run
		}
		entries = append(entries, other)
	}
	return entries
}

// figures are what one run of a workload by one contestant came to.
type figures struct {
	Rate       float64 `json:"rate"`                      // claims answered a second
	P50        float64 `json:"p50_ms"`                    // latency of claims
	P99        float64 `json:"p99_ms"`                    //
	P999       float64 `json:"p999_ms"`                   //
	ServiceCPU float64 `json:"service_cpu_us"`            // of the service, for each request
	DataCPU    float64 `json:"database_cpu_us"`           // of PostgreSQL or Redis, for each request
	ProxyCPU   float64 `json:"proxy_cpu_us,omitempty"`    // of the proxy before them, for each request
	StandbyCPU float64 `json:"standby_cpu_us,omitempty"`  // of their standbys, for each request
	LoadCPU    float64 `json:"load_cpu_us,omitempty"`     // of the load generator, for each request
	CalmP50    float64 `json:"calm_p50_ms,omitempty"`     // of claims, when few of them arrive
	Commits    float64 `json:"commits,omitempty"`         // transactions that wrote, for each claim
	ReadRate   float64 `json:"read_rate,omitempty"`       // GETs answered a second, beside the claims
	CopyTimes  float64 `json:"times_psql_copy,omitempty"` // how many times as long as psql's COPY a GET took
	MoreMemory float64 `json:"more_memory_mib,omitempty"` // of the service while it answered that GET
	Unexpected string  `json:"unexpected,omitempty"`      // answers that should not have come
}

// What the rivals are called here, where a workload or a target singles one out.
const (
	interactive   = "interactive"
	single        = "one call a claim"
	ceiling       = "ceiling"
	redisEverysec = redisPrefix + "everysec"
)

// The workloads that a target speaks of.
const (
	hotCoupon      = "hot coupon"
	soldOut        = "sell-out"
	manyEvenly     = "1,000 coupons"
	onSlowDisk     = "slow disk"
	idleClient     = "one idle client"
	manyClients    = "2,000 connections"
	openSnapshot   = "open snapshot"
	tenMillion     = "10,000,000 claims stored"
	oldPlans       = "old plans"
	readsInSale    = "reads in a sale"
	oneMillionRead = "1,000,000 claims by GET"
)

// The workloads on several servers.
const (
	throughProxy = "shards"
	withStandby  = "standby"
)

// What ours is called where it runs once more under other conditions.
const (
	with128      = "with 128 connections"
	withoutDump  = "without a dump"
	emptyTables  = "empty tables"
	freshSession = "a fresh session"
	nobodyReads  = "nobody reads"
)

func workloads() []workload {
	ours := []string{contestants.Coupond}
	return []workload{
		{name: hotCoupon, what: "one coupon, all win", quick: true, run: hot},
		{name: soldOut, what: "50,000 users for 1,000 coupons", quick: true, run: sellOut},
		{name: manyEvenly, what: "evenly", quick: true, run: evenly},
		{name: "Zipf", what: "1,000 coupons, exponent 1.1", run: func(ctx context.Context, r *race, c *contestant) (figures, error) {
			return r.many(ctx, c, load.Zipf(manyRequests, r.coupons, 1.1, r.seed))
		}},
		{name: "repeats", what: "everybody has the coupon already", run: repeats},
		{name: onSlowDisk, what: "a commit takes 2 ms more", run: slowDisk,
			rivals: []string{contestants.Coupond, interactive, "optimistic", "serializable", single}},
		{name: idleClient, what: "one connection; the latency counts", quick: true, run: idle,
			shows:  measure{"p50 in ms", "%.2f", func(f figures) float64 { return f.P50 }},
			rivals: []string{contestants.Coupond, single, interactive}},
		{name: manyClients, what: "one coupon, all win", rivals: ours, run: crowded,
			beside: []variant{{name: with128, run: hot}}},
		{name: openSnapshot, what: "a dump holds its snapshot over 150,000 claims", rivals: ours, run: underSnapshot,
			beside: []variant{{name: withoutDump, run: withoutSnapshot}}},
		{name: readsInSale, what: "16 connections read a coupon of 1,000 claims meanwhile", run: reads,
			shows:  measure{"reads a second", "%.0f", readRate},
			rivals: []string{contestants.Coupond, single, interactive}},
		{name: oneMillionRead, what: "read again and again while others claim", rivals: ours, run: million,
			database: "million", prepare: prepareMillion, beside: []variant{{name: nobodyReads, run: hot}}},
		{name: oldPlans, what: "rejections by a session that planned when the tables were empty, 200,000 claims later",
			rivals: ours, run: rejectByOldSession, database: "plans", prepare: prepareOldPlans,
			beside: []variant{{name: freshSession, run: rejectByFreshSession}}},
		{name: tenMillion, what: "one more coupon, all win", rivals: ours, run: hot,
			database: "stored", prepare: prepareTenMillion, beside: []variant{{name: emptyTables, database: "empty"}}},
		{name: throughProxy, what: "1,000 coupons evenly, straight to one server and through a proxy", rivals: ours, run: evenly,
			prepare: prepareShards, beside: []variant{{name: oneShard, database: oneShard}, {name: fourShards, database: fourShards}}},
		{name: withStandby, what: "one coupon, all win; then 200 a second", rivals: ours, run: hotAndCalm,
			database: noStandby, prepare: prepareStandbys, beside: []variant{
				{name: asynchronous, database: asynchronous},
				{name: synchronous, database: synchronous},
				{name: anyOfTwo, database: anyOfTwo},
			}},
	}
}

const (
	connections  = 128
	manyCoupons  = 1000
	manyRequests = 1 << 20
	plenty       = 2_000_000_000
)

// run lets a load loose on c and takes the CPU times around it. limit ends it, if its requests do not.
func (r *race) run(ctx context.Context, c *contestant, p load.Plan, limit time.Duration, expected ...load.Answer) (figures, load.Report, error) {
	p.Address, p.Timeout, p.Seed = c.service.Address, serviceTimeout, r.seed
	if p.Connections == 0 {
		p.Connections = connections
	}
	commits, err := r.commits(ctx, c)
	if err != nil {
		return figures{}, load.Report{}, err
	}
	used := r.machine.usage(c)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	run, err := load.Start(limited, p)
	if err != nil {
		return figures{}, load.Report{}, err
	}
	report := run.Wait()
	n := float64(report.Claims.Answered() + report.Reads.Answered())
	if n == 0 {
		return figures{}, report, errors.New("nothing was answered: " + strings.Join(report.Faults, "; "))
	}
	now := r.machine.usage(c)
	after, err := r.commits(ctx, c)
	if err != nil {
		return figures{}, report, err
	}
	f := figures{
		Commits:    float64(after-commits) / n,
		Rate:       float64(report.Claims.Answered()) / report.Elapsed.Seconds(),
		ReadRate:   float64(report.Reads.Answered()) / report.Elapsed.Seconds(),
		P50:        ms(report.Claims.Quantile(50)),
		P99:        ms(report.Claims.Quantile(99)),
		P999:       ms(report.Claims.Quantile(99.9)),
		ServiceCPU: us(now.service-used.service) / n,
		DataCPU:    us(now.database-used.database) / n,
		ProxyCPU:   us(now.proxies-used.proxies) / n,
		StandbyCPU: us(now.standbys-used.standbys) / n,
		LoadCPU:    us(now.generator-used.generator) / n,
	}
	if c.name == ceiling { // it claims whatever it is asked
		return f, report, nil
	}
	for _, count := range slices.Concat(report.Claims.Answers, report.Reads.Answers) {
		if !slices.Contains(expected, count.Answer) {
			f.Unexpected += fmt.Sprintf("%d × %v ", count.Times, count.Answer)
		}
	}
	return f, report, nil
}

// commits is the machine's where the contestant has any, and has them there.
func (r *race) commits(ctx context.Context, c *contestant) (int64, error) {
	if _, elsewhere := r.machine.sites[c.database]; elsewhere || c.redis != nil || c.name == ceiling {
		return 0, nil
	}
	return r.machine.commits(ctx)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// create makes a coupon of a name that nobody had before.
func (r *race) create(ctx context.Context, c *contestant, stock int) (string, error) {
	name := fmt.Sprintf("race-%d-%x", r.next.Add(1), rand.Uint32())
	return name, c.service.Create(ctx, name, stock)
}

// check compares what the service reports of coupons, each with so much stock, with what those who claimed them were told.
func (r *race) check(ctx context.Context, c *contestant, stock int, report load.Report, coupons ...string) error {
	if c.name == ceiling {
		return nil
	}
	won, have := report.Claims.Count(load.Claimed), 0
	for _, coupon := range coupons {
		reported, err := c.service.Coupon(ctx, coupon)
		if err != nil {
			return err
		}
		users := slices.Clone(reported.ClaimedBy)
		slices.Sort(users)
		switch {
		case reported.Amount != stock || len(users)+reported.Remaining != stock:
			return fmt.Errorf("%s: %d of %d remain, and %d have one", c.name, reported.Remaining, reported.Amount, len(users))
		case len(slices.Compact(users)) != len(reported.ClaimedBy):
			return fmt.Errorf("%s: somebody has the coupon twice", c.name)
		}
		have += len(reported.ClaimedBy)
	}
	if won != have {
		return fmt.Errorf("%s: %d were told that they won, %d have the coupon", c.name, won, have)
	}
	return nil
}

// claimers is how many different users a run can have; asked again they would be repeats.
const claimers = 1 << 20

func (r *race) claims(coupon string) func(int) load.Request {
	return func(i int) load.Request { return load.Request{User: r.users[i%claimers], Coupon: coupon} }
}

func hot(ctx context.Context, r *race, c *contestant) (figures, error) {
	return r.hot(ctx, c, load.Plan{})
}

func (r *race) hot(ctx context.Context, c *contestant, p load.Plan) (figures, error) {
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	p.Request = r.claims(coupon)
	f, report, err := r.run(ctx, c, p, r.duration, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, c, plenty, report, coupon)
}

func sellOut(ctx context.Context, r *race, c *contestant) (figures, error) {
	const users, stock = 50_000, 1_000
	coupon, err := r.create(ctx, c, stock)
	if err != nil {
		return figures{}, err
	}
	order := load.Order(users, 0, r.seed)
	f, report, err := r.run(ctx, c, load.Plan{
		Requests: users,
		Request:  func(i int) load.Request { return load.Request{User: r.users[order[i]], Coupon: coupon} },
	}, 4*r.duration, load.Claimed, load.OutOfStock)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, c, stock, report, coupon)
}

func evenly(ctx context.Context, r *race, c *contestant) (figures, error) {
	return r.many(ctx, c, load.Evenly(manyRequests, r.coupons, r.seed))
}

// many spreads claims over coupons; which[i] is the coupon of request i.
func (r *race) many(ctx context.Context, c *contestant, which []int32) (figures, error) {
	coupons := make([]string, r.coupons)
	for i := range coupons {
		var err error
		if coupons[i], err = r.create(ctx, c, plenty); err != nil {
			return figures{}, err
		}
	}
	f, report, err := r.run(ctx, c, load.Plan{Request: func(i int) load.Request {
		return load.Request{User: r.users[i%claimers], Coupon: coupons[which[i%manyRequests]]}
	}}, r.duration, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, c, plenty, report, coupons...)
}

func repeats(ctx context.Context, r *race, c *contestant) (figures, error) {
	const users = 1000
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	again := func(i int) load.Request { return load.Request{User: r.users[i%users], Coupon: coupon} }
	_, claimed, err := r.run(ctx, c, load.Plan{Requests: users, Request: again}, serviceTimeout, load.Claimed)
	if err != nil {
		return figures{}, err
	}
	f, _, err := r.run(ctx, c, load.Plan{Request: again}, r.duration, load.AlreadyClaimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, c, plenty, claimed, coupon)
}

func slowDisk(ctx context.Context, r *race, c *contestant) (figures, error) {
	if err := r.machine.slowDisk(ctx, true); err != nil {
		return figures{}, err
	}
	f, err := r.hot(ctx, c, load.Plan{})
	return f, errors.Join(err, r.machine.slowDisk(ctx, false))
}

func idle(ctx context.Context, r *race, c *contestant) (figures, error) {
	return r.hot(ctx, c, load.Plan{Connections: 1})
}

func crowded(ctx context.Context, r *race, c *contestant) (figures, error) {
	return r.hot(ctx, c, load.Plan{Connections: 2000})
}

// underSnapshot claims while a transaction holds the snapshot that a dump would hold.
func underSnapshot(ctx context.Context, r *race, c *contestant) (figures, error) {
	// A connection of its own: the machine's must see the commits go on.
	dump, err := pgx.Connect(ctx, r.machine.postgres.URL(c.database))
	if err != nil {
		return figures{}, err
	}
	var f figures
	if _, err = dump.Exec(ctx, "begin isolation level repeatable read; select count(*) from public.coupons"); err == nil {
		f, err = withoutSnapshot(ctx, r, c)
	}
	return f, errors.Join(err, dump.Close(ctx))
}

func withoutSnapshot(ctx context.Context, r *race, c *contestant) (figures, error) {
	const n = 150_000
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	f, report, err := r.run(ctx, c, load.Plan{Requests: n, Request: r.claims(coupon)}, serviceTimeout, load.Claimed)
	if err != nil {
		return f, err
	}
	return f, r.check(ctx, c, plenty, report, coupon)
}

// reads claims and reads one coupon that 1,000 have already.
func reads(ctx context.Context, r *race, c *contestant) (figures, error) {
	const readers, already = 16, 1000
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	if _, _, err := r.run(ctx, c, load.Plan{Requests: already, Request: r.claims(coupon)}, serviceTimeout, load.Claimed); err != nil {
		return figures{}, err
	}
	other, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}

	var reading load.Report
	done := make(chan error, 1)
	beside, cancel := context.WithTimeout(ctx, r.duration)
	defer cancel()
	go func() {
		run, err := load.Start(beside, load.Plan{
			Address: c.service.Address, Connections: readers, Timeout: serviceTimeout,
			Request: func(int) load.Request { return load.Request{Coupon: coupon, Read: true} },
		})
		if err == nil {
			reading = run.Wait()
		}
		done <- err
	}()
	f, report, err := r.run(ctx, c, load.Plan{Request: r.claims(other)}, r.duration, load.Claimed)
	if err = errors.Join(err, <-done); err != nil {
		return f, err
	}
	if good := reading.Reads.Count(load.ReadOK); good < reading.Reads.Total() {
		f.Unexpected += fmt.Sprintf("%d of %d reads failed", reading.Reads.Total()-good, reading.Reads.Total())
	}
	f.ReadRate = float64(reading.Reads.Answered()) / reading.Elapsed.Seconds()
	return f, r.check(ctx, c, plenty, report, other)
}
