package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/rivals"
)

// workload is one kind of crowd.
type workload struct {
	name string
	what string
	// rivals who run it; nil: all of them.
	rivals []string
	// quick: also part of the short race.
	quick bool
	run   func(ctx context.Context, r *race, c *contestant) (figures, error)
}

// figures are what one run of a workload by one contestant came to.
type figures struct {
	Rate       float64 `json:"rate"`                 // requests answered a second
	P50        float64 `json:"p50_ms"`               // latency
	P99        float64 `json:"p99_ms"`               //
	P999       float64 `json:"p999_ms"`              //
	ServiceCPU float64 `json:"service_cpu_us"`       // of the service, for each request
	DataCPU    float64 `json:"database_cpu_us"`      // of PostgreSQL or Redis, for each request
	Commits    float64 `json:"commits,omitempty"`    // transactions that wrote, for each request
	ReadRate   float64 `json:"read_rate,omitempty"`  // GETs answered a second, beside the claims
	Extra      float64 `json:"extra,omitempty"`      // what the workload's own line says
	ExtraIs    string  `json:"extra_is,omitempty"`   // and what that is
	Unexpected string  `json:"unexpected,omitempty"` // answers that should not have come
}

const ceiling = "ceiling"

func workloads() []workload {
	ours := []string{rivals.Ours}
	return []workload{
		{name: "hot coupon", what: "one coupon, all win", quick: true, run: hot},
		{name: "sell-out", what: "50,000 users for 1,000 coupons", quick: true, run: sellOut},
		{name: "1,000 coupons", what: "evenly", quick: true, run: func(ctx context.Context, r *race, c *contestant) (figures, error) {
			return r.many(ctx, c, load.Evenly(manyRequests, manyCoupons, r.seed))
		}},
		{name: "Zipf", what: "1,000 coupons, exponent 1.1", run: func(ctx context.Context, r *race, c *contestant) (figures, error) {
			return r.many(ctx, c, load.Zipf(manyRequests, manyCoupons, 1.1, r.seed))
		}},
		{name: "repeats", what: "everybody has the coupon already", run: repeats},
		{name: "slow disk", what: "a commit takes 2 ms more", run: slowDisk,
			rivals: []string{rivals.Ours, "interactive", "optimistic", "serializable", "one call a claim"}},
		{name: "one idle client", what: "one connection; the latency counts", quick: true, run: idle,
			rivals: []string{rivals.Ours, "one call a claim", "interactive"}},
		{name: "2,000 connections", what: "one coupon, all win", rivals: ours, run: crowded},
		{name: "open snapshot", what: "a dump holds its snapshot meanwhile", rivals: ours, run: snapshot},
		{name: "reads in a sale", what: "16 connections read a coupon of 1,000 claims meanwhile", run: reads,
			rivals: []string{rivals.Ours, "one call a claim", "interactive"}},
		{name: "1,000,000 claims by GET", what: "read once, beside claims; extra: times psql's COPY", rivals: ours, run: million},
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
	service, data := cpu(c.cmd.Process.Pid), r.machine.databaseCPU(c)
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
	f := figures{
		Rate:       float64(report.Claims.Answered()) / report.Elapsed.Seconds(),
		ReadRate:   float64(report.Reads.Answered()) / report.Elapsed.Seconds(),
		P50:        ms(report.Claims.Quantile(50)),
		P99:        ms(report.Claims.Quantile(99)),
		P999:       ms(report.Claims.Quantile(99.9)),
		ServiceCPU: us(cpu(c.cmd.Process.Pid)-service) / n,
		DataCPU:    us(r.machine.databaseCPU(c)-data) / n,
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

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// create makes a coupon of a name that nobody had before.
func (r *race) create(ctx context.Context, c *contestant, stock int) (string, error) {
	name := fmt.Sprintf("race-%d-%x", r.next.Add(1), rand.Uint32()) //nolint:gosec // a name, no secret
	return name, c.service.Create(ctx, name, stock)
}

// check compares what the service reports with what it answered.
func (r *race) check(ctx context.Context, c *contestant, coupon string, stock int, report load.Report) error {
	if c.name == ceiling {
		return nil
	}
	reported, err := c.service.Coupon(ctx, coupon)
	if err != nil {
		return err
	}
	won := report.Claims.Count(load.Claimed)
	users := slices.Clone(reported.ClaimedBy)
	slices.Sort(users)
	switch {
	case reported.Amount != stock || len(users)+reported.Remaining != stock:
		return fmt.Errorf("%s: %d of %d remain, and %d have one", c.name, reported.Remaining, reported.Amount, len(users))
	case len(slices.Compact(users)) != len(reported.ClaimedBy):
		return fmt.Errorf("%s: somebody has the coupon twice", c.name)
	case won != len(reported.ClaimedBy):
		return fmt.Errorf("%s: %d were told that they won, %d have the coupon", c.name, won, len(reported.ClaimedBy))
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
	var before int64
	if c.redis == nil && c.name != ceiling {
		if before, err = r.machine.commits(ctx); err != nil {
			return figures{}, err
		}
	}
	p.Request = r.claims(coupon)
	f, report, err := r.run(ctx, c, p, r.duration, load.Claimed)
	if err != nil {
		return f, err
	}
	if c.redis == nil && c.name != ceiling {
		after, err := r.machine.commits(ctx)
		if err != nil {
			return f, err
		}
		f.Commits = float64(after-before) / float64(report.Claims.Answered())
	}
	return f, r.check(ctx, c, coupon, plenty, report)
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
	return f, r.check(ctx, c, coupon, stock, report)
}

// many spreads claims over coupons; which[i] is the coupon of request i.
func (r *race) many(ctx context.Context, c *contestant, which []int32) (figures, error) {
	coupons := make([]string, manyCoupons)
	for i := range coupons {
		var err error
		if coupons[i], err = r.create(ctx, c, plenty); err != nil {
			return figures{}, err
		}
	}
	f, _, err := r.run(ctx, c, load.Plan{Request: func(i int) load.Request {
		return load.Request{User: r.users[i%claimers], Coupon: coupons[which[i%manyRequests]]}
	}}, r.duration, load.Claimed)
	return f, err
}

func repeats(ctx context.Context, r *race, c *contestant) (figures, error) {
	const users = 1000
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	again := func(i int) load.Request { return load.Request{User: r.users[i%users], Coupon: coupon} }
	if _, _, err := r.run(ctx, c, load.Plan{Requests: users, Request: again}, serviceTimeout, load.Claimed); err != nil {
		return figures{}, err
	}
	f, _, err := r.run(ctx, c, load.Plan{Request: again}, r.duration, load.AlreadyClaimed)
	return f, err
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

func snapshot(ctx context.Context, r *race, c *contestant) (figures, error) {
	tx, err := r.machine.conn.Begin(ctx)
	if err != nil {
		return figures{}, err
	}
	if _, err := tx.Exec(ctx, "set transaction isolation level repeatable read; select count(*) from public.coupons"); err != nil {
		return figures{}, errors.Join(err, tx.Rollback(ctx))
	}
	coupon, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, errors.Join(err, tx.Rollback(ctx))
	}
	f, report, err := r.run(ctx, c, load.Plan{Requests: 150_000, Request: r.claims(coupon)}, serviceTimeout, load.Claimed)
	if err = errors.Join(err, tx.Rollback(ctx)); err != nil {
		return f, err
	}
	return f, r.check(ctx, c, coupon, plenty, report)
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
	f, _, err := r.run(ctx, c, load.Plan{Request: r.claims(other)}, r.duration, load.Claimed)
	if err = errors.Join(err, <-done); err != nil {
		return f, err
	}
	f.ReadRate = float64(reading.Reads.Answered()) / reading.Elapsed.Seconds()
	return f, nil
}

// million reads a coupon of 1,000,000 claims once by GET and once by psql's COPY, and claims another meanwhile.
func million(ctx context.Context, r *race, c *contestant) (figures, error) {
	const n = 1_000_000
	coupon, err := r.create(ctx, c, n)
	if err != nil {
		return figures{}, err
	}
	// As 1,000,000 claims leave them, without the hour it takes to wait for them here.
	if _, err := r.machine.conn.Exec(ctx, `
		with sold as (
		  update public.coupons
		  set remaining_amount = 0
		  where name = $1
		)
		insert into public.claims (coupon_name, claim_number, user_id)
		select $1, i, 'user-' || lpad(i::text, 7, '0')
		from generate_series(1, $2::int) as i`, coupon, n); err != nil {
		return figures{}, err
	}
	if _, err := r.machine.conn.Exec(ctx, "vacuum analyze public.claims"); err != nil {
		return figures{}, err
	}

	get := func() (time.Duration, error) {
		began := time.Now()
		size, err := download(ctx, "http://"+c.service.Address+load.CouponPath(coupon))
		if err == nil && size < n*int64(len("user-0000001")) {
			err = fmt.Errorf("the answer has only %d bytes", size)
		}
		return time.Since(began), err
	}
	alone, err := get()
	if err != nil {
		return figures{}, err
	}
	began := time.Now()
	command := exec.CommandContext(ctx, r.machine.postgres.BinDir()+"/psql", "-q", "-d", r.machine.postgres.URL(database), //nolint:gosec // our own
		"-c", "copy (select user_id from public.claims where coupon_name = '"+coupon+"' order by claim_number) to stdout")
	if out, err := command.Output(); err != nil || len(out) < n*len("user-0000001") {
		return figures{}, fmt.Errorf("psql's COPY: %d bytes, %w", len(out), err)
	}
	copied := time.Since(began)

	other, err := r.create(ctx, c, plenty)
	if err != nil {
		return figures{}, err
	}
	var stop atomic.Bool
	reading := make(chan error, 1)
	go func() {
		var err error
		for err == nil && !stop.Load() {
			_, err = get()
		}
		reading <- err
	}()
	f, _, err := r.run(ctx, c, load.Plan{Request: r.claims(other)}, r.duration, load.Claimed)
	stop.Store(true)
	f.Extra, f.ExtraIs = alone.Seconds()/copied.Seconds(), "times psql's COPY"
	return f, errors.Join(err, <-reading)
}

// download reads what is there to its end, keeps nothing of it, and returns how many bytes it was.
func download(ctx context.Context, url string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }() // read to the end, or given up
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("answered %s", response.Status)
	}
	return io.Copy(io.Discard, response.Body)
}
