// Faults runs the real service on a real PostgreSQL server under load, injects faults, and checks
// every answer against a model and against the stored state.
//
//	make faults DURATION=10m SEED=7
//	go run ./test/faults --duration 45s --seed 1 --only "storm|locked"
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
// with the tables. Some faults are other clients, or a lock on coupons of other clients
// (otherclients.go), which must not slow down the others much. No instance may use more memory than
// a container of 512 MiB has.
//
// The exit status is 0 if there are no violations. A failed run keeps its logs and its database,
// and prints where they are.
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
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

type options struct {
	Duration time.Duration  `default:"1m" help:"How long to inject faults."`
	Seed     uint64         `help:"Seed of the faults and the requests; 0 takes one from the clock."`
	Only     *regexp.Regexp `default:"." placeholder:"REGEXP" help:"Inject only faults with a matching name."`
	Report   string         `default:"faults/report.md" help:"Write the report to this file."`
}

func main() {
	var o options
	command := kong.Parse(&o, kong.Name("faults"), kong.Description("Injects faults into a running service and checks all answers."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, o, os.Stdout)
	stop()
	command.FatalIfErrorf(err)
}

var errViolations = errors.New("there are violations")

func run(ctx context.Context, o options, out io.Writer) (err error) {
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	t := newFaultTest(o, out)
	t.printf("make faults DURATION=%s SEED=%d", o.Duration, o.Seed)
	if err := os.MkdirAll(filepath.Dir(o.Report), 0o755); err != nil {
		return err
	}
	if err := t.env.start(ctx, os.Stderr); err != nil {
		return errors.Join(err, t.env.close(false))
	}
	t.run(ctx)
	clean := len(t.violations) == 0
	err = t.env.close(!clean)
	report := t.report()
	_, _ = fmt.Fprintf(out, "\n%s\n", report)
	err = errors.Join(err, os.WriteFile(o.Report, []byte(report), 0o644))
	t.printf("report: %s", o.Report)
	if !clean {
		t.printf("logs and data are kept in %s; remove it when you do not need it any more", t.env.home)
		err = errors.Join(err, errViolations)
	}
	return err
}
