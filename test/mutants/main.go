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
// Mutants are planted in copies of the working tree, uncommitted changes included. A copy is
// restored after each mutant, so nothing that a test leaves behind (a fail file that rapid replays,
// for example) reaches another one. All share one PostgreSQL server made for the run.
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
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"scalable-coupon-system/internal/pgtest"
)

type options struct {
	Only    *regexp.Regexp `placeholder:"REGEXP" help:"Run only the mutants with a matching file name."`
	List    bool           `help:"List the mutants and run none."`
	Workers int            `default:"${cpus}" help:"How many mutants are built at the same time. Twice as many may run."`
}

func main() {
	var o options
	kong.Parse(&o, kong.Name("mutants"), kong.Description("Plants bugs and requires their tests to fail."),
		kong.Vars{"cpus": fmt.Sprint(runtime.NumCPU())})
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
	if o.List {
		for _, m := range mutants {
			_, _ = fmt.Fprintf(os.Stdout, "%-45s %s: %s in %s\n", m.name, m.title, m.test, m.pkg)
		}
		return nil
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
	r, err := newRunner(ctx, ".", home, o.Workers)
	if err != nil {
		return err
	}
	r.database = database
	if err := r.baseline(ctx, mutants); err != nil {
		return err
	}
	printf("the named tests pass without a patch (%s)", time.Since(started).Round(time.Second))

	results := make([]result, len(mutants))
	var running errgroup.Group
	running.SetLimit(cap(r.trees))
	for i, m := range mutants {
		running.Go(func() error {
			begun := time.Now()
			results[i] = r.try(ctx, m)
			printf("%-8s %5.1f s  %s", cmp.Or(results[i].problem, "caught"), time.Since(begun).Seconds(), m.name)
			return ctx.Err()
		})
	}
	if err := running.Wait(); err != nil {
		return err
	}

	failed := 0
	for i, result := range results {
		if result.problem != "" {
			failed++
			printf("\n%s: %s\n%s", mutants[i].name, result.problem, result.output)
		}
	}
	printf("\n%d mutants, %d caught, in %s", len(mutants), len(mutants)-failed, time.Since(started).Round(time.Second))
	if failed > 0 {
		return fmt.Errorf("%d of %d mutants were not caught", failed, len(mutants))
	}
	return nil
}

// printf prints a line to standard output.
func printf(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
