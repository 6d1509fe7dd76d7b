package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// testPassword is a password that must not appear in any output.
const testPassword = "M4rk3r-Passw0rd"

func TestConfig_defaults(t *testing.T) {
	var got serveConfig
	const url = "postgres://me@host/db"
	if err := load(environment{"DATABASE_URL": url}, &got); err != nil {
		t.Fatal(err)
	}
	want := serveConfig{
		Database: databaseConfig{URL: url},
		Listen:   listenConfig{Addr: ":8080"},
		Service: serviceConfig{
			MaxConns: 16, ClaimConcurrency: 1, ClaimQueue: 4096,
			ClaimTimeout: 5 * time.Second, ShutdownTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		},
		Log: logConfig{Level: "info"},
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	empty := environment{}
	for _, v := range variables(&got) {
		empty[v.name()] = ""
	}
	empty["DATABASE_URL"] = url
	var gotEmpty serveConfig
	if err := load(empty, &gotEmpty); err != nil || gotEmpty != want {
		t.Errorf("empty variables: got %+v, %v", gotEmpty, err)
	}
}

func TestConfig_readsEveryVariable(t *testing.T) {
	secret := writeFile(t, "from-file\n")
	var got serveConfig
	if err := load(environment{
		"DATABASE_URL": "host=db user=me", "DATABASE_PASSWORD_FILE": secret, "LISTEN_ADDR": "[::1]:0", "DB_MAX_CONNS": "7",
		"CLAIM_CONCURRENCY": "3", "CLAIM_QUEUE": "9", "CLAIM_TIMEOUT": "1m", "SHUTDOWN_TIMEOUT": "1h", "IDLE_TIMEOUT": "2h", "LOG_LEVEL": "error",
		"LOG_FORMAT": "console",
	}, &got); err != nil {
		t.Fatal(err)
	}
	want := serveConfig{
		Database: databaseConfig{URL: "host=db user=me", PasswordFile: secret},
		Listen:   listenConfig{Addr: "[::1]:0"},
		Service: serviceConfig{
			MaxConns: 7, ClaimConcurrency: 3, ClaimQueue: 9, ClaimTimeout: time.Minute, ShutdownTimeout: time.Hour,
			IdleTimeout: 2 * time.Hour,
		},
		Log: logConfig{Level: "error", Format: "console"},
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConfig_rejectsInvalidValues(t *testing.T) {
	const (
		address  = "host:port or :port, with a port from 0 (any free one) to 65535"
		duration = "a duration such as 500ms, 5s or 1m, from 10ms to "
	)
	for _, c := range []struct{ name, value, allowed string }{
		{"LISTEN_ADDR", "8080", address},
		{"LISTEN_ADDR", ":65536", address},
		{"LISTEN_ADDR", ":-1", address},
		{"LISTEN_ADDR", ":http", address},
		{"LISTEN_ADDR", "::1:8080", address},
		{"DB_MAX_CONNS", "0", "a whole number from 1 to 1000"},
		{"DB_MAX_CONNS", "1001", "a whole number from 1 to 1000"},
		{"DB_MAX_CONNS", "-1", "a whole number from 1 to 1000"},
		{"DB_MAX_CONNS", "1.5", "a whole number from 1 to 1000"},
		{"DB_MAX_CONNS", "99999999999999999999", "a whole number from 1 to 1000"},
		{"DB_MAX_CONNS", " 5", "a whole number from 1 to 1000"},
		{"CLAIM_CONCURRENCY", "0", "a whole number from 1 to 1000"},
		{"CLAIM_CONCURRENCY", "many", "a whole number from 1 to 1000"},
		{"CLAIM_CONCURRENCY", "17", "at most DB_MAX_CONNS, which is 16"},
		{"CLAIM_QUEUE", "0", "a whole number from 1 to 1000000"},
		{"CLAIM_TIMEOUT", "-1s", "a duration such as 500ms, 5s or 1m, from 20ms to 10m"},
		{"CLAIM_TIMEOUT", "0s", "a duration such as 500ms, 5s or 1m, from 20ms to 10m"},
		{"CLAIM_TIMEOUT", "5", "a duration such as 500ms, 5s or 1m, from 20ms to 10m"},
		{"CLAIM_TIMEOUT", "9ms", "a duration such as 500ms, 5s or 1m, from 20ms to 10m"},
		{"CLAIM_TIMEOUT", "11m", "a duration such as 500ms, 5s or 1m, from 20ms to 10m"},
		{"SHUTDOWN_TIMEOUT", "never", duration + "1h"},
		{"SHUTDOWN_TIMEOUT", "-30s", duration + "1h"},
		{"IDLE_TIMEOUT", "999ms", "a duration such as 500ms, 5s or 1m, from 1s to 24h"},
		{"IDLE_TIMEOUT", "25h", "a duration such as 500ms, 5s or 1m, from 1s to 24h"},
		{"LOG_LEVEL", "loud", "one of debug, info, warn, error"},
		{"LOG_LEVEL", "INFO", "one of debug, info, warn, error"},
		{"LOG_FORMAT", "xml", "one of json, console"},
		{"DATABASE_PASSWORD_FILE", "/no/such/file", "a readable file with one line"},
		{"DATABASE_PASSWORD_FILE", t.TempDir(), "a readable file with one line"},
		{"DATABASE_PASSWORD_FILE", writeFile(t, "\n"), "a readable file with one line"},
		{"DATABASE_PASSWORD_FILE", writeFile(t, testPassword+"\n"+testPassword), "a readable file with one line"},
	} {
		err := load(environment{"DATABASE_URL": "postgres://me@host/db", c.name: c.value}, &serveConfig{})
		want := c.name + `="` + c.value + `"`
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "must be "+c.allowed) {
			t.Errorf("%s=%s: got %v\nwant %s… must be %s", c.name, c.value, err, want, c.allowed)
			continue
		}
		if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), testPassword) {
			t.Errorf("%s=%s: want one line without the password, got %v", c.name, c.value, err)
		}
		if !isUsageError(err) {
			t.Errorf("%s=%s: not a usageError", c.name, c.value)
		}
	}
}

