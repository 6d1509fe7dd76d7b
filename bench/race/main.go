// Race compares ways to hand out coupons (package contestants) on one machine: the same HTTP layer,
// the same load, a private PostgreSQL with fsync on. Contestants take turns in rounds, so that
// other work on the machine slows all of them down alike. Only ratios between contestants mean
// anything. After each run the answers of the service are compared with what it stored.
//
//	go run ./bench/race            all workloads (make bench)
//	go run ./bench/race --quick    the most important ones (make bench-quick)
//	go run ./bench/race --help
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

type options struct {
	Quick       bool              `help:"Run only the most important workloads, once."`
	Rounds      int               `default:"5" help:"Number of rounds in which the contestants take turns."`
	Duration    time.Duration     `default:"3s" help:"Duration of each run of a workload."`
	Workloads   regexp.Regexp     `default:"." placeholder:"REGEXP" help:"Run only workloads that match."`
	Contestants regexp.Regexp     `default:"." placeholder:"REGEXP" help:"Run only contestants that match."`
	Connections int               `default:"128" help:"Number of connections that claim, unless the workload says otherwise."`
	Coupond     map[string]string `mapsep:"none" placeholder:"NAME=PATH" help:"Also race the coupond binary at PATH, for example of an older commit, as 'coupond NAME'. May be repeated."`
	Out         string            `default:"bench/results" help:"Folder for the tables and the charts; empty: write none."`
}

// Validate is called by kong.
func (o *options) Validate() error {
	if o.Rounds < 1 || o.Duration <= 0 || o.Connections < 1 {
		return fmt.Errorf("rounds %d, duration %v, connections %d: each must be positive", o.Rounds, o.Duration, o.Connections)
	}
	return nil
}

// run runs a race. out receives the tables, and standard error the progress.
func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	about := "Compare ways to hand out coupons on this machine.\n\nWorkloads:"
	for _, w := range workloads() {
		about += fmt.Sprintf("\n  %s: %s", w.name, w.description)
	}
	about += "\n\nContestants:"
	for _, c := range contestants.All() {
		about += fmt.Sprintf("\n  %s: %s", c.Name, c.Method)
	}
	parser, err := kong.New(&o, kong.Name("race"), kong.Description(about))
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	if o.Quick {
		o.Rounds, o.Duration = 1, min(o.Duration, 2*time.Second)
	}
	selected := slices.DeleteFunc(workloads(), func(w workload) bool { return o.Quick && !w.quick || !o.Workloads.MatchString(w.name) })
	racing, err := selectContestants(ctx, &o)
	switch {
	case err != nil:
		return err
	case len(selected) == 0 || len(racing) == 0:
		return fmt.Errorf("--workloads selects %d, --contestants selects %d; --help lists them", len(selected), len(racing))
	}

	m, err := newMachine(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	r := &race{options: o, machine: m, users: load.Users(1 << 20)}
	results := &results{about: m.describe(ctx, o), reference: racing[0].Name, entries: map[string][]*entry{}}
	for _, w := range selected {
		results.entries[w.name], err = r.runWorkload(ctx, w, racing)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if _, err := fmt.Fprintf(out, "\n%s\n", results.table(w)); err != nil {
			return err
		}
	}
	if o.Out == "" {
		return nil
	}
	return results.write(o.Out, selected)
}

var binaryName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

// selectContestants returns the contestants that match: coupond, its binaries by name, the others.
// Without Redis on this machine it prints a warning and leaves Redis out.
func selectContestants(ctx context.Context, o *options) ([]contestants.Contestant, error) {
	all := contestants.All()
	coupond := all[0]
	for i, name := range slices.Sorted(maps.Keys(o.Coupond)) {
		path, err := exec.LookPath(o.Coupond[name])
		if !binaryName.MatchString(name) {
			err = errors.New("the name must be lower-case letters and digits, at most 20, such as old=/tmp/coupond")
		}
		if err != nil {
			return nil, fmt.Errorf("--coupond %s=%s: %w", name, o.Coupond[name], err)
		}
		all = slices.Insert(all, 1+i, contestants.Contestant{
			Name: coupond.Name + " " + name, Method: path, Table: coupond.Table, Binary: path,
		})
	}
	if redisCommand(ctx) == nil {
		fmt.Fprintf(os.Stderr, "race: Redis is left out: install redis-server, or pull the image %s with Docker on Linux\n", redisImage)
		all = slices.DeleteFunc(all, func(c contestants.Contestant) bool { return c.Appendfsync != "" })
	}
	return slices.DeleteFunc(all, func(c contestants.Contestant) bool { return !o.Contestants.MatchString(c.Name) }), nil
}
