package main

import (
	"context"
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

// runner runs tests in copies of the working tree.
type runner struct {
	source   string // the folder of the working tree
	home     string // the folder of the copies
	database string // TEST_DATABASE_URL
	limit    int    // of copies at the same time
}

// newRunner makes a repository in home, with the files of the working tree source that are
// committed or could be, as they are now. It leaves out the fail files of rapid, which that library
// replays before it draws anything.
func newRunner(ctx context.Context, source, home, database string, limit int) (*runner, error) {
	r := &runner{source, home, database, limit}
	err := r.git(ctx, "init", "--quiet")
	if err == nil {
		err = r.git(ctx, "add", "--all", "--", ".", ":(exclude,glob)**/testdata/rapid/**")
	}
	return r, err
}

// git runs git in the working tree, with the repository in home.
func (r *runner) git(ctx context.Context, args ...string) error {
	args = append([]string{"--git-dir=" + filepath.Join(r.home, "git"), "--work-tree=."}, args...)
	if output, err := r.command(ctx, r.source, "", "git", args...); err != nil {
		return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, output)
	}
	return nil
}

// copyTo copies the working tree to dir, which is created.
func (r *runner) copyTo(ctx context.Context, dir string) error {
	return r.git(ctx, "checkout-index", "--all", "--prefix="+dir+"/")
}

// test runs the tests of pkg that expression selects, in a copy. The build is as cheap as possible:
// for no debugger, without inlining and vet, and with less garbage collection in compiler and
// linker. With -trimpath the copies share the build cache.
func (r *runner) test(ctx context.Context, dir, pkg, expression string, flags ...string) (string, error) {
	args := append([]string{"GOGC=400", "go", "test", "-exec=env GOGC=100", "-count=1", "-timeout=5m", "-run=" + expression,
		"-trimpath", "-vet=off", "-gcflags=-l -dwarf=false", "-ldflags=-s -w"}, flags...)
	return r.command(ctx, dir, "", "env", append(args, pkg)...)
}

// command runs a program in dir. It returns the output of both streams.
func (r *runner) command(ctx context.Context, dir, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	// CI: internal/pgtest keeps no database of a failed test. TEST_WAIT is the time-out of
	// internal/wait: shorter than by default, because a mutant often makes a test wait in vain.
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+r.database, "CI=true", "TEST_WAIT=20s")
	cmd.WaitDelay = 10 * time.Second
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// baseline checks that the tests of all mutants exist and pass without a patch.
func (r *runner) baseline(ctx context.Context, mutants []mutant) error {
	packages := map[string][]mutant{}
	for _, m := range mutants {
		packages[m.pkg] = append(packages[m.pkg], m)
	}
	dir := filepath.Join(r.home, "baseline")
	defer func() { _ = os.RemoveAll(dir) }() // home is removed at the end
	if err := r.copyTo(ctx, dir); err != nil {
		return err
	}
	running, ctx := errgroup.WithContext(ctx)
	running.SetLimit(r.limit)
	for pkg, mutants := range packages {
		running.Go(func() error {
			var expressions []string
			for _, m := range mutants {
				expressions = append(expressions, m.expression())
			}
			output, err := r.test(ctx, dir, pkg, strings.Join(expressions, "|"), "-v")
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
	}
	return running.Wait()
}

// try plants a bug and runs the test that must catch it. problem says why it was not caught; it is
// "" if it was. output is that of the command that failed, or of the test.
func (r *runner) try(ctx context.Context, m mutant) (problem, output string) {
	dir := filepath.Join(r.home, m.name)
	defer func() { _ = os.RemoveAll(dir) }() // home is removed at the end
	if err := r.copyTo(ctx, dir); err != nil {
		return "was not planted", err.Error()
	}
	if output, err := r.command(ctx, dir, m.diff, "git", "apply"); err != nil {
		return "does not apply", output
	}
	if err := leaveOnly(filepath.Join(dir, m.pkg), m.function()); err != nil {
		return "was not planted", err.Error()
	}
	output, err := r.test(ctx, dir, m.pkg, m.expression())
	return evaluate(m, output, err != nil), output
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
	case strings.Contains(output, "[build failed]"):
		return "does not build"
	case !strings.Contains(output, "--- FAIL: "+m.function()+" "):
		return "ended without a failed test"
	case strings.Contains(output, "panic: test timed out"):
		return "timed out"
	case !assertion.MatchString(logLine.ReplaceAllString(output, "")):
		return "failed without a failed assertion"
	}
	return ""
}
