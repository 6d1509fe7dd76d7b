// Mutants proves that the tests would notice a bug: it plants bugs, one at a time, and wants each to be caught by the test that
// is named for it.
//
//	go run ./test/mutants               all of them (make mutants)
//	go run ./test/mutants -only lock    those whose file's name matches
//
// A mutant is a file NN-name.patch in this folder: two lines of header, then a unified diff against SQL or Go.
//
//	Title: The row lock is dropped
//	Test: ./db TestIsolation
//
// The test is a package and a name; a subtest follows after a slash, in the words of its source. It is not enough that the test
// ends badly. The mutant must build, and the test must fail by what it asserts: a time-out, a compile error or a crash of the
// test's own catches nothing. All the named tests must pass without any patch, or the run is worth nothing; and a patch that
// applies no more is a failure as well.
//
// Everything happens in copies of the working tree, uncommitted changes included, against one PostgreSQL that is made for the
// run. The table of who caught what goes to -doc, when all mutants were tried and caught.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"scalable-coupon-system/internal/localpg"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	only := flags.String("only", "", "try the mutants whose file's name matches this regular `expression`")
	doc := flags.String("doc", "docs/mutants.md", "write the table to this `file`; '' writes none")
	workers := flags.Int("workers", 2, "try so many mutants at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	mutants, err := readMutants("test/mutants", wanted)
	if err != nil {
		return err
	}

	// Short, because the path of a unix socket is; open, because PostgreSQL runs as another user when we are root.
	home, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	if err := os.Chmod(home, 0o755); err != nil {
		return err
	}
	server, err := localpg.Start(ctx, localpg.Options{
		Dir: filepath.Join(home, "postgres"),
		Log: os.Stderr,
		// As internal/pgtest does with a server of its own: what is on disk after a crash matters to nobody.
		Settings: map[string]string{"fsync": "off", "full_page_writes": "off", "max_connections": "300"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Kill() }()

	started := time.Now()
	trees := make(chan tree, *workers)
	for i := range *workers {
		t := tree{dir: filepath.Join(home, fmt.Sprint("tree-", i)), database: server.URL("postgres")}
		if err := t.copy(ctx); err != nil {
			return err
		}
		trees <- t
	}

	// The first tree, untouched yet.
	t := <-trees
	if err := t.sane(ctx, mutants); err != nil {
		return err
	}
	trees <- t
	say("the named tests are green without a patch (%s)", time.Since(started).Round(time.Second))

	verdicts := make([]verdict, len(mutants))
	var trying errgroup.Group
	trying.SetLimit(*workers)
	for i, m := range mutants {
		trying.Go(func() error {
			t := <-trees
			defer func() { trees <- t }()
			verdicts[i] = t.try(ctx, m)
			say("%-8s %5.1f s  %s", verdicts[i].word(), verdicts[i].took.Seconds(), m.name)
			return ctx.Err()
		})
	}
	if err := trying.Wait(); err != nil {
		return err
	}

	failed := 0
	for i, v := range verdicts {
		if !v.caught() {
			failed++
			say("\n%s: %s\n%s", mutants[i].name, v.word(), v.output)
		}
	}
	say("\n%d mutants, %d caught, in %s", len(mutants), len(mutants)-failed, time.Since(started).Round(time.Second))
	if failed > 0 {
		return fmt.Errorf("%d of %d mutants were not caught", failed, len(mutants))
	}
	if *doc == "" || *only != "" {
		return nil
	}
	return writeTable(*doc, mutants, verdicts)
}

// say writes a line for whoever watches.
func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, format+"\n", args...) }
