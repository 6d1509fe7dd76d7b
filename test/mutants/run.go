package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// testTimeout bounds the tests of one run of a test binary.
	testTimeout = 5 * time.Minute
	// buildTimeout bounds the build of one test binary with an empty build cache.
	buildTimeout = 5 * time.Minute
	// waitTimeout is that of internal/wait. It is shorter than by default, because a mutant often
	// makes a test wait in vain. The tests must pass with it, too.
	waitTimeout = 20 * time.Second
)

// runner runs tests in copies of the working tree. There are more copies than builds at the same
// time: a build takes CPU time, but many tests of mutants only wait.
type runner struct {
	database string        // TEST_DATABASE_URL
	trees    chan string   // the copies that are not in use
	builds   chan struct{} // a token for each build in progress
}

// newRunner copies the working tree of the git repository source into folders of home.
func newRunner(ctx context.Context, source, home string, workers int) (*runner, error) {
	r := &runner{trees: make(chan string, 2*workers), builds: make(chan struct{}, workers)}
	for i := range cap(r.trees) {
		dir := filepath.Join(home, fmt.Sprint("tree-", i))
		if err := r.copyWorkingTree(ctx, source, dir); err != nil {
			return nil, err
		}
		r.trees <- dir
	}
	return r, nil
}

// copyWorkingTree makes dir a repository with the files of source that are committed or could be,
// as they are now. It leaves out the fail files of rapid, which that library replays before it
// draws anything.
func (r *runner) copyWorkingTree(ctx context.Context, source, dir string) error {
	git := "--git-dir=" + filepath.Join(dir, ".git")
	for _, args := range [][]string{
		{"init", "--quiet", dir},
		{git, "--work-tree=.", "add", "--all", "--", ".", ":(exclude,glob)**/testdata/rapid/**"},
		{git, "--work-tree=" + dir, "checkout-index", "--all"},
	} {
		if output, err := r.command(ctx, buildTimeout, source, "", "git", args...); err != nil {
			return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, output)
		}
	}
	return nil
}

// inCopy calls f with a copy, and then restores the copy.
func (r *runner) inCopy(ctx context.Context, f func(dir string) error) error {
	dir := <-r.trees
	defer func() { r.trees <- dir }()
	err := f(dir)
	for _, args := range [][]string{{"checkout", "--quiet", "--", "."}, {"clean", "--quiet", "-ffdx"}} {
		if output, failed := r.command(context.WithoutCancel(ctx), buildTimeout, dir, "", "git", args...); failed != nil {
			err = errors.Join(err, fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), failed, output))
		}
	}
	return err
}

// command runs a program in dir. It returns the output of both streams.
func (r *runner) command(ctx context.Context, timeout time.Duration, dir, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	// CI: internal/pgtest keeps no database of a failed test.
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+r.database, "CI=true", "TEST_WAIT="+waitTimeout.String())
	cmd.WaitDelay = 10 * time.Second
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// testBinary is built in the folder of its package.
const testBinary = "mutant.test"

// build builds the test binary of pkg in a copy, as cheaply as possible: for no debugger, without
// inlining and vet, and with less garbage collection in compiler and linker. With -trimpath the
// copies share the build cache.
func (r *runner) build(ctx context.Context, dir, pkg string) (string, error) {
	r.builds <- struct{}{}
	defer func() { <-r.builds }()
	return r.command(ctx, buildTimeout, dir, "", "env", "GOGC=400", "go", "test", "-c", "-o", filepath.Join(pkg, testBinary),
		"-trimpath", "-buildvcs=false", "-vet=off", "-gcflags=-l -dwarf=false", "-ldflags=-s -w", pkg)
}

// test runs the tests of pkg that expression selects. They were built by build.
func (r *runner) test(ctx context.Context, dir, pkg, expression string, flags ...string) (string, error) {
	dir = filepath.Join(dir, pkg)
	flags = append(flags, "-test.run="+expression, "-test.timeout="+testTimeout.String())
	return r.command(ctx, testTimeout+time.Minute, dir, "", filepath.Join(dir, testBinary), flags...)
}

