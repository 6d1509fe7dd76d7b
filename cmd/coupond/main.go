// Command coupond is the coupon service and everything needed to run it: one binary that serves, brings a database up to
// date, checks the health of a running service, and starts a private PostgreSQL for whoever wants to try it.
//
// This package only wires: what a claim is stands in db, how PostgreSQL is asked in pgstore, what HTTP answers in api.
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
	// The first signal asks for a clean end. From then on signals have their default effect again, so a second one ends the
	// process at once, whatever it hangs on.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// The exit codes. 0 is success.
const (
	exitFailure = 1 // what was asked for did not work
	exitUsage   = 2 // what was asked for makes no sense: an unknown flag, a wrong setting
)

// run does all that the process does, and returns its exit code. It ends early and cleanly when ctx is done.
// args are the arguments without the program's name, environ is a list of NAME=value. Results go to stdout, the log and
// errors to stderr; each may be a terminal.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	cmd := newRootCommand(environment(env.ToMap(environ)), stdout, stderr)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "coupond: %s\n", err) // there is nobody left to tell that stderr is closed
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailure
}

// usageError is the fault of whoever typed the command or set the environment: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
