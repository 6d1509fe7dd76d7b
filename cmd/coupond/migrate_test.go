package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// Three concurrent migrations of an empty database all succeed, and at least one of them reports a
// migration from version 0.
func TestMigrate_concurrently(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	environ := []string{"DATABASE_URL=" + database.URL}
	programs := []*program{start(t, environ, "migrate"), start(t, environ, "migrate"), start(t, environ, "migrate")}
	for _, p := range programs {
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
		if output := p.stdout.String(); strings.Count(output, "\n") != 1 || !strings.Contains(output, fmt.Sprintf("→ %d; functions installed", db.Version())) &&
			!strings.Contains(output, fmt.Sprintf("schema version %d already; functions installed", db.Version())) {
			t.Errorf("migrate wrote %q", output)
		}
	}
	if !slices.ContainsFunc(programs, func(p *program) bool { return strings.Contains(p.stdout.String(), "schema version 0 → ") }) {
		t.Error("none of the three found the database empty")
	}
	expect(t, 0, fmt.Sprintf("schema version %d already; functions installed", db.Version()), environ, "migrate")
}

func TestMigrate_errors(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	login := role(t, database, "")

	withUser := func(user *url.Userinfo) string {
		u := parseURL(t, database.URL)
		u.User = user
		return u.String()
	}
	owner := parseURL(t, database.URL).User
	other := parseURL(t, database.URL)
	other.Path = "/nowhere"
	closed := parseURL(t, database.URL)
	closed.Host = "127.0.0.1:1"
	unknown := parseURL(t, database.URL)
	unknown.Host = "nowhere.invalid:5432"

	for _, c := range []struct{ name, url, want string }{
		{"a wrong password", withUser(url.UserPassword(login, "not the password")), "the database refuses the login: password authentication failed"},
		{"an unknown user", withUser(url.UserPassword("no-such-user", testPassword)), "the database refuses the login: "},
		{"an unknown database", other.String(), `the database server has no database of that name: database "nowhere" does not exist`},
		{"a port without a listener", closed.String(), "the connection is refused; check the host and the port ("},
		{"an unknown host", unknown.String(), "nowhere.invalid"},
		{"a login without rights", withUser(url.UserPassword(login, testPassword)), "it must be a superuser, own the database or be a member of the role that owns it"},
		{"a setting with a wrong value", database.URL + "&timezone=Mars/Phobos", `invalid value for parameter "TimeZone": "Mars/Phobos"; correct it in the connection string`},
	} {
		address := databaseConfig{URL: c.url}.address()
		if c.name == "an unknown database" && !strings.Contains(address, owner.Username()+"@") {
			t.Fatalf("the address %s does not name the user", address)
		}
		p := start(t, []string{"DATABASE_URL=" + c.url}, "migrate")
		code := p.wait(t)
		output := p.stderr.String()
		if code != exitFailure || !strings.Contains(output, c.want) || !strings.Contains(output, address) || strings.Count(output, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s\nwant one line with %s and %q", c.name, code, output, address, c.want)
		}
		if strings.Contains(output, testPassword) || strings.Contains(output, "not the password") {
			t.Errorf("%s: the password is in %s", c.name, output)
		}
	}

	if n := relations(t, database.Connect(t)); n != 0 {
		t.Errorf("migrate created %d relations", n)
	}
}

// pg_hba.conf can refuse a connection because it is not encrypted. Pgx tries with TLS first; the
// reason is that of the server, not that of the attempt with TLS.
func TestMigrate_noEncryption(t *testing.T) {
	t.Parallel()
	hba := filepath.Join(pgtest.ClusterDir(t), "pg_hba.conf")
	rules := "local all all scram-sha-256\nhost all postgres all scram-sha-256\nhostssl all all all scram-sha-256\n"
	if err := os.WriteFile(hba, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "hba_file": hba})
	database := server.Empty(t)
	u := parseURL(t, database.URL)
	u.User = url.UserPassword(role(t, database, ""), testPassword)
	for _, mode := range []string{"disable", "prefer"} {
		u.RawQuery = "sslmode=" + mode
		expect(t, exitFailure, ": no pg_hba.conf entry for host \"127.0.0.1\", user \""+u.User.Username()+"\", database \""+database.Name+"\", no encryption; check sslmode, or add a line to pg_hba.conf",
			[]string{"DATABASE_URL=" + u.String()}, "migrate")
	}
}

// The server's detail and hint are reported, too.
func TestMigrate_detailAndHint(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	if _, err := database.Connect(t).Exec(t.Context(), `
		create function public.refuse() returns event_trigger language plpgsql as $$
		begin
		  raise exception 'no changes on Fridays' using detail = 'It is Friday.', hint = 'Ask the administrator.';
		end $$;
		create event trigger refuse on ddl_command_start execute function public.refuse()`); err != nil {
		t.Fatal(err)
	}
	expect(t, exitFailure, "no changes on Fridays (SQLSTATE P0001). It is Friday. Ask the administrator.", []string{"DATABASE_URL=" + database.URL}, "migrate")
}

