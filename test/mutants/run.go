package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// testTimeout bounds one named test. It takes seconds, but a minute if a mutant makes it wait in
	// vain (internal/wait).
	testTimeout = 2 * time.Minute
	// buildTimeout bounds the build of one test binary with an empty build cache.
	buildTimeout = 5 * time.Minute
)

// runner runs tests in copies of a source tree.
type runner struct {
	source   string // the tree without a patch; it is copied and never changed
	home     string // the folder for the copies
	database string // TEST_DATABASE_URL
}

// copyWorkingTree copies the files of the git repository in from that are committed or could be, as
// they are now. It leaves out the fail files of rapid, which that library replays before it draws
// anything.
func copyWorkingTree(ctx context.Context, from, to string) error {
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = from
	paths, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	source, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	target, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	for path := range strings.SplitSeq(strings.Trim(string(paths), "\x00"), "\x00") {
		if strings.Contains(path, "testdata/rapid/") {
			continue
		}
		info, err := source.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed in the working tree only
		}
		if err != nil {
			return err
		}
		text, err := source.ReadFile(path)
		if err != nil {
			return err
		}
		if err := target.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := target.WriteFile(path, text, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// inCopy calls f with a fresh copy of the source tree, and removes the copy with everything that f
// left in it.
func (r runner) inCopy(f func(dir string) error) (err error) {
	dir, err := os.MkdirTemp(r.home, "tree-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Tests that run as another user read files of the tree.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(r.source)); err != nil {
		return err
	}
	return f(dir)
}

// command returns a command that runs in dir, which is in a copy.
func (r runner) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// CI: internal/pgtest keeps no database of a failed test. GIT_CEILING_DIRECTORIES: a copy is not a
	// repository, and git must not look for one above it.
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+r.database, "CI=true", "GIT_CEILING_DIRECTORIES="+r.home)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// baseline checks that the tests of all mutants exist and pass without a patch.
func (r runner) baseline(ctx context.Context, mutants []mutant) error {
	// Tests of a package run together, but each subtest on its own: -run cannot select both.
	tests := map[string][]string{}
	var subtests []mutant
	for _, m := range mutants {
		same := func(other mutant) bool { return other.pkg == m.pkg && other.test == m.test }
		switch {
		case m.function() == m.test && !slices.Contains(tests[m.pkg], m.test):
			tests[m.pkg] = append(tests[m.pkg], m.test)
		case m.function() != m.test && !slices.ContainsFunc(subtests, same):
			subtests = append(subtests, m)
		}
	}
	return r.inCopy(func(dir string) error {
		for pkg, names := range tests {
			if err := r.mustPass(ctx, dir, pkg, "^("+strings.Join(names, "|")+")$", names...); err != nil {
				return err
			}
		}
		for _, m := range subtests {
			if err := r.mustPass(ctx, dir, m.pkg, m.expression(), m.function()); err != nil {
				return err
			}
		}
		return nil
	})
}

// mustPass runs the tests of pkg that expression selects, and checks that the named ones exist and
// pass.
func (r runner) mustPass(ctx context.Context, dir, pkg, expression string, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout+5*testTimeout)
	defer cancel()
	output, err := r.command(ctx, dir, "go", "test", "-trimpath", "-count=1", "-v", "-run", expression, pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the tests of %s fail without a patch: %w\n%s", pkg, err, output)
	}
	for _, name := range names {
		if !bytes.Contains(output, []byte("\n--- PASS: "+name+" ")) {
			return fmt.Errorf("%s has no test %s that passes:\n%s", pkg, name, output)
		}
	}
	// A test passes if the selected subtest does not exist.
	if strings.Contains(expression, "/") && !bytes.Contains(output, []byte("\n    --- PASS: ")) {
		return fmt.Errorf("%s has no test %s:\n%s", pkg, expression, output)
	}
	return nil
}

// result is the result of one mutant.
type result struct {
	problem string // why it was not caught; "" if it was
	message string // the first failed assertion
	output  string // of the command that failed, or of the test
	took    time.Duration
}

func (r result) caught() bool { return r.problem == "" }

// String returns "caught", or the problem.
func (r result) String() string {
	if r.caught() {
		return "caught"
	}
	return r.problem
}

// try plants a bug in a copy of its own and runs the test that must catch it.
func (r runner) try(ctx context.Context, m mutant) result {
	started := time.Now()
	var res result
	err := r.inCopy(func(dir string) error {
		res = r.tryIn(ctx, dir, m)
		return nil
	})
	if err != nil {
		res = result{problem: "no copy of the tree", output: err.Error()}
	}
	res.took = time.Since(started)
	return res
}

func (r runner) tryIn(ctx context.Context, dir string, m mutant) result {
	apply := r.command(ctx, dir, "git", "apply")
	apply.Stdin = strings.NewReader(m.diff)
	if output, err := apply.CombinedOutput(); err != nil {
		return result{problem: "does not apply", output: string(output)}
	}

	binary := filepath.Join(dir, "mutant.test")
	building, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	// -trimpath: what is compiled in one copy is found in the build cache for the next.
	build := r.command(building, dir, "go", "test", "-trimpath", "-c", "-o", binary, m.pkg)
	if output, err := build.CombinedOutput(); err != nil {
		return result{problem: "does not build", output: string(output)}
	}

	running, cancel := context.WithTimeout(ctx, testTimeout+30*time.Second)
	defer cancel()
	test := r.command(running, filepath.Join(dir, m.pkg), binary,
		"-test.run="+m.expression(), "-test.count=1", "-test.timeout="+testTimeout.String())
	output, err := test.CombinedOutput()
	return evaluate(m, string(output), err != nil)
}

// assertion matches the first line of a failed assertion. A testing/synctest bubble in which all
// goroutines are blocked panics: that is the assertion of a test that something does not block.
var assertion = regexp.MustCompile(`^( +\w+\.go:\d+: |panic: deadlock: )`)

// logLine matches a log line of the service, which tests write with t.Log.
var logLine = regexp.MustCompile(`^ +\w+\.go:\d+: \{"level"`)

// firstFailure returns the first failed assertion in a test's output, as one line; "" if there is
// none.
func firstFailure(output string) string {
	lines := strings.Split(output, "\n")
	for i, line := range lines {
		if !assertion.MatchString(line) || logLine.MatchString(line) {
			continue
		}
		// The other lines of a message are indented further.
		indent := strings.Repeat(" ", len(line)-len(strings.TrimLeft(line, " "))+4)
		words := strings.Fields(line)
		for _, next := range lines[i+1:] {
			if !strings.HasPrefix(next, indent) {
				break
			}
			words = append(words, strings.Fields(next)...)
		}
		return strings.Join(words, " ")
	}
	return ""
}

// evaluate decides from the output of a mutant's test whether the mutant was caught.
func evaluate(m mutant, output string, failed bool) result {
	switch {
	case !failed:
		return result{problem: "SURVIVED", output: output}
	case !strings.Contains(output, "--- FAIL: "+m.function()+" "):
		return result{problem: "ended without a failed test", output: output}
	case strings.Contains(output, "panic: test timed out"):
		return result{problem: "timed out", output: output}
	}
	if message := firstFailure(output); message != "" {
		return result{message: message, output: output}
	}
	return result{problem: "failed without a failed assertion", output: output}
}
