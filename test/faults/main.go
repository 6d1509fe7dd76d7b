// Prove runs the real service on a real PostgreSQL, lets clients loose on it, breaks everything around it again and again, and
// holds every answer against a model.
//
//	make prove DURATION=10m SEED=7
//	go run ./test/faults -duration 45s -seed 1
//
// # What is proved
//
// Two instances of coupond share a private PostgreSQL, which they reach by way of a proxy. Clients create, claim and read over
// HTTP: many small coupons, each asked for by a few at once, whose history porcupine must explain by some order of the model's
// answers (package model); and sales of thousands, whose answers must agree with each other and with the order of the winners
// (package books). A request without an answer, or with OUTCOME_UNKNOWN, may have been carried out or not, at any time since. One
// told UNAVAILABLE or OVERLOADED surely was not.
//
// Meanwhile the seed deals out faults (faults.go), each with the answers that it may bring: any other answer breaks the proof.
// When all is over, the tables are held against all that was ever told.
//
// It ends with a report, and with 0 when nothing was found, 1 when something was or the proof could not be led to its end, and 2
// when the command line is wrong. A failed run leaves the logs and the database, and says where.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	clean   = 0
	unclean = 1
	misused = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	code := prove(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are what the command line says.
type options struct {
	duration time.Duration
	seed     uint64
	report   string
	every    time.Duration
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("prove", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.DurationVar(&o.duration, "duration", time.Minute, "go on for `so long`")
	flags.Uint64Var(&o.seed, "seed", 0, "`what` the faults and the requests are drawn from; 0 draws it, too")
	flags.StringVar(&o.report, "report", "proof/report.md", "write the report to this `file`")
	flags.DurationVar(&o.every, "every", 5*time.Second, "say what goes on once in `so long`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.duration < time.Second || o.every <= 0 || o.report == "" {
		err := errors.New("prove: no arguments but flags; -duration at least 1s, -every more than 0, -report a file")
		_, _ = fmt.Fprintln(stderr, err)
		return o, err
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	return o, nil
}

// prove is the whole program; it returns the exit code.
func prove(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return clean
	case err != nil:
		return misused
	}
	r := newRun(o, stdout)
	r.say("prove for %s, seed %d: make prove DURATION=%s SEED=%d", o.duration, o.seed, o.duration, o.seed)
	if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
		_, _ = fmt.Fprintln(stderr, "prove:", err)
		return unclean
	}
	if r.world, err = newWorld(ctx, stderr); err != nil {
		_, _ = fmt.Fprintln(stderr, "prove:", err)
		return unclean
	}
	r.hold(ctx)
	isClean := r.found.clean()
	if err := r.world.close(!isClean); err != nil {
		_, _ = fmt.Fprintln(stderr, "prove:", err)
	}
	report := r.report()
	r.say("\n%s", report)
	if err := os.WriteFile(o.report, []byte(report), 0o644); err != nil {
		_, _ = fmt.Fprintln(stderr, "prove:", err)
		return unclean
	}
	r.say("kept in %s", o.report)
	if !isClean {
		r.say("logs and data stay in %s; remove it when nobody needs it", r.world.home)
		return unclean
	}
	return clean
}
