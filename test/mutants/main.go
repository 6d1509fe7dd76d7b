// Mutants checks that the tests notice bugs: it plants one bug at a time and requires the test
// named for it to fail.
//
//	go run ./test/mutants                all of them (make mutants)
//	go run ./test/mutants --only lock    those with a matching file name
//
// A mutant is a file NNN-name.patch in this folder: two header lines, then a unified diff against
// SQL or Go.
//
//	Title: The row lock is dropped
//	Test: ./db TestIsolation
//
// The second line is a package and a test; a subtest follows after a slash, exactly as in the
// test's source.
//
// The mutant must build, and the test must fail by an assertion: a compile error, a time-out or a
// crash of the test itself does not count. All named tests must pass without a patch first. A patch
// that does not apply is a failure.
//
// Each mutant is planted in a fresh copy of the working tree, uncommitted changes included, so
// nothing that a test leaves behind (a fail file that rapid replays, for example) reaches another
// one. An overlay of go build would not do: some tests read SQL files when they run. All share one
// PostgreSQL server made for the run.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"scalable-coupon-system/internal/pgtest"
)

type options struct {
	Only    *regexp.Regexp `default:"." placeholder:"REGEXP" help:"Run only the mutants with a matching file name."`
	Workers int            `default:"${workers}" help:"How many mutants are tried at the same time."`
}

func main() {
	var o options
	// More than there are CPUs, because many tests of mutants only wait.
	kong.Parse(&o, kong.Name("mutants"), kong.Description("Plants bugs and requires their tests to fail."),
		kong.Vars{"workers": fmt.Sprint(2 * runtime.NumCPU())})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.Workers < 1 {
		return fmt.Errorf("--workers %d: at least 1", o.Workers)
	}
	mutants, err := readMutants("test/mutants", o.Only)
	if err != nil {
		return err
	}
	database, stopServer, err := pgtest.Local(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	home, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()

	started := time.Now()
	r, err := newRunner(ctx, ".", home, database, o.Workers)
	if err != nil {
		return err
	}
	if err := r.baseline(ctx, mutants); err != nil {
		return err
	}
	printf("the named tests pass without a patch (%s)", time.Since(started).Round(time.Second))

	var running errgroup.Group
	running.SetLimit(o.Workers)
	var missed atomic.Int32
	for _, m := range mutants {
		running.Go(func() error {
			begun := time.Now()
			problem, output := r.try(ctx, m)
			printf("%-8s %5.1f s  %s", cmp.Or(problem, "caught"), time.Since(begun).Seconds(), m.name)
			if problem != "" {
				missed.Add(1)
				printf("%s\n%s", m.title, output)
			}
			return ctx.Err()
		})
	}
	if err := running.Wait(); err != nil {
		return err
	}
	printf("\n%d mutants, %d not caught, in %s", len(mutants), missed.Load(), time.Since(started).Round(time.Second))
	if missed.Load() > 0 {
		return errors.New("some mutants were not caught")
	}
	return nil
}

// printf prints a line to standard output.
func printf(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
