// Race compares ways to hand out coupons (package contestants) on one machine: the same HTTP layer,
// the same load, a private PostgreSQL with fsync on. Contestants take turns in rounds, so that
// other work on the machine slows all of them down alike. Only ratios between contestants mean
// anything. After each run the answers of the service are compared with what it stored.
//
//	go run ./bench/race            all workloads (make bench)
//	go run ./bench/race --quick    the most important ones (make bench-quick)
//	go run ./bench/race --help
//
// The results are written to --out as JSON, with the machine, the versions and the commit, and as
// one SVG chart per workload.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/pflag"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

func main() {
	if err := start(); err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

func start() error {
	if len(os.Args) == 3 && os.Args[1] == serveFlag {
		// Ctrl-C reaches the whole process group. The parent stops this process by closing its
		// standard input.
		signal.Ignore(os.Interrupt)
		return serve(context.Background(), os.Args[2])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:])
}

// race is what all runs of one race share.
type race struct {
	machine     *machine
	duration    time.Duration // of one run
	connections int           // of a run, unless its workload says otherwise
	seed        uint64
	coupons     int // in workloads with many coupons
	users       []string
	nextCoupon  atomic.Int64
	oldSession  *pgx.Conn // of workload "old plans": it planned its calls when the tables were empty
}

func run(ctx context.Context, args []string) error {
	flags := pflag.NewFlagSet("race", pflag.ContinueOnError)
	flags.SortFlags = false
	quick := flags.Bool("quick", false, "only the most important workloads, one round")
	rounds := flags.Int("rounds", 5, "number of `rounds` in which the contestants take turns")
	duration := flags.Duration("duration", 3*time.Second, "`duration` of each run of a workload")
	only := flags.String("workloads", "", "run only workloads that match this regular `expression`")
	matching := flags.String("contestants", "", "run only contestants that match this regular `expression`")
	connections := flags.Int("connections", 128, "`number` of connections that claim, unless the workload says otherwise")
	concurrency := flags.Int("claim-concurrency", 1, "CLAIM_CONCURRENCY of coupond")
	programs := flags.StringArray("coupond", nil,
		"also race the coupond program at a path, for example one of an older commit: `name=path`; may be repeated")
	out := flags.String("out", "bench/results", "`folder` for results.json and the charts; empty: write none")
	seed := flags.Uint64("seed", 1, "seed of the order of the users")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *quick {
		*rounds, *duration = min(*rounds, 1), min(*duration, 2*time.Second)
	}
	selected, err := selectWorkloads(*quick, *only)
	if err != nil {
		return err
	}
	binaries, err := parsePrograms(*programs)
	if err != nil {
		return err
	}
	names, err := selectContestants(ctx, *matching, *programs)
	if err != nil {
		return err
	}

	m, err := newMachine(ctx, *concurrency, binaries)
	if err != nil {
		return err
	}
	defer m.close()
	r := &race{
		machine: m, duration: *duration, connections: *connections, seed: *seed, coupons: manyCoupons, users: load.Users(claimers),
	}
	results := newResults(m.describe(ctx), *rounds, *duration)

	for _, w := range selected {
		if err := r.runWorkload(ctx, w, names, *rounds, results); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := results.printTable(os.Stdout, w); err != nil {
			return err
		}
	}
	if err := results.evaluateTargets(os.Stdout); err != nil {
		return err
	}
	if *out == "" {
		return nil
	}
	return results.write(*out, selected)
}

// runWorkload runs a workload round by round, every entry once in every round.
func (r *race) runWorkload(ctx context.Context, w workload, names []string, rounds int, results *results) (err error) {
	entries := w.entries(names)
	if len(entries) == 0 {
		return nil
	}
	if w.prepare != nil {
		var cleanup func() error
		cleanup, err = w.prepare(ctx, r)
		defer func() { err = errors.Join(err, cleanup()) }()
		if errors.Is(err, errSkipped) {
			fmt.Fprintf(os.Stderr, "race: %s: %v\n", w.name, err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	var services []*service
	defer func() {
		for _, s := range services {
			s.stop()
		}
	}()
	for _, e := range entries {
		s, err := r.machine.startService(ctx, e)
		if err != nil {
			return err
		}
		services = append(services, s)
	}
	for round := range rounds {
		for i := range services {
			// Each round begins with another one, so that none always runs after the same one.
			s := services[(i+round)%len(services)]
			f, err := s.run(ctx, r, s)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			results.add(w.name, s.name, f)
			fmt.Fprintf(os.Stderr, "  round %d/%d  %-23s %-25s %9.0f/s  p99 %8.1f ms  %s\n",
				round+1, rounds, w.name, s.name, f.Rate, f.P99, f.Unexpected)
		}
	}
	return nil
}

func selectWorkloads(quick bool, only string) ([]workload, error) {
	expression, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(workloads(), func(w workload) bool {
		return quick && !w.quick || !expression.MatchString(w.name)
	}), nil
}

// selectContestants returns the names of the programs (see parsePrograms) and of the contestants
// that match. Redis counts as two, one for each appendfsync; without Redis on this machine it
// prints a warning and returns the others.
func selectContestants(ctx context.Context, only string, programs []string) ([]string, error) {
	expression, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, program := range programs {
		name, _, _ := strings.Cut(program, "=")
		names = append(names, programPrefix+name)
	}
	for _, c := range contestants.All() {
		switch {
		case c.Name != "Redis":
			names = append(names, c.Name)
		case contestants.FindRedis(ctx) != "":
			names = append(names, redisPrefix+"everysec", redisPrefix+"always")
		default:
			fmt.Fprintln(os.Stderr, "race: Redis is skipped: no redis-server is installed, and no Docker engine has "+contestants.RedisImage)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return !expression.MatchString(name) }), nil
}
