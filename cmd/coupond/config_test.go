package main

import (
	"cmp"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// testPassword is a password that must not appear in any output.
const testPassword = "M4rk3r-Passw0rd"

const noServer = "DATABASE_URL=postgres://me@127.0.0.1:1/db"

// The log line at the start has all settings: defaults, also for empty variables, values from the
// environment, and those of flags, which win.
func TestSettings_effective(t *testing.T) {
	t.Parallel()
	fixed := []string{noServer, "LISTEN_ADDR=[::1]:0", "LOG_FORMAT=json"}
	flags := []string{"serve", "--listen-addr=127.0.0.1:0", "--idle-timeout", "3h"}
	empty, set := slices.Clone(fixed), slices.Clone(fixed)
	defaults := map[string]any{"DATABASE_URL": "(hidden)", "LISTEN_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", "IDLE_TIMEOUT": "3h0m0s"}
	values := maps.Clone(defaults)
	for _, s := range []struct{ name, byDefault, value, logged string }{
		{"DATABASE_PASSWORD_FILE", "", writeFile(t, "from-file\n"), ""},
		{"DB_MAX_CONNS", "16", "7", ""},
		{"CLAIM_CONCURRENCY", "1", "3", ""},
		{"CLAIM_QUEUE", "4096", "9", ""},
		{"CLAIM_TIMEOUT", "5s", "1m", "1m0s"},
		{"SHUTDOWN_TIMEOUT", "30s", "1h", "1h0m0s"},
		{"LOG_LEVEL", "info", "debug", ""},
	} {
		empty, set = append(empty, s.name+"="), append(set, s.name+"="+s.value)
		defaults[s.name], values[s.name] = s.byDefault, cmp.Or(s.logged, s.value)
	}
	for name, c := range map[string]struct {
		environ []string
		want    map[string]any
	}{"defaults": {fixed, defaults}, "empty": {empty, defaults}, "environment": {append(set, "IDLE_TIMEOUT=2h"), values}} {
		p := start(t, c.environ, flags...)
		if got := p.logged(t, "starting")["config"].(map[string]any); !maps.Equal(got, c.want) {
			t.Errorf("%s: got\n%v\nwant\n%v", name, got, c.want)
		}
	}
}

func TestSettings_invalid(t *testing.T) {
	t.Parallel()
	const (
		address = "host:port or :port, with a port from 0 (any free one) to 65535"
		timeout = "a duration such as 500ms, 5s or 1m, from 20ms to 10m"
		stop    = "a duration such as 500ms, 5s or 1m, from 10ms to 1h"
		idle    = "a duration such as 500ms, 5s or 1m, from 1s to 24h"
		conns   = "a whole number from 1 to 1000"
		file    = "a readable file with one line"
	)
	for _, c := range []struct{ name, value, allowed string }{
		{"LISTEN_ADDR", "8080", address},
		{"LISTEN_ADDR", ":65536", address},
		{"LISTEN_ADDR", ":-1", address},
		{"LISTEN_ADDR", ":http", address},
		{"LISTEN_ADDR", "::1:8080", address},
		{"DB_MAX_CONNS", "0", conns},
		{"DB_MAX_CONNS", "1001", conns},
		{"DB_MAX_CONNS", "1.5", conns},
		{"DB_MAX_CONNS", "99999999999999999999", conns},
		{"DB_MAX_CONNS", " 5", conns},
		{"CLAIM_CONCURRENCY", "many", conns},
		{"CLAIM_CONCURRENCY", "17", "at most DB_MAX_CONNS, which is 16"},
		{"CLAIM_QUEUE", "0", "a whole number from 1 to 65536"},
		{"CLAIM_TIMEOUT", "-1s", timeout},
		{"CLAIM_TIMEOUT", "5", timeout},
		{"CLAIM_TIMEOUT", "9ms", timeout},
		{"CLAIM_TIMEOUT", "11m", timeout},
		{"SHUTDOWN_TIMEOUT", "never", stop},
		{"IDLE_TIMEOUT", "999ms", idle},
		{"IDLE_TIMEOUT", "25h", idle},
		{"LOG_LEVEL", "INFO", "one of debug, info, warn, error"},
		{"LOG_FORMAT", "xml", "one of auto, json, console"},
		{"DATABASE_PASSWORD_FILE", "/no/such/file", file},
		{"DATABASE_PASSWORD_FILE", t.TempDir(), file},
		{"DATABASE_PASSWORD_FILE", writeFile(t, "\n"), file},
		{"DATABASE_PASSWORD_FILE", writeFile(t, testPassword+"\n"+testPassword), file},
	} {
		flag := "--" + strings.ReplaceAll(strings.ToLower(c.name), "_", "-") + "=" + c.value
		_, first := outputOf(t, exitUsage, []string{noServer, c.name + "=" + c.value}, "serve")
		_, second := outputOf(t, exitUsage, []string{noServer}, "serve", flag)
		for _, got := range []string{first, second} {
			if !strings.HasPrefix(got, "coupond: "+c.name+`="`+c.value+`": `) || !strings.HasSuffix(got, "must be "+c.allowed+"\n") ||
				strings.Count(got, "\n") != 1 || strings.Contains(got, testPassword) {
				t.Errorf("%swant %s=%q … must be %s", got, c.name, c.value, c.allowed)
			}
		}
	}
}

// Everything that is wrong is reported at once, in the order of the help, without a password: also
// several parts of DATABASE_URL, and what is wrong beside a missing DATABASE_URL.
func TestSettings_allProblems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		environ []string
		want    []string // the beginning of each problem
	}{
		{[]string{
			"DATABASE_URL=postgres://me:" + testPassword + "@host:port/db", "DATABASE_PASSWORD_FILE=/no/such/file", "LISTEN_ADDR=nowhere", "DB_MAX_CONNS=0",
			"CLAIM_CONCURRENCY=x", "CLAIM_QUEUE=-1", "CLAIM_TIMEOUT=soon", "SHUTDOWN_TIMEOUT=-1s", "IDLE_TIMEOUT=0s", "LOG_LEVEL=loud", "LOG_FORMAT=" + strings.Repeat("x", 1000),
		}, []string{
			"DATABASE_URL: ", `DATABASE_PASSWORD_FILE="/no/such/file": no such file or directory; `, `LISTEN_ADDR="nowhere": `, `DB_MAX_CONNS="0": `,
			`CLAIM_CONCURRENCY="x": `, `CLAIM_QUEUE="-1": `, `CLAIM_TIMEOUT="soon": `, `SHUTDOWN_TIMEOUT="-1s": `, `IDLE_TIMEOUT="0s": `, `LOG_LEVEL="loud": `, `LOG_FORMAT="x`,
		}},
		{[]string{"DATABASE_URL=postgres://me@host/db?gssencmode=prefer&ssl=false", "LOG_LEVEL=loud"}, []string{
			`DATABASE_URL: gssencmode="prefer": `, `DATABASE_URL: ssl="false": `, `LOG_LEVEL="loud": `,
		}},
		{[]string{"DB_MAX_CONNS=0", "DATABASE_PASSWORD_FILE=/no/such/file"}, []string{
			`DATABASE_PASSWORD_FILE="/no/such/file": no such file or directory; `, `DB_MAX_CONNS="0": `, "DATABASE_URL is not set: ",
		}},
		{[]string{"DATABASE_URL=postgres://me@host/db?statement_cache_capacity=0"}, []string{`DATABASE_URL: statement_cache_capacity="0": `}},
		{[]string{"DATABASE_URL=postgres://me@host/db?password=" + testPassword, "DATABASE_PASSWORD_FILE=" + writeFile(t, "another"), "CLAIM_QUEUE=0"}, []string{
			`CLAIM_QUEUE="0": `, "DATABASE_URL: it has a password among its parameters already, and DATABASE_PASSWORD_FILE is set; ",
		}},
		{[]string{"DATABASE_URL=" + testPassword}, []string{"DATABASE_URL: not a connection string; use postgres://"}},
	} {
		_, got := outputOf(t, exitUsage, c.environ, "serve")
		lines := strings.Split(strings.TrimSuffix(strings.TrimPrefix(got, "coupond: "), "\n"), "\n  ")
		tooLong := func(line string) bool { return len(line) > 300 }
		if !slices.EqualFunc(lines, c.want, strings.HasPrefix) || slices.ContainsFunc(lines, tooLong) || strings.Contains(got, testPassword) {
			t.Errorf("%q: %s\nwant %q, and no password", c.environ, got, c.want)
		}
	}
}