func TestConfig_reportsAllInvalidValues(t *testing.T) {
	wrong := environment{
		"DATABASE_URL": "postgres://me:" + testPassword + "@host:port/db", "DATABASE_PASSWORD_FILE": "/no/such/file", "LISTEN_ADDR": "nowhere",
		"DB_MAX_CONNS": "0", "CLAIM_CONCURRENCY": "x", "CLAIM_QUEUE": "-1", "CLAIM_TIMEOUT": "soon", "SHUTDOWN_TIMEOUT": "-1s", "IDLE_TIMEOUT": "0s",
		"LOG_LEVEL": "loud", "LOG_FORMAT": strings.Repeat("x", 1000),
	}
	err := load(wrong, &serveConfig{})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 1+len(wrong) || lines[0] != "11 invalid settings:" {
		t.Errorf("got %d lines, want a heading and one line for each of %d settings:\n%v", len(lines), len(wrong), err)
	}
	for name := range wrong {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, "  "+name) }) {
			t.Errorf("%s is not reported:\n%v", name, err)
		}
	}
	for _, line := range lines {
		if len(line) > 300 || strings.Contains(line, testPassword) {
			t.Errorf("a line is too long or shows the password: %s", line)
		}
	}
}

// Everything that is wrong is reported at once: several parts of DATABASE_URL, and a variable
// besides a missing DATABASE_URL.
func TestConfig_reportsAllProblemsOfTheDatabase(t *testing.T) {
	for _, c := range []struct {
		vars environment
		want []string // the beginning of each problem
	}{
		{environment{"DATABASE_URL": "postgres://me@host/db?gssencmode=prefer&sslmode=maybe", "LOG_LEVEL": "loud"}, []string{
			`DATABASE_URL: gssencmode="prefer": `, `DATABASE_URL: sslmode="maybe": `, `LOG_LEVEL="loud": `,
		}},
		{environment{"DB_MAX_CONNS": "0"}, []string{"DATABASE_URL is not set: ", `DB_MAX_CONNS="0": `}},
		{environment{"DATABASE_PASSWORD_FILE": "/no/such/file"}, []string{"DATABASE_URL is not set: ", `DATABASE_PASSWORD_FILE="/no/such/file": no such file or directory; `}},
		{environment{}, []string{"DATABASE_URL is not set: "}},
		{environment{"DATABASE_URL": "postgres://me@host/db?statement_cache_capacity=0"}, []string{`DATABASE_URL: statement_cache_capacity="0": `}},
		{environment{"DATABASE_URL": "postgres://me@host/db?password=" + testPassword, "DATABASE_PASSWORD_FILE": writeFile(t, "another"), "CLAIM_QUEUE": "0"}, []string{
			`CLAIM_QUEUE="0": `, "DATABASE_URL: it has a password among its parameters already, and DATABASE_PASSWORD_FILE is set; ",
		}},
		{environment{"DATABASE_URL": testPassword}, []string{"DATABASE_URL: not a connection string; use postgres://"}},
	} {
		err := load(c.vars, &serveConfig{})
		if err == nil || !isUsageError(err) {
			t.Errorf("%v: got %v, want a usageError", c.vars, err)
			continue
		}
		lines := strings.Split(err.Error(), "\n  ")
		if len(lines) > 1 {
			lines = lines[1:] // the first one is the heading
		}
		matches := slices.EqualFunc(lines, c.want, strings.HasPrefix)
		if !matches || strings.Contains(err.Error(), testPassword) {
			t.Errorf("%v: got\n%v\nwant %q, and no password", c.vars, err, c.want)
		}
	}
}

