package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// race is what all runs of one race share.
type race struct {
	options
	*machine

	users   []string // claims beyond their number are repeats
	coupons int      // number of coupons created so far
}

// entry is one row of a workload's table: a contestant, what it runs, and its figures.
type entry struct {
	name       string
	contestant contestants.Contestant
	database   string
	setUp      func(context.Context, *pgx.Conn) error // of the database; nil: it is empty
	run        runner
	runs       []figures // one for each round
}

// runWorkload runs a workload round by round, every entry once in every round. Its databases and
// services are new, so that no other workload influences it.
func (r *race) runWorkload(ctx context.Context, w workload, racing []contestants.Contestant) (entries []*entry, err error) {
	running, stop := context.WithCancel(ctx)
	services := map[string]*service{} // by contestant and database
	databases := map[string]bool{}
	defer func() {
		stop()
		r.processes.Wait()
		for name := range databases {
			_, dropErr := r.conn.Exec(context.WithoutCancel(ctx), "drop database if exists "+name+" with (force)")
			err = errors.Join(err, dropErr)
		}
	}()
	entries = w.entries(racing)
	for _, e := range entries {
		if !databases[e.database] {
			databases[e.database] = true
			if err := r.createDatabase(ctx, e.database, e.contestant, e.setUp); err != nil {
				return nil, fmt.Errorf("database of %s: %w", e.name, err)
			}
		}
		if services[e.contestant.Name+e.database] == nil {
			s, err := r.startService(running, e.contestant, e.database)
			if err != nil {
				return nil, fmt.Errorf("service of %s: %w", e.name, err)
			}
			services[e.contestant.Name+e.database] = s
		}
	}
	for round := range r.Rounds {
		for i := range entries {
			// Each round begins with another one, so that none always runs after the same one.
			e := entries[(i+round)%len(entries)]
			f, err := e.run(ctx, r, services[e.contestant.Name+e.database])
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.name, err)
			}
			e.runs = append(e.runs, f)
			fmt.Fprintf(os.Stderr, "  round %d/%d  %-25s %-25s %9.0f/s  p99 %8.1f ms\n", round+1, r.Rounds, w.name, e.name, f[rate], f[p99])
		}
	}
	return entries, nil
}

const (
	requestTimeout = time.Minute
	seed           = 1             // of the order of users and coupons
	plenty         = 2_000_000_000 // a stock that is never sold out
)

// sale is the load of one run.
type sale struct {
	load.Plan

	coupons  []string
	expected []load.Answer // others do not count as claims
	limit    time.Duration // 0: that of the race
}

// newSale creates n coupons for a sale.
func (r *race) newSale(ctx context.Context, s *service, n, stock int) (sale, error) {
	sale := sale{expected: []load.Answer{load.Claimed}}
	for range n {
		r.coupons++
		name := fmt.Sprintf("race-%d", r.coupons)
		if err := s.client.Create(ctx, name, stock); err != nil {
			return sale, err
		}
		sale.coupons = append(sale.coupons, name)
	}
	sale.Timeout, sale.Address, sale.Connections = requestTimeout, s.client.Address, r.Connections
	sale.Request = func(i int) load.Request {
		return load.Request{User: r.users[i%len(r.users)], Coupon: sale.coupons[0]}
	}
	return sale, nil
}

// run sends the load of a sale and measures it, with the CPU time of all processes that take part,
// and compares the answers with what the service stored.
func (r *race) run(ctx context.Context, s *service, sale sale) (figures, error) {
	began, err := r.usage(ctx, s)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, cmp.Or(sale.limit, r.Duration))
	defer cancel()
	run, err := load.Start(limited, sale.Plan)
	if err != nil {
		return nil, err
	}
	report := run.Wait()
	ended, err := r.usage(ctx, s)
	if err != nil {
		return nil, err
	}
	n := 0.
	for _, answer := range sale.expected {
		n += float64(report.Answers[answer])
	}
	others := float64(report.Total()) - n
	if others > 0 {
		fmt.Fprintf(os.Stderr, "  %s: %v\n", s.contestant.Name, report.Answers)
	}
	if n == 0 {
		return nil, errors.New("no claim was answered as expected: " + strings.Join(report.Errors, "; "))
	}
	f := figures{
		rate:       n / report.Elapsed.Seconds(),
		p50:        ms(report.Quantile(50)),
		p99:        ms(report.Quantile(99)),
		unexpected: others,
	}
	for m := range began {
		f[m] = (ended[m] - began[m]) / n
	}
	if s.contestant.Name == contestants.Ceiling { // it stores nothing
		return f, nil
	}
	return f, s.check(ctx, sale, report)
}

// usage returns what a service has used so far.
func (r *race) usage(ctx context.Context, s *service) (figures, error) {
	var database time.Duration
	var written int64
	var err error
	switch {
	case s.redis != nil:
		database, err = redisCPUTime(ctx, s.redis)
	case s.contestant.Table != "":
		database = cpuTime(r.postgres.Pid(), true)
		written, err = r.countCommits(ctx)
	}
	return figures{
		commits:     float64(written),
		cpu:         us(cpuTime(s.pid, false) + database),
		databaseCPU: us(database),
		loadCPU:     us(cpuTime(os.Getpid(), false)),
	}, err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// check compares what the service has stored of a sale with its answers.
func (s *service) check(ctx context.Context, sale sale, answered load.Report) error {
	stored, err := s.client.Coupons(ctx, sale.coupons...)
	if err != nil {
		return err
	}
	return check.Totals(answered.Answers[load.Claimed], answered.Ambiguous(), slices.Collect(maps.Values(stored))...)
}
