// Attack is the flash sale as a show, on any running service: a crowd arrives all at once (or at a rate), asks for a
// coupon of which there are far too few, and every answer is checked. It knows nothing of the service but its HTTP
// contract.
//
//	make attack ARGS='-users 50000 -stock 1000'
//	go run ./bench/sale -rate 5000 -plot sale.svg http://127.0.0.1:8080
//
// # A session
//
// In a terminal it draws the sale while it runs; elsewhere (a file, a pipe, CI) it prints a line a second. This one went
// on while the service and its PostgreSQL were killed with SIGKILL after two seconds, and started again a second later:
//
//	$ go run ./bench/sale -users 5000 -stock 1000 -rate 500
//	5,000 users (5 % twice) for 1,000 coupons · 128 connections · 500 a second
//	   1.0 s    5 %      288/s   201 289   409 1   400 0   503 0   none 0   p50 248 ms   p99 462 ms   p99.9 551 ms
//	   2.0 s   10 %      271/s   201 560   409 2   400 0   503 0   none 0   p50 564 ms   p99 871 ms   p99.9 1.02 s
//	   3.0 s   11 %       32/s   201 592   409 2   400 0   503 0   none 1,043   p50 839 ms   p99 954 ms   p99.9 1.03 s
//	   4.0 s   24 %      516/s   201 991   409 16   400 113   503 0   none 1,043   p50 1.51 s   p99 1.56 s   p99.9 1.56 s
//	   …
//	  10.5 s  100 %      541/s   201 991   409 95   400 4,164   503 0   none 1,043   p50 1.20 ms   p99 57.8 ms   p99.9 62.8 ms
//
//	  5,000 users (5 % twice) for 1,000 coupons · 128 connections · 500 a second
//	  coupon attack-20261123-013256.152 · seed 1
//
//	         991  201 claimed
//	          95  409 already claimed
//	       4,164  400 sold out
//	           0  503 asked again
//	       1,043  no answer: 896 NOT_SENT, 147 CUT
//	       5,250  claims answered in 10.48 s: 500 a second  ▂▂▂▂▁▁▁█▇▃▃▃▃▃▃▃▃▃▃▃▃
//
//	  latency  p50 7.40 ms   p99 1.54 s   p99.9 1.56 s   longest 1.56 s
//	  fault: connection ended before the answer
//	  fault: not sent: dial tcp 127.0.0.1:8080: connect: connection refused
//
//	  ✓ exactly 1,000 won
//	  ✓ nobody won twice
//	  ✓ all 5,000 users were told
//	  ✓ no answer contradicts another
//	  ✓ the service reports the same
//	    147 users left without knowing at first: 9 had won, 138 had not, 0 never found out
//
//	  EXACT
//
// Look at how it ends, not at how fast it was: two cores, shared with other work. Nine of the winners were told only when
// they asked again, by a 409: 991 and 9 are the 1,000.
//
// # The verdict
//
// The promises are checked user by user, see package books. Whoever is left without a clear answer (503, a connection
// cut or silent) asks again, as the contract advises; what his lost request came to is found out that way. So a service
// may be overloaded, restarted or cut off in the middle of it all: the verdict is still about each single user.
//
// It exits with 0 when the sale was exact, 1 when it was not or could not be held, and 2 when the command line is wrong.
package main

import (
	"context"
	"errors"
	"flag"
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

const (
	exact    = 0
	notExact = 1
	misused  = 2
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, os.Environ()))
}

// run is the whole tool; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends the process at once

	o, err := parse(ctx, args, time.Now(), stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exact
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "%v\n-help shows what is allowed\n", err)
		return misused
	}
	verdict, err := hold(ctx, o, stdout, environ)
	switch {
	case errors.Is(err, load.ErrCouponExists):
		_, _ = fmt.Fprintf(stderr, "%v\ngive another -coupon, or none\n", err)
		return misused
	case err != nil:
		_, _ = fmt.Fprintln(stderr, err)
		return notExact
	case !verdict.OK():
		return notExact
	}
	return exact
}

// hold holds the sale: it creates the coupon, lets the crowd loose, shows what goes on, asks what the service reports
// and reads the verdict out.
func hold(ctx context.Context, o options, stdout io.Writer, environ []string) (check.Result, error) {
	profile := colorprofile.Detect(stdout, environ)
	if o.noColor {
		profile = min(profile, colorprofile.ASCII)
	}
	out := &colorprofile.Writer{Forward: stdout, Profile: profile}

	s := prepare(o)
	service := load.Service{Address: o.address, Timeout: time.Minute}
	if err := service.Create(ctx, o.coupon, o.stock); err != nil {
		return check.Result{}, fmt.Errorf("no coupon, no sale: %w", err)
	}
	selling, stop := context.WithTimeout(ctx, o.duration)
	defer stop()
	if err := s.open(selling); err != nil {
		return check.Result{}, err
	}
	if live(stdout, environ) {
		if err := s.watchTerminal(os.Stdin, stdout, profile, stop); err != nil {
			return check.Result{}, err
		}
	} else {
		_, _ = fmt.Fprintf(out, "%s\n", o.describe())
		s.watchLines(out)
	}
	report := s.run.Wait()
	stopped := ""
	switch {
	case ctx.Err() != nil || errors.Is(selling.Err(), context.Canceled):
		stopped = "stopped by hand"
	case selling.Err() != nil:
		stopped = "stopped after " + o.duration.String() + " (-duration)"
	}

	// Not ctx: a sale stopped by Ctrl-C gets its verdict as well.
	reported, err := service.Coupon(context.WithoutCancel(ctx), o.coupon)
	if err != nil {
		_, _ = fmt.Fprint(out, table(&o, report, &s.seen, stopped, nil))
		return check.Result{}, fmt.Errorf("no verdict, the coupon cannot be read: %w", err)
	}
	verdict := s.book.Check(reported)
	_, _ = fmt.Fprint(out, table(&o, report, &s.seen, stopped, &verdict))
	if o.plot != "" {
		if err := draw(&o, &s.seen, o.plot); err != nil {
			return verdict, fmt.Errorf("no picture: %w", err)
		}
	}
	return verdict, nil
}
