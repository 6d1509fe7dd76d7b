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

	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"
)

// marker stands in for a password: it must not come out anywhere.
const marker = "M4rk3r-Passw0rd"

func TestConfigDefaults(t *testing.T) {
	var got serveConfig
	if err := load(environment{}, &got); err != nil {
		t.Fatal(err)
	}
	want := serveConfig{
		Listen: listenConfig{Addr: ":8080"},
		Service: serviceConfig{
			MaxConns: 16, ClaimLanes: 1, ClaimQueue: 4096,
			ClaimTimeout: 5 * time.Second, ShutdownTimeout: 30 * time.Second,
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
	var gotEmpty serveConfig
	if err := load(empty, &gotEmpty); err != nil || gotEmpty != want {
		t.Errorf("variables that are set to nothing: got %+v, %v", gotEmpty, err)
	}
}

func TestConfigReadsEveryVariable(t *testing.T) {
	secret := writeFile(t, "from-file\n")
	var got serveConfig
	if err := load(environment{
		"DATABASE_URL": "host=db user=me", "DATABASE_PASSWORD_FILE": secret, "LISTEN_ADDR": "[::1]:0", "DB_MAX_CONNS": "7",
		"CLAIM_LANES": "3", "CLAIM_QUEUE": "9", "CLAIM_TIMEOUT": "1m", "SHUTDOWN_TIMEOUT": "1h", "LOG_LEVEL": "error",
		"LOG_FORMAT": "console",
	}, &got); err != nil {
		t.Fatal(err)
	}
	want := serveConfig{
		Database: databaseConfig{URL: "host=db user=me", PasswordFile: secret},
		Listen:   listenConfig{Addr: "[::1]:0"},
		Service: serviceConfig{
			MaxConns: 7, ClaimLanes: 3, ClaimQueue: 9, ClaimTimeout: time.Minute, ShutdownTimeout: time.Hour,
		},
		Log: logConfig{Level: "error", Format: "console"},
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConfigRefuses(t *testing.T) {
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
		{"CLAIM_LANES", "0", "a whole number from 1 to 1000"},
		{"CLAIM_LANES", "many", "a whole number from 1 to 1000"},
		{"CLAIM_LANES", "17", "at most DB_MAX_CONNS, which is 16"},
		{"CLAIM_QUEUE", "0", "a whole number from 1 to 1000000"},
		{"CLAIM_TIMEOUT", "-1s", duration + "10m"},
		{"CLAIM_TIMEOUT", "0s", duration + "10m"},
		{"CLAIM_TIMEOUT", "5", duration + "10m"},
		{"CLAIM_TIMEOUT", "9ms", duration + "10m"},
		{"CLAIM_TIMEOUT", "11m", duration + "10m"},
		{"SHUTDOWN_TIMEOUT", "never", duration + "1h"},
		{"SHUTDOWN_TIMEOUT", "-30s", duration + "1h"},
		{"LOG_LEVEL", "loud", "one of debug, info, warn, error"},
		{"LOG_LEVEL", "INFO", "one of debug, info, warn, error"},
		{"LOG_FORMAT", "xml", "one of json, console"},
		{"DATABASE_PASSWORD_FILE", "/no/such/file", "a file that can be read and holds one line"},
		{"DATABASE_PASSWORD_FILE", t.TempDir(), "a file that can be read and holds one line"},
		{"DATABASE_PASSWORD_FILE", writeFile(t, "\n"), "a file that can be read and holds one line"},
		{"DATABASE_PASSWORD_FILE", writeFile(t, marker+"\n"+marker), "a file that can be read and holds one line"},
	} {
		err := load(environment{c.name: c.value}, &serveConfig{})
		want := c.name + `="` + c.value + `"`
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "allowed is "+c.allowed) {
			t.Errorf("%s=%s: got %v\nwant %s…; allowed is %s", c.name, c.value, err, want, c.allowed)
			continue
		}
		if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), marker) {
			t.Errorf("%s=%s: want one line without the password, got %v", c.name, c.value, err)
		}
		if !errors.As(err, new(usageError)) {
			t.Errorf("%s=%s: exit code 1, want 2", c.name, c.value)
		}
	}
}

func TestConfigReportsAllWrongValuesAtOnce(t *testing.T) {
	wrong := environment{
		"DATABASE_URL": "postgres://me:" + marker + "@host:port/db", "DATABASE_PASSWORD_FILE": "/no/such/file", "LISTEN_ADDR": "nowhere",
		"DB_MAX_CONNS": "0", "CLAIM_LANES": "x", "CLAIM_QUEUE": "-1", "CLAIM_TIMEOUT": "soon", "SHUTDOWN_TIMEOUT": "-1s",
		"LOG_LEVEL": "loud", "LOG_FORMAT": strings.Repeat("x", 1000),
	}
	err := load(wrong, &serveConfig{})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 1+len(wrong) || lines[0] != "10 settings are wrong:" {
		t.Errorf("got %d lines, want one for each of %d settings and a first one:\n%v", len(lines), len(wrong), err)
	}
	for name := range wrong {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, "  "+name) }) {
			t.Errorf("%s is not mentioned:\n%v", name, err)
		}
	}
	for _, line := range lines {
		if len(line) > 300 || strings.Contains(line, marker) {
			t.Errorf("a line that is too long or shows the password: %s", line)
		}
	}
}

