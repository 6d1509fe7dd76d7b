package pgtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
)

func TestMain(m *testing.M) { Main(m) }

// How a run of tests ends is seen from outside only: so this test binary runs itself again, with one of the tests of
// child_test.go, as if it were a package of its own.
const childVariable = "DBTEST_TEST_CHILD"

// pkg is a package whose tests are run: a folder, for that is by what packages are told apart, and an environment.
type pkg struct {
	dir         string
	environment []string
}

// newPackage is a package whose servers, if local, have their homes in a folder for temporary files of its own.
func newPackage(t *testing.T, environment ...string) *pkg {
	t.Helper()
	tmp := newDir(t)
	t.Cleanup(func() {
		homes, _ := filepath.Glob(filepath.Join(tmp, "coupon-dbtest-*"))
		for _, home := range homes {
			if err := localpg.Remove(context.Background(), home); err != nil {
				t.Error(err)
			}
		}
	})
	return &pkg{dir: t.TempDir(), environment: append([]string{
		"TMPDIR=" + tmp, urlVariable + "=", imageVariable + "=", "CI=",
	}, environment...)}
}

// withoutDocker has a local server taken.
const withoutDocker = "DOCKER_HOST=unix:///nowhere"

// newDir is a folder within everybody's reach, as t.TempDir is not.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dbtest-test-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// with is the same package in another environment.
func (p *pkg) with(environment ...string) *pkg {
	return &pkg{dir: p.dir, environment: append(slices.Clip(p.environment), environment...)}
}

// tmp is the folder for temporary files.
func (p *pkg) tmp() string { return strings.TrimPrefix(p.environment[0], "TMPDIR=") }

// testProcess is a running test of a package.
type testProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer
}

func (p *pkg) start(t *testing.T, name string) *testProcess {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	child := &testProcess{cmd: exec.CommandContext(context.Background(), executable, "-test.run=^TestChild$/^"+name+"($|/)", "-test.v")}
	child.cmd.Dir = p.dir
	child.cmd.Env = append(append(os.Environ(), p.environment...), childVariable+"=1")
	child.cmd.Stdout, child.cmd.Stderr = &child.output, &child.output
	must(t, child.cmd.Start())
	t.Cleanup(func() { child.kill() })
	return child
}

func (c *testProcess) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// run runs a test to its end, which must be the wanted one, and returns what it printed.
func (p *pkg) run(t *testing.T, name string, wantPass bool) string {
	t.Helper()
	child := p.start(t, name)
	err := child.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	output := child.output.String()
	if passed := err == nil; passed != wantPass {
		t.Fatalf("test %s passed: %t, want %t\n%s", name, passed, wantPass, output)
	}
	return output
}

var address = regexp.MustCompile(`postgres://\S+`)

// addressIn finds the address of the database that a failed test has left.
func addressIn(t *testing.T, output string) string {
	t.Helper()
	for line := range strings.Lines(output) {
		if strings.Contains(line, " failed: its ") {
			if found := address.FindString(line); found != "" {
				return found
			}
		}
	}
	t.Fatalf("no address of a database in the output:\n%s", output)
	return ""
}

// answers tells whether the database at url does.
func answers(t *testing.T, url string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return false
	}
	return conn.Close(ctx) == nil
}

// left lists the databases and roles on a server that are named as ours.
func left(t *testing.T, admin string) []string {
	t.Helper()
	return query(t, admin, `select datname from pg_database where datname like 'coupon\_test\_%'
		union select rolname from pg_roles where rolname like 'coupon\_test\_%' order by 1`)
}

func query(t *testing.T, url, sql string, arguments ...any) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), sql, arguments...)
	must(t, err)
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return values
}

// eventually waits up to 2 minutes.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not true after %s: %s", patience, what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
