package pgstore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"scalable-coupon-system/internal/pgtest"
)

// connPassword is a password that must not appear in any error.
const connPassword = "M4rk3r-Passw0rd"

func TestParseURL_accepts(t *testing.T) {
	for _, text := range []string{
		"postgres://me@host/db",
		"postgres://me:" + connPassword + "@h1:5432,h2:5433/db?target_session_attrs=read-write&sslmode=require&connect_timeout=1",
		"postgres://me@host/db?application_name=shop@eu&options=-c%20work_mem%3D8MB", // a legal @
		"postgres://host/db?user=me@tenant&password=p@ss",
		"postgres:///db?host=/run/postgresql&user=me",
		"postgres://me@host/db?ssl=true",
		"postgres://me@host/db?TimeZone=UTC&work_mem=8MB&my.setting=1&role=x",
		"postgres://me@host/db?statement_cache_capacity=0&default_query_exec_mode=exec",
		"postgres://me@host/db?pool_max_conn_lifetime=5m&",
		"\n postgres://me@host/db?sslmode=disable \r\n", // as in a file or a secret
		"host=host user=me dbname=db\n",
		`host = host user='my \'user' password=a\ b`,
		"",
	} {
		config, err := ParseURL(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if name := config.ConnConfig.Database; strings.TrimSpace(name) != name {
			t.Errorf("%q: the database is %q", text, name)
		}
	}
}

// Every unknown parameter is named, with what to do instead. Of the others, the first wrong one is.
func TestParseURL_namesEveryProblem(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for text, want := range map[string][]string{ // one for each line
		"postgres://me@host/db?statement_cache_capacity=0&ssl=false": {
			`ssl="false": use sslmode`, `statement_cache_capacity="0": must be 1 or more; to prepare no statements, use default_query_exec_mode=exec`,
		},
		"postgres://me@host/db?default_query_exec_mode=cache_describe&description_cache_capacity=0": {`description_cache_capacity="0"`},
		"postgres://me@host/db?keepalives=1&pgbouncer=true":                                         {`keepalives="1": not supported`, `pgbouncer="true": use default_query_exec_mode=exec`},
		"postgres://me@host/db?schema=public&pool_max_conns=5":                                      {`schema="public": the schema is always coupond; remove it`, "pool_max_conns: use DB_MAX_CONNS"},
		"postgres://me@host/db?target_session_attrs=read-only":                                      {"target_session_attrs: must be any, read-write or primary"},
		"postgres://me@host/db?target_session_attrs=standby":                                        {"target_session_attrs: must be any, read-write or primary"},
		"host=h target_session_attrs=prefer-standby":                                                {"target_session_attrs: must be any, read-write or primary"},
		"host=host ssl=true":                                      {`ssl="true": use sslmode`},
		"postgres://me@host/db?sslmod=disable":                    {"sslmod: unknown parameter; remove it"},
		"postgres://me@host/db?SSLMode=disable&max_connections=5": {"SSLMode: unknown parameter; remove it", "max_connections: unknown parameter"}, // pgx is case-sensitive
		"postgres://me@host/db?password=x&sslmod=disable":         {"unknown parameter beside the password: remove it"},

		"postgres://me@host/db?sslmode=maybe":                      {"failed to configure TLS (sslmode is invalid)"},
		"postgres://me@host/db?connect_timeout=soon":               {"invalid connect_timeout"},
		"postgres://me@host:x/db":                                  {"the port is not a number"},
		"host=a,b port=1,2,3":                                      {"could not match 3 port numbers to 2 hosts"},
		"postgres://me@host/db?sslrootcert=" + missing:             {"failed to configure TLS (unable to read CA file: open " + missing},
		"postgres://me@host/db?service=none&servicefile=/dev/null": {"failed to read service (unable to find service: none)"},
		"postgres://me@host/db?options=-c work_mem=8MB":            {"the value of a parameter has an = (percent-encode it: %3D)"},
		"postgres://me:pass word@host/db":                          {"it has a space (percent-encode it: %20)"},
		"postgres://me@host/db?application_name=100%":              {"a % is not followed by two hexadecimal digits"},
		"postgres://me@host/db\n?sslmode=disable":                  {"not a connection string; use postgres://"},
		`"postgres://me@host/db"`:                                  {"not a connection string; use postgres://"},
		"jdbc:postgresql://host/db?user=me":                        {"not a connection string; use postgres://"},
		"db.example.com":                                           {"not a connection string; use postgres://"},
		"host='host":                                               {"a quotation mark is missing"},
	} {
		_, err := ParseURL(text)
		if err == nil {
			t.Errorf("%q: no error", text)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		slices.Sort(lines)
		slices.Sort(want)
		if !slices.EqualFunc(lines, want, strings.HasPrefix) {
			t.Errorf("%q: %q, want lines that begin with %q", text, lines, want)
		}
	}
}

// The error never shows a part of the password, even where it is unclear where the password ends.
func TestParseURL_hidesThePassword(t *testing.T) {
	for _, text := range []string{
		connPassword,
		"postgres://me:" + connPassword + "@host:port/db",
		"postgres://me:" + connPassword + "@host:5432/db?sslmode=maybe",
		"postgres://me:" + connPassword + "@host:5432/db?connect_timeout=x",
		"postgres://me:" + connPassword + "@host:5432/db?sslrootcert=/no/such/file&sslmode=verify-full",
		"postgres://me:" + connPassword + "@host:5432/db?gssencmode=prefer&passwort=" + connPassword,
		"postgres://me:" + connPassword + "%zz@host/db",
		"postgres://me@[::1/" + connPassword,
		"postgres://me:" + connPassword + "/x@host/db",
		"postgres://me:x/" + connPassword + "@host/db",
		"postgres://me:12/" + connPassword + "@host/db",
		"postgres://me:12/?" + connPassword + "@host/db",
		"postgres://me:12/?x=" + connPassword + "@host/db",
		"postgres://me:12/?x=1&" + connPassword + "@host/db",
		"postgres://me:x@" + connPassword + "@host/db",
		"postgres://me:x#" + connPassword + "@host:y/db",
		"postgres://host/db?sslmode=maybe&password=" + connPassword,
		"postgres://host/db?password=x&M4rk3r-Passw0rd=y",
		"postgres://host/db?password=x&" + strings.ReplaceAll(connPassword, "-", "_") + "=y",
		"postgres://host/db?sslpassword=" + connPassword + "&sslcert=/dev/null&sslkey=/dev/null",
		"postgres://[host/db?password=" + connPassword,
		"http://me:" + connPassword + "@host/db",
		"me:" + connPassword + "@host/db",
		"host=h user=me password=" + connPassword + " sslmode=maybe",
		"host=h user=me password=x " + connPassword,
		"host=h user=me password=x " + connPassword + "=y sslmode=disable",
		"host=h user=me password=x M4rk3r sslmode=disable",
		"host=h user=me password='" + connPassword,
		"host=h user=me password=" + connPassword + " db",
		"host=h port=x user=me password=" + connPassword,
		"host=h user=me pwd=" + connPassword,
	} {
		_, err := ParseURL(text)
		if err == nil {
			t.Errorf("%s: no error", text)
			continue
		}
		if shown := err.Error(); strings.Contains(shown, "M4rk3r") {
			t.Errorf("%s: the error shows the password: %v", text, err)
		}
	}
}

// A wrong value that comes from the environment is not blamed on the connection string.
func TestParseURL_environment(t *testing.T) {
	t.Setenv("PGSSLMODE", "maybe")
	_, err := ParseURL("postgres://me@host/db")
	if err == nil || !strings.Contains(err.Error(), "environment variable") || !strings.Contains(err.Error(), "sslmode is invalid") {
		t.Errorf("PGSSLMODE=maybe: %v", err)
	}
	if _, err := ParseURL("postgres://me@host/db?sslmode=disable"); err != nil {
		t.Errorf("a URL with its own sslmode: %v", err)
	}

	t.Setenv("PGSSLMODE", "")
	file := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(file, []byte("[shop]\nhost=host\nkeepalives=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", file)
	_, err = ParseURL("service=shop user=me")
	if err == nil || !strings.HasPrefix(err.Error(), `keepalives="1": `) {
		t.Errorf("a service file with an unknown parameter: %v", err)
	}
}

// settings.txt has every setting that a session of this server can change.
func TestParseURL_knowsTheServersSettings(t *testing.T) {
	t.Parallel()
	rows, err := pgtest.New(t).Connect(t).Query(t.Context(), `
		select name
		from pg_catalog.pg_settings
		where context in ('user', 'superuser', 'backend', 'superuser-backend')`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !isServerSetting(name) {
			t.Errorf("settings.txt lacks %s", name)
		}
	}
}

func TestWithPassword_acceptsAnyPassword(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		password := rapid.StringMatching(`[^\x00\r\n]+`).Draw(t, "password")
		for _, text := range []string{
			"postgres://me@host/db",
			"postgres://host/db?user=me",
			"postgres:///db?host=/run/pg&user=me",
			"postgresql://me:another@host:5433/db?sslmode=disable\n",
			"postgres://me%40home:a%2Fb@host1:5433,host2:5434/db?application_name=a@b",
			"host=host user=me dbname=db",
			"host=host password='another one' user=me dbname=db ",
		} {
			before, err := ParseURL(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			with, err := WithPassword(text, password)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			after, err := ParseURL(with)
			if err != nil {
				t.Fatalf("%s became %s: %v", text, with, err)
			}
			was, is := before.ConnConfig, after.ConnConfig
			if is.Password != password {
				t.Errorf("%s became %s with password %q, want %q", text, with, is.Password, password)
			}
			if was.User != is.User || was.Host != is.Host || was.Port != is.Port || was.Database != is.Database || len(was.Fallbacks) != len(is.Fallbacks) {
				t.Errorf("%s became %s", text, with)
			}
		}
	})
}

func TestWithPassword_rejectsTwoPasswords(t *testing.T) {
	_, err := WithPassword("postgres://me@host/db?password="+connPassword, "another")
	if err == nil || !strings.Contains(err.Error(), "it has a password among its parameters") || strings.Contains(err.Error(), connPassword) {
		t.Errorf("got %v", err)
	}
}
