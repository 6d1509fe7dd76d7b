// Faults runs the real service on a real PostgreSQL server under load, injects faults, and checks
// every answer against a model and against the stored state.
//
//	make faults DURATION=10m SEED=7
//	go run ./test/faults --duration 45s --seed 1 --faults "storm|locked"
//
// # What it checks
//
// Two instances of coupond share a private PostgreSQL server, which they reach through a proxy.
// Clients create, claim and read coupons over HTTP. There are many small coupons, each used by a
// few concurrent clients: porcupine must find an order of their operations in which the model
// (internal/couponmodel) gives the same answers. And there are sales with thousands of users, too
// large for such a search: their answers must agree with each other and with the order of the
// claims (bench/check). A request without an answer, or answered OUTCOME_UNKNOWN, may be executed
// at any time after it was sent, or never. One answered UNAVAILABLE or OVERLOADED must not have
// been executed.
//
// Meanwhile it injects faults that the seed determines (faults.go). Each fault has a list of the
// answers that it may cause; any other answer is a violation. At the end all answers are compared
// with the tables.
//
// Some faults are other clients, or a lock on coupons of other clients (otherclients.go). Clients
// that have nothing to do with them claim before and during such a fault, and must not be slowed
// down much (compare.go). No instance may use more memory than a container of 512 MiB has
// (memory.go).
//
// It writes a report. The exit status is 0 without violations, 1 with violations or if the test
// could not be completed, and 2 for a wrong command line. A failed run keeps its logs and its
// database, and prints where they are.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// The exit codes.
const (
	exitClean  = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type options struct {
	duration time.Duration
	seed     uint64
	report   string
	progress time.Duration
	only     *regexp.Regexp // names of the faults to inject
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := pflag.NewFlagSet("faults", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.DurationVar(&o.duration, "duration", time.Minute, "how long to inject faults, at least 1s")
	flags.Uint64Var(&o.seed, "seed", 0, "seed of the faults and the requests; 0 takes one from the clock")
	flags.StringVar(&o.report, "report", "faults/report.md", "write the report to this `file`")
	flags.DurationVar(&o.progress, "progress", 5*time.Second, "how often to print a line of progress")
	only := flags.String("faults", "", "inject only faults whose names match this regular `expression`")
	if err := flags.Parse(args); err != nil {
		if !errors.Is(err, pflag.ErrHelp) {
			_, _ = fmt.Fprintln(stderr, "faults:", err)
		}
		return o, err
	}
	var err error
	o.only, err = regexp.Compile(*only)
	switch {
	case err != nil:
		err = fmt.Errorf("--faults %q: %w", *only, err)
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q: only flags are allowed", flags.Arg(0))
	case o.duration < time.Second:
		err = fmt.Errorf("--duration %s: at least 1s", o.duration)
	case o.progress <= 0:
		err = fmt.Errorf("--progress %s: must be positive", o.progress)
	case !slices.ContainsFunc(allFaults(), func(f *fault) bool { return o.only.MatchString(f.name) }):
		err = fmt.Errorf("--faults %q: no fault matches", *only)
	case o.report == "":
		err = errors.New("--report is empty: name a file")
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "faults:", err)
		return o, err
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	return o, nil
}

// run is the program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitClean
	case err != nil:
		return exitUsage
	}
	t := newFaultTest(o, stdout)
	t.printf("%s with seed %d: make faults DURATION=%s SEED=%d", o.duration, o.seed, o.duration, o.seed)
	if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
		_, _ = fmt.Fprintln(stderr, "faults:", err)
		return exitFailed
	}
	if t.env, err = newEnvironment(ctx, stderr); err != nil {
		_, _ = fmt.Fprintln(stderr, "faults:", err)
		return exitFailed
	}
	t.run(ctx)
	clean := t.violations.none()
	if err := t.env.close(!clean); err != nil {
		_, _ = fmt.Fprintln(stderr, "faults:", err)
	}
	report := t.report()
	t.printf("\n%s", report)
	if err := os.WriteFile(o.report, []byte(report), 0o644); err != nil {
		_, _ = fmt.Fprintln(stderr, "faults:", err)
		return exitFailed
	}
	t.printf("report: %s", o.report)
	if !clean {
		t.printf("logs and data are kept in %s; remove it when you do not need it any more", t.env.home)
		return exitFailed
	}
	return exitClean
}
