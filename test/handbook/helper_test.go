//go:build dba

package handbook_test

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/pgtest"
)

// timeout bounds each command. It is generous: only a failing test waits that long.
const timeout = 2 * time.Minute

// bin is a folder with the coupond under test.
var bin string

func TestMain(m *testing.M) {
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	pgtest.Main(m)
	_ = os.RemoveAll(bin)
}

func build() (err error) {
	if bin, err = temporary("coupon-dba-"); err != nil {
		return err
	}
	output, err := exec.Command("go", "build", "-o", filepath.Join(bin, "coupond"), "../../cmd/coupond").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	return nil
}

// temporary makes a folder in the system's temporary folder.
func temporary(prefix string) (string, error) { return os.MkdirTemp("", prefix+"*") }

// cluster is a private PostgreSQL server, from binaries on this machine.
type cluster struct {
	*pgtest.Server
	t *testing.T
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	// What a section of docs/dba.md needs that is not a default.
	c := &cluster{pgtest.StartServer(t, map[string]string{"wal_level": "logical"}), t}
	for _, program := range []string{"psql", "pg_dump", "pg_restore"} {
		if _, err := os.Stat(filepath.Join(c.BinDir(), program)); err != nil {
			t.Fatalf("%s is not in the folder of the server (Debian: apt-get install postgresql-15)", program)
		}
	}
	return c
}

// env returns an environment in which psql, pg_dump and coupond connect to a database of this
// cluster as login.
func (c *cluster) env(login, database string) []string {
	u, err := url.Parse(c.URL(database))
	must(c.t, err)
	password, _ := u.User.Password()
	if login != "postgres" {
		password = login
	}
	return []string{
		"PATH=" + bin + ":" + c.BinDir() + ":/usr/sbin:" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "LC_ALL=C.UTF-8",
		"PGHOST=" + u.Hostname(), "PGPORT=" + u.Port(), "PGUSER=" + login, "PGPASSWORD=" + password, "PGDATABASE=" + database,
		"PGTZ=UTC", "PSQLRC=/dev/null", "PSQL_PAGER=cat",
		"DATABASE_URL=" + c.url(login, database),
	}
}

// url returns a connection string for login. A login other than postgres has its name as the
// password.
func (c *cluster) url(login, database string) string {
	if login == "postgres" {
		return c.URL(database)
	}
	u, err := url.Parse(c.URL(database))
	must(c.t, err)
	u.User = url.UserPassword(login, login)
	return u.String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell runs a command in bash. The output is that of stdout and stderr, in the order in which they
// were written.
func shell(t *testing.T, env []string, command string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Env, cmd.Dir = env, workDir(t)
	var combined bytes.Buffer
	cmd.Stdout, cmd.Stderr = &combined, &combined
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	return combined.String(), err
}

// mustRun runs a command that must succeed, and returns its output.
func mustRun(t *testing.T, env []string, command string) string {
	t.Helper()
	output, err := shell(t, env, command)
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, output)
	}
	return output
}

// workDir returns the folder in which the commands of a test run: one for each test.
func workDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(bin, strings.ReplaceAll(t.Name(), "/", "_"))
	must(t, os.MkdirAll(dir, 0o700))
	return dir
}

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func get[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (value T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%v\n%s", err, sql)
	}
	return value
}

// checkClaims checks that a coupon has claims numbered 1 to n of n users, and n less in stock.
func checkClaims(t *testing.T, conn *pgx.Conn, coupon string, n int) {
	t.Helper()
	got := get[string](t, conn, `
		select format('%s less in stock, claims %s to %s, %s in total, %s users', c.amount - c.remaining_amount,
		  min(k.claim_number), max(k.claim_number), count(k.claim_number), count(distinct k.user_id))
		from coupond.coupons as c
		join coupond.claims as k on k.coupon_name = c.name
		where c.name = $1
		group by c.name`, coupon)
	if want := fmt.Sprintf("%d less in stock, claims 1 to %d, %[1]d in total, %[1]d users", n, n); got != want {
		t.Errorf("%s: %s; want %s", coupon, got, want)
	}
}

// fromHandbook returns the block of docs/dba.md that follows <!-- name -->, without its fences.
func fromHandbook(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/dba.md")
	must(t, err)
	match := regexp.MustCompile("(?s)<!-- " + regexp.QuoteMeta(name) + " -->\n```\\w+\n(.*?)```\n").FindSubmatch(text)
	if match == nil {
		t.Fatalf("docs/dba.md has no block %s", name)
	}
	return string(match[1])
}
