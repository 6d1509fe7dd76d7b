// Race compares ways to hand out coupons (package contestants) on one machine: the same HTTP layer,
// the same load, a private PostgreSQL with fsync on. Contestants take turns in rounds, so that
// other work on the machine slows all of them down alike. Only ratios between contestants mean
// anything. After each run the answers of the service are compared with what it stored.
//
//	go run ./bench/race --help
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if name := os.Getenv(contestantVariable); name != "" {
		err = serve(ctx, name)
	} else {
		err = run(ctx, os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

type options struct {
	Rounds      int               `default:"5" help:"Number of rounds in which the contestants take turns."`
	Duration    time.Duration     `default:"3s" help:"Duration of each run of a workload."`
	Workloads   regexp.Regexp     `default:"." placeholder:"REGEXP" help:"Run only workloads that match."`
	Contestants regexp.Regexp     `default:"." placeholder:"REGEXP" help:"Run only contestants that match."`
	Coupond     map[string]string `mapsep:"none" type:":existingfile" placeholder:"NAME=PATH" help:"Also race the coupond binary at PATH, for example of an older commit, as 'coupond NAME'. May be repeated."`
	Out         string            `default:"bench/results" help:"Folder for the tables and the charts; empty: write none."`
}

// Validate is called by kong.
func (o *options) Validate() error {
	if o.Rounds < 1 || o.Duration <= 0 {
		return fmt.Errorf("--rounds %d, --duration %v: each must be more than 0", o.Rounds, o.Duration)
	}
	return nil
}

// run runs a race. It prints the tables, and the progress to standard error.
func run(ctx context.Context, args []string) error {
	var o options
	about := "Compare ways to hand out coupons on this machine.\n\nWorkloads:"
	for _, w := range workloads() {
		about += fmt.Sprintf("\n  %s: %s", w.name, w.description)
	}
	about += "\n\nContestants:"
	for _, c := range contestants.All() {
		about += fmt.Sprintf("\n  %s: %s", c.Name, c.Method)
	}
	if _, err := kong.Must(&o, kong.Name("race"), kong.Description(about)).Parse(args); err != nil {
		return err
	}
	racing := selectContestants(&o)
	var selected []workload
	for _, w := range workloads() {
		w.enter(racing)
		if o.Workloads.MatchString(w.name) && len(w.entries) > 0 {
			selected = append(selected, w)
		}
	}
	if len(selected) == 0 {
		return errors.New("nothing to run: see --workloads and --contestants; --help lists what there is")
	}

	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	r := &race{options: o, machine: m, users: load.Users(1 << 20), about: m.describe(ctx, o), reference: racing[0].Name}
	for _, w := range selected {
		if err := r.runWorkload(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		_, _ = fmt.Fprintf(os.Stdout, "\n%s\n", r.table(w))
	}
	if o.Out == "" {
		return nil
	}
	return r.write(o.Out, selected)
}

// selectContestants returns the contestants that match: coupond, its binaries by name, the others.
// Without redis-server or redis-cli it prints a warning and leaves Redis out.
func selectContestants(o *options) []contestants.Contestant {
	all := contestants.All()
	coupond := all[0]
	for i, name := range slices.Sorted(maps.Keys(o.Coupond)) {
		all = slices.Insert(all, 1+i, contestants.Contestant{
			Name: coupond.Name + " " + name, Table: coupond.Table, Binary: o.Coupond[name],
		})
	}
	_, noServer := exec.LookPath("redis-server")
	_, noClient := exec.LookPath("redis-cli")
	noRedis := noServer != nil || noClient != nil
	if noRedis {
		fmt.Fprintln(os.Stderr, "race: Redis is left out: install redis-server")
	}
	return slices.DeleteFunc(all, func(c contestants.Contestant) bool {
		return !o.Contestants.MatchString(c.Name) || c.Appendfsync != "" && noRedis
	})
}
