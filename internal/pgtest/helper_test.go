package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
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

// The end of a test process can only be observed from outside. So the test binary runs itself again
// with one of the tests of child_test.go, as if it were the tests of another package.
const childVariable = "COUPOND_PGTEST_CHILD"

// testPackage is a package under test: a directory, which identifies it, and an environment.
type testPackage struct {
	dir         string
	environment []string
}

// newPackage returns a package with its own directory for temporary files, which contains the home
// directories of its local servers.
func newPackage(t *testing.T, environment ...string) *testPackage {
	t.Helper()
	tmp := newDir(t)
	t.Cleanup(func() {
		homes, _ := filepath.Glob(filepath.Join(tmp, "coupond-pgtest-*"))
		for _, home := range homes {
			if err := localpg.Remove(context.Background(), home); err != nil {
				t.Error(err)
			}
		}
	})
	return &testPackage{dir: t.TempDir(), environment: append([]string{
		"TMPDIR=" + tmp, urlVariable + "=", imageVariable + "=", "CI=",
	}, environment...)}
}

// withoutDocker makes the tests use a local server.
const withoutDocker = "DOCKER_HOST=unix:///nowhere"

// newDir returns a directory that every user can enter, unlike t.TempDir.
func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("/tmp", "pgtest-test-"+rand.Text())
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chmod(dir, 0o711)) // whatever the umask is
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// with returns the same package with more environment variables.
func (p *testPackage) with(environment ...string) *testPackage {
	return &testPackage{dir: p.dir, environment: append(slices.Clip(p.environment), environment...)}
}

// tempDir returns the directory for temporary files.
func (p *testPackage) tempDir() string { return strings.TrimPrefix(p.environment[0], "TMPDIR=") }

// testProcess is a running test of a package.
type testProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer
}

func (p *testPackage) start(t *testing.T, name string) *testProcess {
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

// run runs a test to its end and returns its output. It fails if the result is not the expected
// one.
func (p *testPackage) run(t *testing.T, name string, wantPass bool) string {
	t.Helper()
	child := p.start(t, name)
	err := child.cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	output := child.output.String()
	if passed := err == nil; passed != wantPass {
		t.Fatalf("test %s passed: %t, want %t\n%s", name, passed, wantPass, output)
	}
	return output
}

var address = regexp.MustCompile(`postgres://\S+`)

// addressIn returns the address of the kept database in the output of a failed test.
func addressIn(t *testing.T, output string) string {
	t.Helper()
	for line := range strings.Lines(output) {
		if strings.Contains(line, " failed: its ") {
			if found := address.FindString(line); found != "" {
				return found
			}
		}
	}
	t.Fatalf("the output contains no address of a kept database:\n%s", output)
	return ""
}

// answers reports whether the database at url accepts a connection.
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

// leftovers returns the databases and roles on a server that pgtest has created.
func leftovers(t *testing.T, admin string) []string {
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

// waitReady waits until the test "waiting" of the packages has created its databases. This may take
// longer than wait.For allows, because a server has to be started first.
func waitReady(t *testing.T, packages ...*testPackage) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for _, p := range packages {
		for !exists(filepath.Join(p.dir, "ready")) {
			if time.Now().After(deadline) {
				t.Fatalf("waited %v for the child process to create its databases", timeout)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