// Secrets often end with a newline.
func TestConfig_ignoresNewlineAfterDatabaseURL(t *testing.T) {
	var config serveConfig
	if err := load(environment{"DATABASE_URL": "postgres://me@host/db?sslmode=disable\n"}, &config); err != nil {
		t.Fatal(err)
	}
	if got, err := config.Database.connString(); err != nil || got != "postgres://me@host/db?sslmode=disable" {
		t.Errorf("without a password file: %q, %v", got, err)
	}
	config.Database.PasswordFile = writeFile(t, "secret\n")
	if got, err := config.Database.connString(); err != nil || got != "postgres://me:secret@host/db?sslmode=disable" {
		t.Errorf("with a password file: %q, %v", got, err)
	}
	if got := config.Database.address(); got != "me@host:5432/db" {
		t.Errorf("address %q", got)
	}
}

// The log shows the address of the database as pgx parses it.
func TestConfig_showsDatabaseWithoutPassword(t *testing.T) {
	for connString, want := range map[string]string{
		"postgres://me:" + testPassword + "@host:5433/db":                          "me@host:5433/db",
		"postgres://me:" + testPassword + "@host1:5433,host2:5434/db":              "me@host1:5433/db",
		"postgres://me@[::1]:5433/db?password=" + testPassword:                     "me@[::1]:5433/db",
		"host=/run/pg port=5433 user=me dbname=db password='" + testPassword + "'": "me@/run/pg:5433/db",
	} {
		var config serveConfig
		if err := load(environment{"DATABASE_URL": connString}, &config); err != nil {
			t.Errorf("%s: %v", connString, err)
			continue
		}
		if got := config.Database.address(); got != want {
			t.Errorf("%s is shown as %s, want %s", connString, got, want)
		}
		var log bytes.Buffer
		out := newOutput(&log)
		logger, err := newLogger(out, &config.Log)
		if err != nil {
			t.Fatal(err)
		}
		logStart(logger, config.Database.address(), &config)
		out.close()
		if !strings.Contains(log.String(), want) || strings.Contains(log.String(), testPassword) {
			t.Errorf("%s: log line %s", connString, log.String())
		}
	}
}

// The struct tags are valid, each command reads the expected variables, and its --help describes
// them.
func TestConfig_tags(t *testing.T) {
	service := []string{"LISTEN_ADDR", "DB_MAX_CONNS", "CLAIM_CONCURRENCY", "CLAIM_QUEUE", "CLAIM_TIMEOUT", "SHUTDOWN_TIMEOUT", "IDLE_TIMEOUT", "LOG_LEVEL", "LOG_FORMAT"}
	database := []string{"DATABASE_URL", "DATABASE_PASSWORD_FILE"}
	for _, c := range []struct {
		command string
		config  any
		names   []string
	}{
		{"serve", &serveConfig{}, append(slices.Clone(database), service...)},
		{"dev", &devConfig{}, service},
		{"migrate", &migrateConfig{}, database},
		{"healthcheck", &healthcheckConfig{}, []string{"LISTEN_ADDR"}},
	} {
		if err := load(environment{"DATABASE_URL": "postgres://me@host/db"}, c.config); err != nil {
			t.Errorf("%s: its defaults are rejected: %v", c.command, err)
		}
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), []string{c.command, "--help"}, nil, &stdout, &stderr); code != 0 || stderr.Len() != 0 {
			t.Errorf("%s --help: exit code %d, stderr %s", c.command, code, stderr.String())
		}
		var names []string
		for _, v := range variables(c.config) {
			names = append(names, v.name())
			if v.Tag.Get("help") == "" || v.allowed() == "" {
				t.Errorf("%s: %s has no help", c.command, v.name())
			}
			unfolded := strings.ReplaceAll(stdout.String(), "\n          ", " ")
			if fallback := v.Tag.Get("envDefault"); !strings.Contains(stdout.String(), v.name()) ||
				!strings.Contains(unfolded, v.allowed()) || fallback != "" && !strings.Contains(stdout.String(), v.name()+"="+fallback) {
				t.Errorf("%s --help does not describe %s:\n%s", c.command, v.name(), stdout.String())
			}
		}
		if !slices.Equal(names, c.names) {
			t.Errorf("%s reads %v\nwant %v", c.command, names, c.names)
		}
	}
}

func isUsageError(err error) bool {
	_, ok := errors.AsType[usageError](err)
	return ok
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
