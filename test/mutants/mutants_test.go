package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeFiles writes files by their path in dir.
func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// program is a module with a test that leaves a file behind when it fails, as rapid does, and
// reports a file that another run left.
var program = map[string]string{
	"go.mod": "module example\n\ngo 1.26\n",
	"sum/sum.go": `package sum

func Sum(a, b int) int {
	return a + b
}
`,
	"sum/sum_test.go": `package sum

import (
	"os"
	"testing"
)

func TestSum(t *testing.T) {
	if _, err := os.Stat("testdata/rapid/TestSum.fail"); err == nil {
		t.Error("a file of another run")
	}
	t.Run("small numbers", func(t *testing.T) {
		if got := Sum(2, 3); got != 5 {
			t.Errorf("2 + 3 is %d", got)
		}
	})
	if t.Failed() {
		_ = os.MkdirAll("testdata/rapid", 0o700)
		_ = os.WriteFile("testdata/rapid/TestSum.fail", nil, 0o600)
	}
}

func TestCommutative(t *testing.T) {
	if Sum(2, 3) != Sum(3, 2) {
		t.Error("2 + 3 is not 3 + 2")
	}
}
`,
}

// newTestRunner returns a runner for program with other files.
func newTestRunner(t *testing.T, others map[string]string) *runner {
	t.Helper()
	source := t.TempDir()
	writeFiles(t, source, program)
	writeFiles(t, source, others)
	r, err := newRunner(t.Context(), source, t.TempDir(), "", 1)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// change returns a patch of sum.go.
func change(to string) string {
	return "--- a/sum/sum.go\n+++ b/sum/sum.go\n@@ -3,3 +3,3 @@\n func Sum(a, b int) int {\n-\treturn a + b\n+\treturn " + to + "\n }\n"
}

func TestRunner_try(t *testing.T) {
	t.Parallel()
	r := newTestRunner(t, nil)
	minus := mutant{name: "01-minus", pkg: "./sum", test: "TestSum", diff: change("a - b")}
	times := mutant{name: "02-times", pkg: "./sum", test: "TestSum/small numbers", diff: change("a * b")}

	if err := r.baseline(t.Context(), []mutant{minus, times}); err != nil {
		t.Fatal(err)
	}
	// In this order: the others would report a file that the first leaves behind.
	for _, test := range []struct {
		mutant  mutant
		problem string
		output  string // contains this
	}{
		{minus, "", ": 2 + 3 is -1"},
		{times, "", ": 2 + 3 is 6"},
		{mutant{name: "3", pkg: "./sum", test: "TestCommutative", diff: change("a - b")}, "", ": 2 + 3 is not 3 + 2"},
		{mutant{name: "4", pkg: "./sum", test: "TestCommutative", diff: change("a * b")}, "SURVIVED", ""},
		{mutant{name: "5", pkg: "./sum", test: "TestSum", diff: change("b + a")}, "SURVIVED", ""},
		{mutant{name: "6", pkg: "./sum", test: "TestSum", diff: change("c")}, "does not build", ""},
		{mutant{name: "7", pkg: "./sum", test: "TestSum", diff: strings.ReplaceAll(change("a - b"), "Sum", "Add")}, "does not apply", ""},
	} {
		problem, output := r.try(t.Context(), test.mutant)
		if problem != test.problem || !strings.Contains(output, test.output) || strings.Contains(output, "a file of another run") {
			t.Errorf("%q: %q, want %q and %q in\n%s", test.mutant.diff, problem, test.problem, test.output, output)
		}
	}
}

func TestRunner_baseline(t *testing.T) {
	t.Parallel()
	r := newTestRunner(t, nil)
	for _, test := range []string{"TestProduct", "TestSum/large numbers"} {
		err := r.baseline(t.Context(), []mutant{{pkg: "./sum", test: test}})
		if err == nil || !strings.Contains(err.Error(), "has no test") {
			t.Errorf("%s does not exist: %v", test, err)
		}
	}
}

// The copy has what could be committed, but no fail files of rapid: it would replay them, and their
// log lines come first.
func TestRunner_copyTo(t *testing.T) {
	t.Parallel()
	r := newTestRunner(t, map[string]string{
		".gitignore":                         "*.log\n",
		"sum/a.log":                          "",
		"sum/testdata/numbers":               "",
		"sum/testdata/rapid/TestSum/1.fail":  "",
		"testdata/rapid/TestProduct/2.fail":  "",
		"sum/testdata/fuzz/FuzzSum/00000001": "",
	})
	to := filepath.Join(t.TempDir(), "copy")
	if err := r.copyTo(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"go.mod": true, "sum/sum.go": true, "sum/testdata/numbers": true, "sum/testdata/fuzz/FuzzSum/00000001": true,
		"sum/a.log": false, "sum/testdata/rapid": false, "testdata/rapid": false,
	} {
		if _, err := os.Stat(filepath.Join(to, path)); (err == nil) != want {
			t.Errorf("%s: %v, want it copied: %v", path, err, want)
		}
	}
}

func TestEvaluate(t *testing.T) {
	t.Parallel()
	m := mutant{pkg: "./db", test: "TestLock"}
	for output, problem := range map[string]string{
		"--- FAIL: TestLock (0.1s)\n    a_test.go:7: got 1\n        want 2\nFAIL\n":                  "",
		"--- FAIL: TestLock (0.1s)\n    a_test.go:3: {\"level\":\"info\"}\n    a_test.go:7: got 1\n": "",
		"--- FAIL: TestLock (0.1s)\n    a_test.go:3: {\"level\":\"info\"}\n":                         "failed without a failed assertion",
		"--- FAIL: TestLock (0.1s)\npanic: deadlock: all goroutines in bubble are blocked\n":         "",
		"--- FAIL: TestOther (0.1s)\n    a_test.go:7: got 1\n":                                       "ended without a failed test",
		"panic: nil map\n": "ended without a failed test",
		"--- FAIL: TestLock (60s)\npanic: test timed out after 1m0s\n": "timed out",
		"--- FAIL: TestLock (0.1s)\nFAIL\n":                            "failed without a failed assertion",
	} {
		if got := evaluate(m, output, true); got != problem {
			t.Errorf("%q: %q, want %q", output, got, problem)
		}
	}
	if got := evaluate(m, "PASS\n", false); got != "SURVIVED" {
		t.Errorf("a test that passes: %q", got)
	}
}
