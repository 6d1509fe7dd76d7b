// Sale runs a flash sale against a running service: many users claim a coupon with too little
// stock, all at once or at a rate, and every answer is checked. It knows only the HTTP contract of
// the service.
//
//	make sale ARGS='--users 50000 --stock 1000'
//	go run ./bench/sale --rate 5000 --plot sale.svg http://127.0.0.1:8080
//
// # A session
//
// In a terminal it draws the progress of the sale. Elsewhere (a file, a pipe, CI) it prints a line
// per second. During this sale the service and its PostgreSQL were killed with SIGKILL after two
// seconds and started again a second later:
//
//	$ go run ./bench/sale --users 5000 --stock 1000 --rate 500
//	5,000 users (5 % twice) for 1,000 coupons · 128 connections · 500 per second
//	…
//
//	  5,000 users (5 % twice) for 1,000 coupons · 128 connections · 500 per second
//	  coupon sale-20261123-013256.152 · seed 1
//
//	         991  201 claimed
//	          95  409 already claimed
//	       4,164  400 out of stock
//	           0  503 retried
//	       1,043  no answer: 896 NOT_SENT, 147 CUT
//	       5,250  claims answered in 10.48 s: 500 per second  ▂▂▂▂▁▁▁█▇▃▃▃▃▃▃▃▃▃▃▃▃
//
//	  latency  p50 7.40 ms   p99 1.54 s   p99.9 1.56 s   longest 1.56 s
//	  error: connection ended before the answer
//	  error: not sent: dial tcp 127.0.0.1:8080: connect: connection refused
//
//	  ✓ exactly 1,000 users won
//	  ✓ no user won twice
//	  ✓ every user got a definite answer
//	  ✓ no answer contradicts another
//	  ✓ the service reports the same winners
//	    147 users got an ambiguous answer: 9 had won, 138 had not, 0 are unresolved
//
//	  PASS
//
// 991 users got 201. Nine more had won, but the answer was lost, and they learned it from the 409
// to their retry.
//
// # The check
//
// Package check checks the answers to each user. A user without a definite answer (503, a broken
// connection, a time-out) retries, as the contract recommends, and so learns what the lost request
// did. The check is therefore exact even if the service is overloaded, restarted or disconnected
// meanwhile.
//
// The exit status is 0 if every check passed, 1 if one failed or the sale could not be run, and 2
// if the command line is wrong.
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
	"github.com/spf13/pflag"

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
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, os.Environ()))
}

// run is main with its inputs and outputs as arguments. It returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	o, err := parse(ctx, args, time.Now(), stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return exitPass
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "%v\nsee --help\n", err)
		return exitUsage
	}
	result, err := runSale(ctx, o, stdout, environ)
	switch {
	case errors.Is(err, load.ErrCouponExists):
		_, _ = fmt.Fprintf(stderr, "%v\nuse another --coupon, or none\n", err)
		return exitUsage
	case err != nil:
		_, _ = fmt.Fprintln(stderr, err)
		return exitFail
	case !result.OK():
		return exitFail
	}
	return exitPass
}

// runSale creates the coupon, runs the sale, shows its progress, and checks the answers against
// what the service reports.
func runSale(ctx context.Context, o options, stdout io.Writer, environ []string) (check.Result, error) {
	profile := colorprofile.Detect(stdout, environ)
	if o.noColor {
		profile = min(profile, colorprofile.ASCII)
	}
	out := &colorprofile.Writer{Forward: stdout, Profile: profile}

	s := newSale(o)
	service := load.Service{Address: o.address, Timeout: time.Minute}
	if err := service.Create(ctx, o.coupon, o.stock); err != nil {
		return check.Result{}, fmt.Errorf("create the coupon: %w", err)
	}
	limited, stop := context.WithTimeout(ctx, o.duration)
	defer stop()
	if err := s.start(limited); err != nil {
		return check.Result{}, err
	}
	if isInteractive(stdout, environ) {
		if err := s.drawProgress(os.Stdin, stdout, profile, stop); err != nil {
			return check.Result{}, err
		}
	} else {
		_, _ = fmt.Fprintf(out, "%s\n", o.describe())
		s.printProgress(out)
	}
	report := s.run.Wait()
	stopped := ""
	switch {
	case ctx.Err() != nil || errors.Is(limited.Err(), context.Canceled):
		stopped = "stopped by the user"
	case limited.Err() != nil:
		stopped = "stopped after " + o.duration.String() + " (--duration)"
	}

	// Not with ctx: a sale that was stopped by Ctrl-C is checked too.
	reported, err := service.Coupon(context.WithoutCancel(ctx), o.coupon)
	if err != nil {
		_, _ = fmt.Fprint(out, summary(&o, report, &s.series, stopped, nil))
		return check.Result{}, fmt.Errorf("answers not checked: read the coupon: %w", err)
	}
	result := s.checker.Check(reported)
	_, _ = fmt.Fprint(out, summary(&o, report, &s.series, stopped, &result))
	if o.plot != "" {
		if err := writeChart(&o, &s.series, o.plot); err != nil {
			return result, fmt.Errorf("write the chart: %w", err)
		}
	}
	return result, nil
}