// While it waits for a lock, migrate says on stderr which session holds it.
func TestMigrate_saysWhoHoldsTheLock(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	holder := database.Connect(t)
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "set local application_name = 'pg_dump'; lock table coupond.sale_progress in access share mode"); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"DATABASE_URL=" + database.URL}, "migrate")
	want := fmt.Sprintf("waiting for a lock that is held by process %d (application 'pg_dump', user ", holder.PgConn().PID())
	wait.For(t, "a line on stderr", func() bool { return strings.Contains(p.stderr.String(), want) })
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 || !strings.Contains(p.stdout.String(), "functions installed") {
		t.Errorf("exit code %d, %s %s", code, p.stdout.String(), p.stderr.String())
	}
}

// coupond sql prints the script without a database.
func TestSQL_printsScript(t *testing.T) {
	t.Parallel()
	script, err := db.Script()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, nil, "sql")
	if code := p.wait(t); code != 0 || p.stdout.String() != script || p.stderr.String() != "" {
		t.Errorf("exit code %d, %d bytes instead of %d, %s", code, len(p.stdout.String()), len(script), p.stderr.String())
	}
}

// serve never changes the schema. It reports what is missing, and becomes ready when migrate has
// run.
func TestServe_waitsForMigrate(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	p := start(t, environ(database.URL), "serve").listening(t)
	c := newClient(t, p.url, 1)

	waitUnhealthy(t, c, "run coupond migrate")
	expect(t, exitFailure, "run coupond migrate", []string{"LISTEN_ADDR=" + strings.TrimPrefix(p.url, "http://")}, "healthcheck")
	if a := c.must(t, http.MethodGet, "/health/live", ""); a.status != http.StatusOK {
		t.Errorf("/health/live: %d", a.status)
	}
	if a := c.must(t, http.MethodPost, "/api/coupons", `{"name":"x","amount":1}`); a.status != http.StatusServiceUnavailable || a.code != "UNAVAILABLE" {
		t.Errorf("creating a coupon without a schema: %d %s", a.status, a.body)
	}
	if n := relations(t, database.Connect(t)); n != 0 {
		t.Errorf("serve created %d relations", n)
	}

	expect(t, 0, "functions installed", []string{"DATABASE_URL=" + database.URL}, "migrate")
	waitHealthy(t, c)
	p.logged(t, "ready for claims")
	c.create(t, "SALE", 1)
}

// With an older schema, serve waits as it does without one. With a newer schema, serve works and
// migrate fails.
func TestServe_otherSchemaVersions(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	conn := database.Connect(t)
	setVersion := func(version int32) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `update coupond.schema_version set version = $1`, version); err != nil {
			t.Fatal(err)
		}
	}

	setVersion(db.Version() - 1)
	p := start(t, environ(database.URL), "serve").listening(t)
	c := newClient(t, p.url, 1)
	waitUnhealthy(t, c, fmt.Sprintf("version %d, and this program needs %d", db.Version()-1, db.Version()))

	setVersion(db.Version() + 1)
	waitHealthy(t, c)
	c.create(t, "SALE", 1)
	if a, err := c.claim("ann", "SALE"); err != nil || a.status != http.StatusCreated {
		t.Errorf("claim with a newer schema: %d %s %v", a.status, a.body, err)
	}
	expect(t, exitFailure, fmt.Sprintf("the database has version %d, this program installs version %d", db.Version()+1, db.Version()),
		[]string{"DATABASE_URL=" + database.URL}, "migrate")

	// serve is unhealthy if a newer schema lacks a function that it calls.
	if _, err := conn.Exec(t.Context(), `drop function coupond.claim_batch(text[], text[], integer[])`); err != nil {
		t.Fatal(err)
	}
	waitUnhealthy(t, c, fmt.Sprintf("version %d and lacks functions that this program, made for version %d, calls: run a newer program",
		db.Version()+1, db.Version()))
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

// waitHealthy waits until /health returns 200.
func waitHealthy(t *testing.T, c *client) {
	t.Helper()
	wait.For(t, "a healthy service", func() bool { return c.must(t, http.MethodGet, "/health", "").status == http.StatusOK })
}

// waitUnhealthy waits until /health returns 503 with a body that contains reason.
func waitUnhealthy(t *testing.T, c *client, reason string) {
	t.Helper()
	wait.For(t, "/health to report "+reason, func() bool {
		a := c.must(t, http.MethodGet, "/health", "")
		if a.status == http.StatusServiceUnavailable && (a.code != "UNAVAILABLE" || !strings.Contains(a.body, `"status":"unhealthy"`)) {
			t.Fatalf("/health returned %s", a.body)
		}
		return a.status == http.StatusServiceUnavailable && strings.Contains(a.body, reason)
	})
}

// role creates a login role with testPassword as its password, and returns its name. options is
// appended to the statement. The role is dropped when the test ends.
func role(t *testing.T, database *pgtest.Database, options string) string {
	t.Helper()
	conn := database.Connect(t)
	name := "coupond_test_" + strings.ToLower(rand.Text())
	if _, err := conn.Exec(t.Context(), fmt.Sprintf(`create role %s login password '%s' %s`, name, testPassword, options)); err != nil {
		t.Fatal(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
	return u
}
