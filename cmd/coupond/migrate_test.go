package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// Three at once on an empty database: all succeed, and what they say adds up to one migration.
func TestMigrateThriceAtOnce(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	environ := []string{"DATABASE_URL=" + database.URL}
	programs := []*program{start(t, environ, "migrate"), start(t, environ, "migrate"), start(t, environ, "migrate")}
	for _, p := range programs {
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d: %s", code, p.stderr.String())
		}
		if said := p.stdout.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, fmt.Sprintf("→ %d; functions installed", db.Version())) &&
			!strings.Contains(said, fmt.Sprintf("schema version %d already; functions installed", db.Version())) {
			t.Errorf("it said %q", said)
		}
	}
	if !slices.ContainsFunc(programs, func(p *program) bool { return strings.Contains(p.stdout.String(), "schema version 0 → ") }) {
		t.Error("none of the three found the database empty")
	}
	expect(t, 0, fmt.Sprintf("schema version %d already; functions installed", db.Version()), environ, "migrate")
}

func TestMigrateSaysWhyNot(t *testing.T) {
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

	for _, c := range []struct{ name, url, says string }{
		{"a wrong password", withUser(url.UserPassword(login, "not the password")), "(SQLSTATE 28P01)"},
		{"an unknown user", withUser(url.UserPassword("nobody-we-know", marker)), "(SQLSTATE 28"},
		{"an unknown database", other.String(), `database "nowhere" does not exist (SQLSTATE 3D000)`},
		{"nobody listens", closed.String(), "connection refused"},
		{"an unknown host", unknown.String(), "nowhere.invalid"},
		{"a login without rights", withUser(url.UserPassword(login, marker)), "it must be a superuser, or own the database and either have CREATEROLE"},
	} {
		address := databaseConfig{URL: c.url}.address()
		if c.name == "an unknown database" && !strings.Contains(address, owner.Username()+"@") {
			t.Fatalf("the address %s does not name the user", address)
		}
		p := start(t, []string{"DATABASE_URL=" + c.url}, "migrate")
		code := p.wait(t)
		said := p.stderr.String()
		if code != exitFailure || !strings.Contains(said, c.says) || !strings.Contains(said, address) || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s\nwant one line with %s and %q", c.name, code, said, address, c.says)
		}
		if strings.Contains(said, marker) || strings.Contains(said, "not the password") {
			t.Errorf("%s: the password is in %s", c.name, said)
		}
	}

	if n := relations(t, database.Connect(t)); n != 0 {
		t.Errorf("migrate made %d relations", n)
	}
}

// sql prints what migrate does, and needs no database for it.
func TestSQLPrintsTheScript(t *testing.T) {
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

// serve never changes the schema. It says what is missing, and goes on when that has come.
func TestServeWaitsForMigrate(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	p := start(t, environ(database.URL), "serve").listening(t)
	c := newClient(t, p.url, 1)

	unhealthy(t, c, "run coupond migrate")
	expect(t, exitFailure, "run coupond migrate", []string{"LISTEN_ADDR=" + strings.TrimPrefix(p.url, "http://")}, "healthcheck")
	if a := c.must(t, http.MethodGet, "/health/live", ""); a.status != http.StatusOK {
		t.Errorf("/health/live: %d", a.status)
	}
	if a := c.must(t, http.MethodPost, "/api/coupons", `{"name":"x","amount":1}`); a.status != http.StatusServiceUnavailable || a.code != "UNAVAILABLE" {
		t.Errorf("a coupon is created without a schema: %d %s", a.status, a.body)
	}
	if n := relations(t, database.Connect(t)); n != 0 {
		t.Errorf("serve made %d relations", n)
	}

	expect(t, 0, "functions installed", []string{"DATABASE_URL=" + database.URL}, "migrate")
	healthy(t, c)
	p.logged(t, "ready for claims")
	c.create(t, "SALE", 1)
}

// A schema that is older than the binary is waited for like none; a newer one is fine for serve, and none of migrate's business.
func TestServeOnOtherSchemas(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	conn := database.Connect(t)
	setVersion := func(version int32) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), `update public.schema_version set version = $1`, version); err != nil {
			t.Fatal(err)
		}
	}

	setVersion(db.Version() - 1)
	p := start(t, environ(database.URL), "serve").listening(t)
	c := newClient(t, p.url, 1)
	unhealthy(t, c, fmt.Sprintf("version %d, and this program needs %d", db.Version()-1, db.Version()))

	setVersion(db.Version() + 1)
	healthy(t, c)
	c.create(t, "SALE", 1)
	if a, err := c.claim("ann", "SALE"); err != nil || a.status != http.StatusCreated {
		t.Errorf("a claim on a newer schema: %d %s %v", a.status, a.body, err)
	}
	expect(t, exitFailure, fmt.Sprintf("the database has version %d, this program brings %d", db.Version()+1, db.Version()),
		[]string{"DATABASE_URL=" + database.URL}, "migrate")

	// A newer schema without something that this program calls is no place to work, and it says so.
	if _, err := conn.Exec(t.Context(), `drop function public.claim_batch(text[], text[], integer[])`); err != nil {
		t.Fatal(err)
	}
	unhealthy(t, c, fmt.Sprintf("version %d and lacks functions that this program, made for version %d, calls: run a newer program",
		db.Version()+1, db.Version()))
}

// relations counts what stands in schema public.
func relations(t *testing.T, conn *pgx.Conn) int {
	t.Helper()
	var n int
	if err := conn.QueryRow(t.Context(), `select count(*) from pg_class where relnamespace = 'public'::regnamespace`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// healthy waits until the service says that it is.
func healthy(t *testing.T, c *client) {
	t.Helper()
	wait.For(t, "a healthy service", func() bool { return c.must(t, http.MethodGet, "/health", "").status == http.StatusOK })
}

// unhealthy waits until the service says that it is not, because of why.
func unhealthy(t *testing.T, c *client, why string) {
	t.Helper()
	wait.For(t, "/health to say "+why, func() bool {
		a := c.must(t, http.MethodGet, "/health", "")
		if a.status == http.StatusServiceUnavailable && (a.code != "UNAVAILABLE" || !strings.Contains(a.body, `"status":"unhealthy"`)) {
			t.Fatalf("/health says %s", a.body)
		}
		return a.status == http.StatusServiceUnavailable && strings.Contains(a.body, why)
	})
}

// role makes a login role without rights, whose password is marker, and grants it the roles of granted. It is dropped at the end.
func role(t *testing.T, database *pgtest.Database, granted string) string {
	t.Helper()
	conn := database.Connect(t)
	name := "coupond_test_" + strings.ToLower(rand.Text())
	if _, err := conn.Exec(t.Context(), fmt.Sprintf(`create role %s login password '%s' %s`, name, marker, granted)); err != nil {
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
