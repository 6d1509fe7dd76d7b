// Sale runs a flash sale against a running service: many users claim a coupon with too little
// stock, all at once or at a rate, and every answer is checked. It knows only the HTTP contract of
// the service.
//
//	make sale ARGS='--users 50000 --stock 1000'
//	go run ./bench/sale --rate 5000 --plot sale.svg http://127.0.0.1:8080
//
// In a terminal it redraws the progress of the sale. Elsewhere (a file, a pipe, CI) it prints a
// line per second.
//
// A user without a definite answer (503, a broken connection, a time-out) retries, as the contract
// recommends, and so learns what the lost request did. So the check is exact even if the service is
// overloaded, restarted or disconnected meanwhile; see package check.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/charmbracelet/colorprofile"

	"scalable-coupon-system/bench/load"
)

// Exit statuses.
const (
	exitPass  = 0
	exitFail  = 1
	exitUsage = 2
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its inputs and outputs as arguments. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	var o options
	help := false
	parser, err := kong.New(&o, kong.Name("sale"), kong.Description(description), kong.Writers(stdout, stderr), kong.Exit(func(int) { help = true }))
	if err == nil {
		_, err = parser.Parse(args)
	}
	switch {
	case help:
		return exitPass
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "%v\nsee --help\n", err)
		return exitUsage
	}

	passed, err := runSale(ctx, stop, o, stdout)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("%w\nstart the service first: make run", err)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
	}
	if err != nil || !passed {
		return exitFail
	}
	return exitPass
}

// runSale creates the coupon, runs the sale, shows its progress, and checks the answers against
// what the service reports. It calls restoreSignals when ctx or the time of the sale has ended.
func runSale(ctx context.Context, restoreSignals func(), o options, stdout io.Writer) (passed bool, err error) {
	s := newSale(o)
	service := load.Service{Address: o.address, Timeout: time.Minute}
	if err := service.Create(ctx, s.coupon, o.Stock); err != nil {
		return false, fmt.Errorf("create the coupon: %w", err)
	}
	limited, stop := context.WithTimeoutCause(ctx, o.Duration, fmt.Errorf("after %v (--duration)", o.Duration))
	defer stop()
	context.AfterFunc(limited, restoreSignals) // the next Ctrl-C ends the process at once
	if err := s.start(limited); err != nil {
		return false, err
	}
	out := colorprofile.NewWriter(stdout, os.Environ())
	s.showProgress(limited, out, func() int { return terminalWidth(stdout) })
	stopped := context.Cause(limited)

	// Not with ctx: a sale that was stopped by Ctrl-C is checked too.
	reported, err := service.Coupon(context.WithoutCancel(ctx), s.coupon)
	if err != nil {
		_, _ = fmt.Fprint(out, s.summary(stopped, nil))
		return false, fmt.Errorf("answers not checked: read the coupon: %w", err)
	}
	result := s.checker.Check(reported)
	_, _ = fmt.Fprint(out, s.summary(stopped, &result))
	if o.Plot != "" {
		if err := s.writeChart(o.Plot); err != nil {
			return false, fmt.Errorf("write the chart: %w", err)
		}
	}
	return result.OK(), nil
}
