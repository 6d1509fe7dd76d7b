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
	patience = time.Minute     // for one named test; they take seconds
	buildFor = 5 * time.Minute // for building one, with nothing in the cache
)

// tree is a copy of the working tree, to plant bugs in.
type tree struct {
	dir      string
	database string // TEST_DATABASE_URL
}

// copy makes the tree from what git knows or would add here.
func (t tree) copy(ctx context.Context) error {
	list, err := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for path := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed here, and not committed yet
		}
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		to := filepath.Join(t.dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, text, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// command is one that works in the tree. Its output is only shown when something is wrong.
func (t tree) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.dir
	// CI: a failed test's database is of no use to anybody here. No repository: git must not look for one above.
	cmd.Env = append(os.Environ(), "TEST_DATABASE_URL="+t.database, "CI=true", "GIT_CEILING_DIRECTORIES="+filepath.Dir(t.dir))
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// sane proves that the tests of all mutants are there, and green as long as no bug is planted.
func (t tree) sane(ctx context.Context, mutants []mutant) error {
	// Whole tests of a package run together, subtests each by itself: -run has no way to say both.
	whole := map[string][]string{}
	var parts []mutant
	for _, m := range mutants {
		same := func(p mutant) bool { return p.pkg == m.pkg && p.test == m.test }
		switch {
		case m.function() == m.test && !slices.Contains(whole[m.pkg], m.test):
			whole[m.pkg] = append(whole[m.pkg], m.test)
		case m.function() != m.test && !slices.ContainsFunc(parts, same):
			parts = append(parts, m)
		}
	}
	for pkg, names := range whole {
		if err := t.green(ctx, pkg, "^("+strings.Join(names, "|")+")$", names...); err != nil {
			return err
		}
	}
	for _, m := range parts {
		if err := t.green(ctx, m.pkg, m.expression(), m.function()); err != nil {
			return err
		}
	}
	return nil
}

// green runs tests of a package, and wants these to be there and to pass.
func (t tree) green(ctx context.Context, pkg, expression string, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildFor+5*patience)
	defer cancel()
	output, err := t.command(ctx, "go", "test", "-trimpath", "-count=1", "-v", "-run", expression, pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the tests of %s fail without any mutant: %w\n%s", pkg, err, output)
	}
	for _, name := range names {
		if !bytes.Contains(output, []byte("\n--- PASS: "+name+" ")) {
			return fmt.Errorf("%s has no test %s that passes:\n%s", pkg, name, output)
		}
	}
	// A subtest that is not there is no failure of its test.
	if strings.Contains(expression, "/") && !bytes.Contains(output, []byte("\n    --- PASS: ")) {
		return fmt.Errorf("%s has no test %s:\n%s", pkg, expression, output)
	}
	return nil
}

// verdict is what became of a mutant.
type verdict struct {
	problem string // "": it was caught
	says    string // the first thing that the test found wrong
	output  string
	took    time.Duration
}

func (v verdict) caught() bool { return v.problem == "" }

func (v verdict) word() string {
	if v.caught() {
		return "caught"
	}
	return v.problem
}

// try plants a bug, runs its test, and takes the bug out again.
func (t tree) try(ctx context.Context, m mutant) (v verdict) {
	started := time.Now()
	defer func() { v.took = time.Since(started) }()
	if output, err := t.apply(ctx, m); err != nil {
		return verdict{problem: "does not apply", output: output}
	}
	defer func() {
		if output, err := t.apply(ctx, m, "--reverse"); err != nil && ctx.Err() == nil {
			v = verdict{problem: "cannot be taken out", output: output}
		}
	}()

	binary := filepath.Join(t.dir, "mutant.test")
	building, cancel := context.WithTimeout(ctx, buildFor)
	defer cancel()
	// Without paths in it, what one tree has compiled is of use to the other.
	if output, err := t.command(building, "go", "test", "-trimpath", "-c", "-o", binary, m.pkg).CombinedOutput(); err != nil {
		return verdict{problem: "does not build", output: string(output)}
	}
	running, cancel := context.WithTimeout(ctx, patience+30*time.Second)
	defer cancel()
	test := t.command(running, binary, "-test.run="+m.expression(), "-test.count=1", "-test.timeout="+patience.String())
	test.Dir = filepath.Join(t.dir, m.pkg)
	output, err := test.CombinedOutput()
	return judge(m, string(output), err != nil)
}

func (t tree) apply(ctx context.Context, m mutant, options ...string) (string, error) {
	cmd := t.command(ctx, "git", append([]string{"apply"}, options...)...)
	cmd.Stdin = strings.NewReader(m.diff)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// assertion is the line in which a test begins to say what is wrong, and where. The testing package ends a test of
// testing/synctest that waits for ever with a panic: where that is what a test is about, it is its assertion.
var assertion = regexp.MustCompile(`^( +\w+\.go:\d+: |panic: deadlock: )`)

// logLine is one of the service under test.
var logLine = regexp.MustCompile(`^ +\w+\.go:\d+: \{"level"`)

// message is the first thing that a test has found wrong, in one line; "" if there is none.
func message(output string) string {
	lines := strings.Split(output, "\n")
	for i, line := range lines {
		if !assertion.MatchString(line) || logLine.MatchString(line) {
			continue
		}
		// The further lines of a message stand further in.
		further := strings.Repeat(" ", len(line)-len(strings.TrimLeft(line, " "))+4)
		words := strings.Fields(line)
		for _, next := range lines[i+1:] {
			if !strings.HasPrefix(next, further) {
				break
			}
			words = append(words, strings.Fields(next)...)
		}
		return strings.Join(words, " ")
	}
	return ""
}

// judge reads what a mutant's test has said.
func judge(m mutant, output string, failed bool) verdict {
	switch {
	case !failed:
		return verdict{problem: "SURVIVED", output: output}
	case !strings.Contains(output, "--- FAIL: "+m.function()+" "):
		return verdict{problem: "ended otherwise than by a failed test", output: output}
	case strings.Contains(output, "panic: test timed out"):
		return verdict{problem: "timed out", output: output}
	}
	if says := message(output); says != "" {
		return verdict{says: says, output: output}
	}
	return verdict{problem: "failed, but by no assertion", output: output}
}
