package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

// race is what all runs of one race share.
type race struct {
	options
	*machine

	users     []string // claims beyond their number are repeats
	coupons   int      // number of coupons created so far
	about     []string // the race, and the machine, in words
	reference string   // the contestant that the others are compared with
}

// entry is one row of a workload's table: a contestant, what it runs, and its figures. It has a
// service and a database of its own.
type entry struct {
	contestants.Contestant

	title       string // in tables and charts
	variant     variant
	database    string
	client      load.Service
	pid         int       // of the service
	databasePid int       // 0: it has no database
	runs        []figures // one for each round
}

// runWorkload runs a workload round by round, every entry once in every round. Its databases and
// services are new, so that no other workload influences it.
func (r *race) runWorkload(ctx context.Context, w workload) (err error) {
	running, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		r.processes.Wait()
		for _, e := range w.entries {
			_, dropErr := r.conn.Exec(context.WithoutCancel(ctx), "drop database if exists "+e.database+" with (force)")
			err = errors.Join(err, dropErr)
		}
	}()
	for _, e := range w.entries {
		if err := r.createDatabase(ctx, e); err != nil {
			return fmt.Errorf("database of %s: %w", e.title, err)
		}
		if err := r.startService(running, e); err != nil {
			return fmt.Errorf("service of %s: %w", e.title, err)
		}
	}
	if _, err := r.conn.Exec(ctx, "checkpoint"); err != nil { // so that none runs during the first round
		return err
	}
	for round := range r.Rounds {
		for i := range w.entries {
			// Each round begins with another one, so that none always runs after the same one.
			e := w.entries[(i+round)%len(w.entries)]
			f, err := e.variant.run(ctx, r, e)
			if err != nil {
				return fmt.Errorf("%s: %w", e.title, err)
			}
			e.runs = append(e.runs, f)
			fmt.Fprintf(os.Stderr, "  round %d/%d  %-25s %-25s %9.0f/s  p99 %8.1f ms\n", round+1, r.Rounds, w.name, e.title, f[rate], f[p99])
		}
	}
	return nil
}

const (
	connections    = 128 // that claim, unless the workload says otherwise
	requestTimeout = time.Minute
	seed           = 1             // of the order of users and coupons
	plenty         = 2_000_000_000 // a stock that is never sold out
)

// sale is the load of one run.
type sale struct {
	load.Plan

	coupons  []string
	expected []load.Answer // others do not count as claims
	limit    time.Duration
}

// newSale creates n coupons, and returns a sale that claims them equally often, in random order,
// for the duration of a run.
func (r *race) newSale(ctx context.Context, e *entry, n, stock int) (sale, error) {
	sale := sale{expected: []load.Answer{load.Claimed}, limit: r.Duration}
	for range n {
		r.coupons++
		name := fmt.Sprintf("race-%d", r.coupons)
		if err := e.client.Create(ctx, name, stock); err != nil {
			return sale, err
		}
		sale.coupons = append(sale.coupons, name)
	}
	which := load.Evenly(len(r.users), n, seed)
	sale.Timeout, sale.Address, sale.Connections = requestTimeout, e.client.Address, connections
	sale.Request = func(i int) load.Request {
		i %= len(r.users)
		return load.Request{User: r.users[i], Coupon: sale.coupons[which[i]]}
	}
	return sale, nil
}

// run sends the load of a sale and measures it, with the CPU time of all processes that take part,
// and compares the answers with what the service stored.
func (r *race) run(ctx context.Context, e *entry, sale sale) (figures, error) {
	began, err := r.usage(ctx, e)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, sale.limit)
	defer cancel()
	run, err := load.Start(limited, sale.Plan)
	if err != nil {
		return nil, err
	}
	report := run.Wait()
	ended, err := r.usage(ctx, e)
	if err != nil {
		return nil, err
	}
	n := 0.
	for _, answer := range sale.expected {
		n += float64(report.Answers[answer])
	}
	others := float64(report.Total()) - n
	if others > 0 {
		fmt.Fprintf(os.Stderr, "  %s: %v\n", e.Name, report.Answers)
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
	if e.Name == contestants.Ceiling { // it stores nothing
		return f, nil
	}
	return f, e.check(ctx, sale, report)
}

// usage returns what a service has used so far.
func (r *race) usage(ctx context.Context, e *entry) (figures, error) {
	used := figures{cpu: us(cpuTime(e.pid, false)), loadCPU: us(cpuTime(os.Getpid(), false))}
	if e.databasePid != 0 {
		used[databaseCPU] = us(cpuTime(e.databasePid, true))
		used[cpu] += used[databaseCPU]
	}
	if e.Table == "" {
		return used, nil
	}
	// Each transaction that has written something has a transaction ID. pg_stat_database would be
	// late, because an idle backend does not report its commits at once.
	var written float64
	err := r.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::float8").Scan(&written)
	used[commits] = written
	return used, err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// check compares what the service has stored of a sale with its answers.
func (e *entry) check(ctx context.Context, sale sale, answered load.Report) error {
	stored, err := e.client.Coupons(ctx, sale.coupons...)
	if err != nil {
		return err
	}
	return check.Totals(answered.Answers[load.Claimed], answered.Ambiguous(), slices.Collect(maps.Values(stored))...)
}
