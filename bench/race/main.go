// Race runs the ways to hand out coupons against each other (package rivals): the same HTTP layer, the same load, one
// machine, on a private PostgreSQL with fsync on that is made for the race. Rivals take turns in rounds, so that whatever
// else the machine does meanwhile hits all of them; what counts are the ratios. After each run the books of the rival are
// checked, ours first of all.
//
//	go run ./bench/race            all workloads (make bench)
//	go run ./bench/race -quick     the most telling ones (make bench-quick)
//	go run ./bench/race -h
//
// The results go to -out as JSON, with the machine, the versions and the commit, and are drawn as SVG charts beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

func main() {
	if err := start(); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

func start() error {
	if len(os.Args) == 3 && os.Args[1] == serveFlag {
		// A Ctrl-C reaches the whole process group; our parent ends us by closing our standard input.
		signal.Ignore(os.Interrupt)
		return serve(context.Background(), os.Args[2])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args[1:])
}

// race is one race under way.
type race struct {
	machine  *machine
	duration time.Duration
	seed     uint64
	coupons  int // where there are many
	users    []string
	next     atomic.Int64
	old      *pgx.Conn // of "old plans"
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("race", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "only the most telling workloads, one round")
	rounds := flags.Int("rounds", 5, "`rounds` in which the rivals take turns")
	duration := flags.Duration("duration", 3*time.Second, "`how long` each run of a workload takes")
	only := flags.String("workloads", "", "a regular `expression` of the workloads to run")
	who := flags.String("rivals", "", "a regular `expression` of the rivals to run")
	lanes := flags.Int("lanes", 1, "CLAIM_LANES of ours")
	out := flags.String("out", "bench/results", "`folder` for results.json and the charts; empty: none")
	seed := flags.Uint64("seed", 1, "makes the order of the users")
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
	names, err := selectRivals(ctx, *who)
	if err != nil {
		return err
	}

	m, err := prepare(ctx, *lanes)
	if err != nil {
		return err
	}
	defer m.close()
	r := &race{machine: m, duration: *duration, seed: *seed, coupons: manyCoupons, users: load.Users(claimers)}
	results := newResults(m.about(ctx), *rounds, *duration)

	for _, w := range selected {
		if err := r.compete(ctx, w, names, *rounds, results); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := results.print(os.Stdout, w); err != nil {
			return err
		}
	}
	if err := results.judge(os.Stdout); err != nil {
		return err
	}
	if *out == "" {
		return nil
	}
	return results.keep(*out, selected)
}

// compete runs a workload, round by round, every contestant in every round.
func (r *race) compete(ctx context.Context, w workload, names []string, rounds int, results *results) (err error) {
	entries := w.entries(names)
	if len(entries) == 0 {
		return nil
	}
	if w.prepare != nil {
		var tidy func() error
		tidy, err = w.prepare(ctx, r)
		defer func() { err = errors.Join(err, tidy()) }()
		if errors.Is(err, errLeftOut) {
			fmt.Fprintf(os.Stderr, "race: %s: %v\n", w.name, err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	var contestants []*contestant
	defer func() {
		for _, c := range contestants {
			c.stop()
		}
	}()
	for _, e := range entries {
		c, err := r.machine.start(ctx, e)
		if err != nil {
			return err
		}
		contestants = append(contestants, c)
	}
	for round := range rounds {
		for i := range contestants {
			// Another one begins each round, so that nobody always comes after the same.
			c := contestants[(i+round)%len(contestants)]
			f, err := c.run(ctx, r, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			results.add(w.name, c.name, f)
			fmt.Fprintf(os.Stderr, "  round %d/%d  %-23s %-25s %9.0f/s  p99 %8.1f ms  %s\n",
				round+1, rounds, w.name, c.name, f.Rate, f.P99, f.Unexpected)
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

// selectRivals returns the names of the contestants, Redis as two of them.
func selectRivals(ctx context.Context, who string) ([]string, error) {
	expression, err := regexp.Compile(who)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, rival := range contestants.All() {
		switch {
		case rival.Name != "Redis":
			names = append(names, rival.Name)
		case contestants.FindRedis(ctx) != "":
			names = append(names, redisPrefix+"everysec", redisPrefix+"always")
		default:
			fmt.Fprintln(os.Stderr, "race: no redis-server on this machine, and no Docker engine with "+contestants.RedisImage+": Redis does not run")
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return !expression.MatchString(name) }), nil
}
