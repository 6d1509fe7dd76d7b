package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
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
		query(t, New(t).URL, "create table public.evidence (); select from public.evidence")
		t.Error("a failure")
	})
	t.Run("many", func(t *testing.T) {
		for i := range 10 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				create(t, New(t), "the same name everywhere")
				Empty(t).Connect(t)
			})
		}
	})
	t.Run("waiting", func(t *testing.T) { // until it is killed, or the file continue exists
		New(t)
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
	dir, tmp    string
	environment []string
}

// newPackage returns a package with its own directory for temporary files, which contains the home
// directories of its local servers.
func newPackage(t *testing.T, environment ...string) *testPackage {
	t.Helper()
	// Unlike t.TempDir, a directory that every user can enter.
	p := &testPackage{dir: t.TempDir(), tmp: filepath.Join("/tmp", "pgtest-test-"+rand.Text())}
	must(t, os.Mkdir(p.tmp, 0o700))
	must(t, os.Chmod(p.tmp, 0o711)) // whatever the umask is
	t.Cleanup(func() {
		for _, home := range p.homes(t) {
			must(t, localpg.Remove(context.Background(), home))
		}
		must(t, os.RemoveAll(p.tmp))
	})
	p.environment = append([]string{"TMPDIR=" + p.tmp, urlVariable + "=", imageVariable + "=", "CI="}, environment...)
	return p
}

// withoutDocker makes the tests use a local server.
const withoutDocker = "DOCKER_HOST=unix:///nowhere"

// homes returns the home directories of local servers.
func (p *testPackage) homes(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.tmp, "coupon_test_*"))
	must(t, err)
	return found
}

// testProcess is a running test of a package.
type testProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer
}

func (p *testPackage) start(t *testing.T, name string, environment ...string) *testProcess {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	child := &testProcess{cmd: exec.CommandContext(context.Background(), executable, "-test.run=^TestChild$/^"+name+"($|/)", "-test.v")}
	child.cmd.Dir = p.dir
	child.cmd.Env = append(append(append(os.Environ(), p.environment...), environment...), childVariable+"=1")
	child.cmd.Stdout, child.cmd.Stderr = &child.output, &child.output
	must(t, child.cmd.Start())
	t.Cleanup(func() { child.kill() })
	return child
}

func (c *testProcess) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// startWaiting starts the test "waiting" and waits until it has created its databases. This may
// take longer than wait.For allows, because a server has to be started first.
func (p *testPackage) startWaiting(t *testing.T) *testProcess {
	t.Helper()
	child, ready := p.start(t, "waiting"), filepath.Join(p.dir, "ready")
	for deadline := time.Now().Add(timeout); !exists(ready); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for the child process to create its databases", timeout)
		}
	}
	must(t, os.Remove(ready))
	return child
}

// run runs a test to its end and returns its output. It fails if the result is not the expected
// one.
func (p *testPackage) run(t *testing.T, name string, wantPass bool, environment ...string) string {
	t.Helper()
	child := p.start(t, name, environment...)
	err := child.cmd.Wait()
	output := child.output.String()
	if passed := err == nil; passed != wantPass {
		t.Fatalf("test %s passed: %t, want %t (%v)\n%s", name, passed, wantPass, err, output)
	}
	return output
}

// create inserts a coupon and checks that it is the only one in the database.
func create(t *testing.T, d *Database, coupon string) {
	t.Helper()
	query(t, d.URL, "insert into coupond.coupons (name, amount, remaining_amount) values ('"+coupon+"', 1, 1)")
	if coupons := query(t, d.URL, "select name from coupond.coupons"); len(coupons) != 1 {
		t.Errorf("%s contains %v, want only the new one", d.Name, coupons)
	}
}

// query executes statements and returns the first column of the last one.
func query(t *testing.T, url, sql string) (values []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	must(t, err)
	for _, row := range results[len(results)-1].Rows {
		values = append(values, string(row[0]))
	}
	return values
}

// leftovers returns the databases on a server that pgtest has created.
func leftovers(t *testing.T, admin string) []string {
	t.Helper()
	return query(t, admin, `select datname from pg_database where datname like 'coupon\_test\_%'`)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func wantContains(t *testing.T, output string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(output, part) {
			t.Errorf("the output does not contain %q:\n%s", part, output)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
