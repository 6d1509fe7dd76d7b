// Attack is the flash sale as a show, on any running service: a crowd arrives all at once (or at a rate), asks for a
// coupon of which there are far too few, and every answer is checked. It knows nothing of the service but its HTTP
// contract.
//
//	make attack ARGS='-users 50000 -stock 1000'
//	go run ./bench/attack -rate 5000 -plot sale.svg http://127.0.0.1:8080
//
// # EXAMPLE-SESSION
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

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/load/books"
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
	case !verdict.Kept():
		return notExact
	}
	return exact
}

// hold holds the sale: it creates the coupon, lets the crowd loose, shows what goes on, asks what the service reports
// and reads the verdict out.
func hold(ctx context.Context, o options, stdout io.Writer, environ []string) (books.Verdict, error) {
	profile := colorprofile.Detect(stdout, environ)
	if o.noColor {
		profile = min(profile, colorprofile.ASCII)
	}
	out := &colorprofile.Writer{Forward: stdout, Profile: profile}

	s := prepare(o)
	service := load.Service{Address: o.address, Timeout: time.Minute}
	if err := service.Create(ctx, o.coupon, o.stock); err != nil {
		return books.Verdict{}, fmt.Errorf("no coupon, no sale: %w", err)
	}
	selling, stop := context.WithTimeout(ctx, o.duration)
	defer stop()
	if err := s.open(selling); err != nil {
		return books.Verdict{}, err
	}
	if live(stdout, environ) {
		if err := s.watchTerminal(os.Stdin, stdout, profile, stop); err != nil {
			return books.Verdict{}, err
		}
	} else {
		_, _ = fmt.Fprintf(out, "%s\n", o.describe())
		s.watchLines(out)
	}
	report := s.run.Wait()

	// Not ctx: a sale stopped by Ctrl-C gets its verdict as well.
	reported, err := service.Coupon(context.WithoutCancel(ctx), o.coupon)
	if err != nil {
		_, _ = fmt.Fprint(out, table(&o, report, &s.seen, nil))
		return books.Verdict{}, fmt.Errorf("no verdict, the coupon cannot be read: %w", err)
	}
	verdict := s.book.Compare(reported)
	_, _ = fmt.Fprint(out, table(&o, report, &s.seen, &verdict))
	if o.plot != "" {
		if err := draw(&o, &s.seen, o.plot); err != nil {
			return verdict, fmt.Errorf("no picture: %w", err)
		}
	}
	return verdict, nil
}
