// Command coupond is the coupon service and everything needed to run it. One binary serves
// requests, migrates a database, checks the health of a running service, and starts a private
// PostgreSQL for trying the service out.
//
// This package only wires the parts together: db holds the claim logic, pgstore calls it, and api
// serves HTTP.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/caarlos0/env/v11"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		// Caught until the end: when a terminal is closed, SIGHUP may come twice, from the kernel and
		// from the shell.
		ctx, _ = signal.NotifyContext(ctx, syscall.SIGHUP)
	}
	// The first signal starts a graceful shutdown and restores the default handling of SIGINT and
	// SIGTERM, so that a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// Exit codes other than 0, success.
const (
	exitFailure = 1 // the command failed
	exitUsage   = 2 // wrong usage: an unknown flag, an invalid setting
)

// run runs the command line args, without the program's name, and returns the exit code. It shuts
// down gracefully when ctx is done. environ is a list of NAME=value. Results go to stdout, the log
// and errors go to stderr.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	errs := newOutput(stderr)
	defer errs.close()
	cmd := newRootCommand(environment(env.ToMap(environ)), stdout, errs)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(errs, "coupond: %s\n", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// usageError is an error in the command line or the environment. The exit code is exitUsage.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
