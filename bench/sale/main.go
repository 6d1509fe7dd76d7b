// Sale runs a flash sale against a running service: many users claim a coupon with too little
// stock, all at once or at a rate, and every answer is checked. It knows only the HTTP contract of
// the service.
//
//	make sale ARGS='--users 50000 --stock 1000'
//	go run ./bench/sale --rate 5000 --plot sale.svg http://127.0.0.1:8080
//
// In a terminal it draws the progress of the sale. Elsewhere (a file, a pipe, CI) it prints a line
// per second.
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

	"github.com/charmbracelet/colorprofile"

	"scalable-coupon-system/bench/check"
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
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	exit := func(status int, format string, args ...any) int {
		_, _ = fmt.Fprintf(stderr, format+"\n", args...)
		return status
	}
	o, err := parse(ctx, args, stdout)
	if errors.Is(err, errHelp) {
		return exitPass
	}
	if err != nil {
		return exit(exitUsage, "%v\nsee --help", err)
	}
	result, err := runSale(ctx, o, stdout)
	switch {
	case errors.Is(err, load.ErrCouponExists):
		return exit(exitUsage, "%v\nuse another --coupon, or none", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return exit(exitFail, "%v\nstart the service first: make run", err)
	case err != nil:
		return exit(exitFail, "%v", err)
	case !result.OK():
		return exitFail
	}
	return exitPass
}

// runSale creates the coupon, runs the sale, shows its progress, and checks the answers against
// what the service reports.
func runSale(ctx context.Context, o options, stdout io.Writer) (check.Result, error) {
	out := colorprofile.NewWriter(stdout, os.Environ())

	s := newSale(o)
	service := load.Service{Address: o.address, Timeout: time.Minute}
	if err := service.Create(ctx, o.Coupon, o.Stock); err != nil {
		return check.Result{}, fmt.Errorf("create the coupon: %w", err)
	}
	limited, stop := context.WithTimeout(ctx, o.Duration)
	defer stop()
	if err := s.start(limited); err != nil {
		return check.Result{}, err
	}
	if isInteractive(stdout) {
		if err := s.drawProgress(os.Stdin, stdout, out.Profile, stop); err != nil {
			return check.Result{}, err
		}
	} else {
		_, _ = fmt.Fprintf(out, "%s\n", o.describe())
		s.printProgress(out)
	}
	report := s.run.Wait()
	stopped := ""
	switch limited.Err() {
	case context.Canceled:
		stopped = "stopped by the user"
	case context.DeadlineExceeded:
		stopped = "stopped after " + o.Duration.String() + " (--duration)"
	}

	// Not with ctx: a sale that was stopped by Ctrl-C is checked too.
	reported, err := service.Coupon(context.WithoutCancel(ctx), o.Coupon)
	if err != nil {
		_, _ = fmt.Fprint(out, s.summary(report, stopped, nil))
		return check.Result{}, fmt.Errorf("answers not checked: read the coupon: %w", err)
	}
	result := s.checker.Check(reported)
	_, _ = fmt.Fprint(out, s.summary(report, stopped, &result))
	if o.Plot != "" {
		if err := s.writeChart(o.Plot); err != nil {
			return result, fmt.Errorf("write the chart: %w", err)
		}
	}
	return result, nil
}
