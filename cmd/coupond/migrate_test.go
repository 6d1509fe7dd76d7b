package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestMigrate_errors(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	login := role(t, database, "")

	for _, c := range []struct{ password, host, path, want string }{
		{password: "not the password", want: "the database refuses the login: password authentication failed"},
		{path: "/nowhere", want: `the database server has no database of that name: database "nowhere" does not exist`},
		{host: "127.0.0.1:1", want: "the connection is refused; check the host and the port ("},
		{host: "nowhere.invalid:5432", want: "nowhere.invalid"},
		// The login has no rights.
		{want: "it must be a superuser, own the database or be a member of the role that owns it"},
	} {
		u := parseURL(t, database.URL)
		u.User = url.UserPassword(login, cmp.Or(c.password, testPassword))
		u.Host, u.Path = cmp.Or(c.host, u.Host), cmp.Or(c.path, u.Path)
		address := login + "@" + u.Host + u.Path
		_, output := outputOf(t, exitFailure, []string{"DATABASE_URL=" + u.String()}, "migrate")
		if !strings.Contains(output, c.want) || !strings.Contains(output, address) || strings.Count(output, "\n") != 1 {
			t.Errorf("%s: %s\nwant one line with %q", address, output, c.want)
		}
		if strings.Contains(output, testPassword) || strings.Contains(output, "not the password") {
			t.Errorf("%s: the password is in %s", address, output)
		}
	}

	conn := database.Connect(t)
	if n := relations(t, conn); n != 0 {
		t.Errorf("migrate created %d relations", n)
	}
	// The server's detail and hint are reported, too.
	mustExec(t, conn, `
		create function public.refuse() returns event_trigger language plpgsql as $$
		begin
		  raise exception 'no changes on Fridays' using detail = 'It is Friday.', hint = 'Ask the administrator.';
		end $$;
		create event trigger refuse on ddl_command_start execute function public.refuse()`)
	expect(t, exitFailure, "no changes on Fridays (SQLSTATE P0001). It is Friday. Ask the administrator.", []string{"DATABASE_URL=" + database.URL}, "migrate")
}

// While it waits for a lock, migrate says on stderr which session holds it.
func TestMigrate_saysWhoHoldsTheLock(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	holder := database.Connect(t)
	mustExec(t, holder, "begin; set local application_name = 'pg_dump'; lock table coupond.sale_progress in access share mode")
	p := start(t, []string{"DATABASE_URL=" + database.URL}, "migrate")
	want := fmt.Sprintf("waiting for a lock that is held by process %d (application 'pg_dump', user ", holder.PgConn().PID())
	wait.For(t, "a line on stderr", func() bool { return strings.Contains(p.stderr.String(), want) })
	mustExec(t, holder, "rollback")
	if code := p.wait(t); code != 0 || !strings.Contains(p.stdout.String(), "functions installed") {
		t.Errorf("exit code %d, %s %s", code, p.stdout.String(), p.stderr.String())
	}
}

// coupond sql prints the script without a database.
func TestSQL_printsScript(t *testing.T) {
	t.Parallel()
	script, err := db.Script()
	must(t, err)
	if stdout, stderr := outputOf(t, 0, nil, "sql"); stdout != script || stderr != "" {
		t.Errorf("%d bytes instead of %d, %s", len(stdout), len(script), stderr)
	}
}

// migrate --proxy sets up an empty database as a proxy. migrate rejects a proxy, and migrate
// --proxy rejects a database with coupons.
func TestMigrate_proxy(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	proxy := []string{"DATABASE_URL=" + server.ForProxy(t).URL}
	for range 2 {
		expect(t, 0, fmt.Sprintf("proxy of schema version %d; functions installed", db.Version()), proxy, "migrate", "--proxy")
	}
	expect(t, 1, "the database is a proxy", proxy, "migrate")
	expect(t, 1, "the database has coupons of its own", []string{"DATABASE_URL=" + server.New(t).URL}, "migrate", "--proxy")
}

// serve never changes the schema. It reports what is missing, and becomes ready when migrate has
// run.
func TestServe_waitsForMigrate(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	p := start(t, environ(database.URL), "serve").listening(t)
	c := p.client(t)

	waitUnhealthy(t, c, "run coupond migrate")
	expect(t, exitFailure, "run coupond migrate", []string{"LISTEN_ADDR=" + p.address}, "healthcheck")
	if a := c.must(t, http.MethodGet, "/health/live", ""); a.Status != http.StatusOK {
		t.Errorf("/health/live: %d", a.Status)
	}
	if a := c.must(t, http.MethodPost, "/api/coupons", `{"name":"x","amount":1}`); a.Status != http.StatusServiceUnavailable || a.Code != "UNAVAILABLE" {
		t.Errorf("creating a coupon without a schema: %d %s", a.Status, a.body)
	}
	if n := relations(t, database.Connect(t)); n != 0 {
		t.Errorf("serve created %d relations", n)
	}

	for _, version := range []string{"0 → %d", "%d already"} {
		want := fmt.Sprintf("schema version "+version+"; functions installed", db.Version())
		expect(t, 0, want, []string{"DATABASE_URL=" + database.URL}, "migrate")
		waitHealthy(t, c)
	}
	p.logged(t, "ready for claims")
	c.create(t, "SALE", 1)
}

// relations returns the number of relations in schema coupond.
func relations(t *testing.T, conn *pgx.Conn) int {
	t.Helper()
	var n int
	if err := conn.QueryRow(t.Context(), `
		select count(*) from pg_class where relnamespace = (select oid from pg_namespace where nspname = 'coupond')`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// waitHealthy waits until the service listens and /health returns 200.
func waitHealthy(t *testing.T, c *client) {
	t.Helper()
	wait.For(t, "a healthy service", func() bool {
		a, err := c.do(http.MethodGet, "/health", "")
		return err == nil && a.Status == http.StatusOK
	})
}

// waitUnhealthy waits until /health returns 503 with a body that contains reason.
func waitUnhealthy(t *testing.T, c *client, reason string) {
	t.Helper()
	wait.For(t, "/health to report "+reason, func() bool {
		a := c.must(t, http.MethodGet, "/health", "")
		if a.Status == http.StatusServiceUnavailable && (a.Code != "UNAVAILABLE" || !strings.Contains(a.body, `"status":"unhealthy"`)) {
			t.Fatalf("/health returned %s", a.body)
		}
		return a.Status == http.StatusServiceUnavailable && strings.Contains(a.body, reason)
	})
}

// role creates a login role with testPassword as its password, and returns its name. options is
// appended to the statement. The role is dropped when the test ends.
func role(t *testing.T, database *pgtest.Database, options string) string {
	t.Helper()
	conn := database.Connect(t)
	name := "coupond_test_" + strings.ToLower(rand.Text())
	mustExec(t, conn, fmt.Sprintf(`create role %s login password '%s' %s`, name, testPassword, options))
	t.Cleanup(func() {
		if _, err := conn.Exec(context.Background(), "drop role "+name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func parseURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	must(t, err)
	return u
}