// Log and errors show the address of the database as pgx parses it. The connection string has the
// password of the file. Secrets often end with a newline.
func TestDatabaseSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ url, file, address, connString string }{
		{"postgres://me:pw@host:5433/db", "", "me@host:5433/db", "postgres://me:pw@host:5433/db"},
		{"postgres://me:pw@host1:5433,host2:5434/db", "", "me@host1:5433/db", "postgres://me:pw@host1:5433,host2:5434/db"},
		{"postgres://me@[::1]:5433/db?password=pw", "", "me@[::1]:5433/db", "postgres://me@[::1]:5433/db?password=pw"},
		{"host=/run/pg port=5433 user=me dbname=db", "pw\r\n", "me@/run/pg:5433/db", "host=/run/pg port=5433 user=me dbname=db password='pw'"},
		{"postgres://me@host/db?sslmode=disable\n", "", "me@host:5432/db", "postgres://me@host/db?sslmode=disable"},
		{"postgres://me@host/db?sslmode=disable\n", "pw\n", "me@host:5432/db", "postgres://me:pw@host/db?sslmode=disable"},
	} {
		d := databaseSettings{DatabaseURL: c.url}
		if c.file != "" {
			d.DatabasePasswordFile = writeFile(t, c.file)
		}
		s := &settings{}
		if err := d.AfterApply(s); err != nil || s.problems != nil || d.connString != c.connString || d.address != c.address {
			t.Errorf("%q, %q: %q and %q, want %q and %q; %v %v", c.url, c.file, d.connString, d.address, c.connString, c.address, err, s.problems)
		}
	}
}