// baseline checks that the tests of all mutants exist and pass without a patch.
func (r *runner) baseline(ctx context.Context, mutants []mutant) error {
	packages := map[string][]mutant{}
	for _, m := range mutants {
		packages[m.pkg] = append(packages[m.pkg], m)
	}
	running, ctx := errgroup.WithContext(ctx)
	running.SetLimit(cap(r.trees))
	for pkg, mutants := range packages {
		running.Go(func() error {
			return r.inCopy(ctx, func(dir string) error {
				if output, err := r.build(ctx, dir, pkg); err != nil {
					return fmt.Errorf("%s does not build without a patch: %w\n%s", pkg, err, output)
				}
				var expressions []string
				for _, m := range mutants {
					expressions = append(expressions, m.expression())
				}
				output, err := r.test(ctx, dir, pkg, strings.Join(expressions, "|"), "-test.v")
				if err != nil {
					return fmt.Errorf("the tests of %s fail without a patch: %w\n%s", pkg, err, output)
				}
				for _, m := range mutants {
					// A test passes if the selected subtest does not exist.
					if !strings.Contains(output, "--- PASS: "+m.nameInOutput()+" ") {
						return fmt.Errorf("%s has no test %s that passes:\n%s", pkg, m.test, output)
					}
				}
				return nil
			})
		})
	}
	return running.Wait()
}

// result is the result of one mutant.
type result struct {
	problem string // why it was not caught; "" if it was
	output  string // of the command that failed, or of the test
}

// try plants a bug in a copy and runs the test that must catch it.
func (r *runner) try(ctx context.Context, m mutant) (res result) {
	err := r.inCopy(ctx, func(dir string) error {
		res = r.tryIn(ctx, dir, m)
		return nil
	})
	if err != nil {
		return result{"the copy was not restored", err.Error()}
	}
	return res
}

func (r *runner) tryIn(ctx context.Context, dir string, m mutant) result {
	if output, err := r.command(ctx, buildTimeout, dir, m.diff, "git", "apply"); err != nil {
		return result{"does not apply", output}
	}
	if err := leaveOnly(filepath.Join(dir, m.pkg), m.function()); err != nil {
		return result{"no other test can be left out", err.Error()}
	}
	if output, err := r.build(ctx, dir, m.pkg); err != nil {
		return result{"does not build", output}
	}
	output, err := r.test(ctx, dir, m.pkg, m.expression())
	return result{evaluate(m, output, err != nil), output}
}

// testFunction matches the first line of a test, a benchmark or a fuzz test.
var testFunction = regexp.MustCompile(`(?m)^func (\w+)\(\w+ \*testing\.[TBF]\) \{$`)

// leaveOnly makes all tests in a folder but one return at once. The compiler still checks the rest
// of them but generates no code for it, which halves the time of a build.
func leaveOnly(dir, function string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text = testFunction.ReplaceAllFunc(text, func(line []byte) []byte {
			if string(testFunction.FindSubmatch(line)[1]) == function {
				return line
			}
			return slices.Concat(line, []byte(" return"))
		})
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// assertion matches the first line of a failed assertion. A testing/synctest bubble in which all
// goroutines are blocked panics: that is the assertion of a test that something does not block.
var assertion = regexp.MustCompile(`(?m)^( +\w+\.go:\d+: |panic: deadlock: )`)

// logLine matches a log line of the service, which tests write with t.Log.
var logLine = regexp.MustCompile(`(?m)^ +\w+\.go:\d+: \{"level".*$`)

// evaluate decides from the output of a mutant's test why the mutant was not caught; "" if it was.
func evaluate(m mutant, output string, failed bool) (problem string) {
	switch {
	case !failed:
		return "SURVIVED"
	case !strings.Contains(output, "--- FAIL: "+m.function()+" "):
		return "ended without a failed test"
	case strings.Contains(output, "panic: test timed out"):
		return "timed out"
	case !assertion.MatchString(logLine.ReplaceAllString(output, "")):
		return "failed without a failed assertion"
	}
	return ""
}
