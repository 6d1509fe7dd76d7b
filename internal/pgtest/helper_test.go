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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
)

func TestMain(m *testing.M) { Main(m) }

// The end of a test process can only be observed from outside. So the test binary runs itself again
// with one of the tests of TestChild, as if it were the tests of another package.
const childVariable = "COUPOND_PGTEST_CHILD"

// TestChild contains the tests that other tests run in child processes (see testPackage). Otherwise
// it does nothing.
func TestChild(t *testing.T) {
	if os.Getenv(childVariable) == "" {
		return
	}
	t.Run("none", func(*testing.T) {})
	t.Run("passing", func(t *testing.T) { New(t).Connect(t) })
	t.Run("failing", func(t *testing.T) {
		NewOwned(t)
		_, err := New(t).Connect(t).Exec(t.Context(), "create table public.evidence as select 'seen' as value")
		must(t, err)
		t.Error("a failure")
	})
	t.Run("private", func(t *testing.T) {
		StartServer(t, map[string]string{"fsync": "off"}).New(t)
		t.Error("a failure")
	})
	t.Run("many", func(t *testing.T) {
		for i := range 10 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				create(t, New(t), "the same name everywhere")
				NewOwned(t).Connect(t)
			})
		}
	})
	t.Run("waiting", func(t *testing.T) { // until it is killed, or the file continue exists
		New(t)
		NewOwned(t)
		must(t, os.WriteFile("ready", nil, 0o600))
		for !exists("continue") {
			time.Sleep(10 * time.Millisecond)
		}
		New(t).Connect(t) // the template still exists
	})
	t.Run("sharing", func(t *testing.T) {
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$/^failing$")
		command.Stderr = os.Stderr
		must(t, Share(command))
	})
}

// testPackage is a package under test: a directory, which identifies it, and an environment.
type testPackage struct {
	dir         string
	environment []string
}

// newPackage returns a package with its own directory for temporary files, which contains the home
// directories of its local servers.
func newPackage(t *testing.T, environment ...string) *testPackage {
	t.Helper()
	// Unlike t.TempDir, a directory that every user can enter.
	tmp := filepath.Join("/tmp", "pgtest-test-"+rand.Text())
	must(t, os.Mkdir(tmp, 0o700))
	must(t, os.Chmod(tmp, 0o711)) // whatever the umask is
	t.Cleanup(func() {
		for _, home := range homes(t, tmp) {
			must(t, localpg.Remove(context.Background(), home))
		}
		must(t, os.RemoveAll(tmp))
	})
	return &testPackage{dir: t.TempDir(), environment: append([]string{
		"TMPDIR=" + tmp, urlVariable + "=", imageVariable + "=", "CI=",
	}, environment...)}
}

// withoutDocker makes the tests use a local server.
const withoutDocker = "DOCKER_HOST=unix:///nowhere"

// homes returns the home directories of local servers.
func homes(t *testing.T, tmp string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(tmp, "coupon_test_*"))
	must(t, err)
	return found
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

var address = regexp.MustCompile(` failed: its .* (postgres://\S+)`)

// addressIn returns the address of the kept database in the output of a failed test.
func addressIn(t *testing.T, output string) string {
	t.Helper()
	match := address.FindStringSubmatch(output)
	if match == nil {
		t.Fatalf("the output contains no address of a kept database:\n%s", output)
	}
	return match[1]
}

// answers reports whether the database at url accepts a connection.
func answers(t *testing.T, url string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	return err == nil && conn.Close(ctx) == nil
}

// wantEvidence checks that url is that of the database of the test "failing".
func wantEvidence(t *testing.T, url string) {
	t.Helper()
	if rows := query(t, url, "select value from public.evidence"); len(rows) != 1 {
		t.Errorf("the kept database contains %v, want 1 row", rows)
	}
}

// leftovers returns the databases and roles on a server that pgtest has created.
func leftovers(t *testing.T, admin string) []string {
	t.Helper()
	return query(t, admin, `select datname from pg_database where datname like 'coupon\_test\_%'
		union all select rolname from pg_roles where rolname like 'coupon\_test\_%' order by 1`)
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

// waitReady waits until the test "waiting" of the package has created its databases. This may take
// longer than wait.For allows, because a server has to be started first.
func waitReady(t *testing.T, p *testPackage) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !exists(filepath.Join(p.dir, "ready")); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for the child process to create its databases", timeout)
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