// A service never writes its password, even at the lowest log level and when its connections fail.
// It runs as a login that has only the privileges of coupon_service.
func TestServe_hidesPassword(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	login := role(t, database, "in role coupon_service")
	owner := database.Connect(t)
	u := parseURL(t, database.URL)
	u.User = url.UserPassword(login, testPassword)
	inURL := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s")
	u.User = url.User(login)
	inFile := environ(u.String(), "LOG_LEVEL=debug", "CLAIM_TIMEOUT=2s", "DATABASE_PASSWORD_FILE="+writeFile(t, testPassword+"\n"))

	for name, environ := range map[string][]string{"in the URL": inURL, "in a file": inFile} {
		p := start(t, environ, "serve").ready(t)
		c := p.client(t)
		c.create(t, name, 1)
		c.claimed(t, "ann", name)

		// The password changes while the service runs, and its connections are terminated.
		mustExec(t, owner, "alter role "+login+" password 'another'",
			"select pg_terminate_backend(pid) from pg_stat_activity where usename = '"+login+"'")
		waitUnhealthy(t, c, "the database refuses the login")
		if a, err := c.claim("bob", name); err != nil || a.Status != http.StatusServiceUnavailable {
			t.Errorf("claim without a connection: %+v, %v", a, err)
		}
		mustExec(t, owner, "alter role "+login+" password '"+testPassword+"'")
		waitHealthy(t, c)

		p.stop(t, os.Interrupt)
		output := p.stdout.String() + p.stderr.String()
		if strings.Contains(output, testPassword) {
			t.Errorf("password %s: the output of coupond contains it: %s", name, output)
		}
		if !strings.Contains(output, "28P01") {
			t.Errorf("the log does not say why the server refuses the login: %s", output)
		}
	}
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}