// However a connection string is broken, and whoever misreads where its password ends: no part of the password comes out.
func TestConfigNeverShowsAPasswordOfAConnectionString(t *testing.T) {
	for _, connString := range []string{
		marker,
		"postgres://me:" + marker + "@host:port/db",
		"postgres://me:" + marker + "@host:5432/db?sslmode=maybe",
		"postgres://me:" + marker + "@host:5432/db?connect_timeout=x",
		"postgres://me:" + marker + "@host:5432/db?sslrootcert=/no/such/file&sslmode=verify-full",
		"postgres://me:" + marker + "%zz@host/db",
		"postgres://me:" + marker + "/x@host/db",
		"postgres://me:x/" + marker + "@host/db",
		"postgres://me:12/" + marker + "@host/db",
		"postgres://me:12/?" + marker + "@host/db",
		"postgres://me:x@" + marker + "@host/db",
		"postgres://host/db?sslmode=maybe&password=" + marker,
		"postgres://[host/db?password=" + marker,
		"http://me:" + marker + "@host/db",
		"me:" + marker + "@host/db",
		"host=h user=me password=" + marker + " sslmode=maybe",
		"host=h user=me password=x " + marker,
		"host=h user=me password='" + marker,
		"host=h port=x user=me password=" + marker,
	} {
		err := load(environment{"DATABASE_URL": connString}, &serveConfig{})
		if err == nil {
			t.Errorf("%s: no error", connString)
			continue
		}
		if strings.Contains(err.Error(), marker) || !strings.HasPrefix(err.Error(), "DATABASE_URL (not shown here") {
			t.Errorf("%s: %v", connString, err)
		}
	}
}

// The log says which database it is, by what the driver makes of the connection string.
func TestConfigShowsTheDatabaseWithoutItsPassword(t *testing.T) {
	for connString, want := range map[string]string{
		"postgres://me:" + marker + "@host:5433/db":                          "me@host:5433/db",
		"postgres://me:" + marker + "@host1:5433,host2:5434/db":              "me@host1:5433/db",
		"postgres://me@[::1]:5433/db?password=" + marker:                     "me@[::1]:5433/db",
		"host=/run/pg port=5433 user=me dbname=db password='" + marker + "'": "me@/run/pg:5433/db",
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
		logger, err := newLogger(&log, &config.Log)
		if err != nil {
			t.Fatal(err)
		}
		logStart(logger, config.Database.address(), &config)
		if !strings.Contains(log.String(), want) || strings.Contains(log.String(), marker) {
			t.Errorf("%s: the start-up line is %s", connString, log.String())
		}
	}
}

func TestConfigTakesAnyPasswordFromAFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		password := rapid.StringMatching(`[^\x00\r\n]+`).Draw(t, "password")
		for _, connString := range []string{
			"postgres://me@host/db",
			"postgres://host/db?user=me",
			"postgres:///db?host=/run/pg&user=me",
			"postgresql://me:another@host:5433/db?sslmode=disable",
			"postgres://me%40home:a%2Fb@host1:5433,host2:5434/db",
			"host=host user=me dbname=db",
			"host=host password='another one' user=me dbname=db ",
		} {
			before, err := pgxpool.ParseConfig(connString)
			if err != nil {
				t.Fatalf("%s: %v", connString, err)
			}
			with, err := withPassword(connString, password)
			if err != nil {
				t.Fatalf("%s: %v", connString, err)
			}
			after, err := pgxpool.ParseConfig(with)
			if err != nil {
				t.Fatalf("%s became %s: %v", connString, with, err)
			}
			was, is := before.ConnConfig, after.ConnConfig
			if is.Password != password {
				t.Errorf("%s became %s, whose password is %q, want %q", connString, with, is.Password, password)
			}
			if was.User != is.User || was.Host != is.Host || was.Port != is.Port || was.Database != is.Database || len(was.Fallbacks) != len(is.Fallbacks) {
				t.Errorf("%s became %s", connString, with)
			}
		}
	})
}

func TestConfigRefusesTwoPasswords(t *testing.T) {
	config := databaseConfig{URL: "postgres://me@host/db?password=" + marker, PasswordFile: writeFile(t, "another")}
	_, err := config.connString()
	if err == nil || !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), "DATABASE_PASSWORD_FILE") || strings.Contains(err.Error(), marker) {
		t.Errorf("got %v", err)
	}
}

// What the tags say makes sense, and the design's table of variables is what the commands read.
func TestConfigTags(t *testing.T) {
	service := []string{"LISTEN_ADDR", "DB_MAX_CONNS", "CLAIM_LANES", "CLAIM_QUEUE", "CLAIM_TIMEOUT", "SHUTDOWN_TIMEOUT", "LOG_LEVEL", "LOG_FORMAT"}
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
		if err := load(environment{}, c.config); err != nil {
			t.Errorf("%s: its defaults are refused: %v", c.command, err)
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
				t.Errorf("%s --help does not say what %s is:\n%s", c.command, v.name(), stdout.String())
			}
		}
		if !slices.Equal(names, c.names) {
			t.Errorf("%s reads %v\nthe design says %v", c.command, names, c.names)
		}
	}
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
