package deploy_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// psql runs roles.sql. The output is that of stdout and stderr.
func psql(t *testing.T, at string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("psql is not installed (Debian: apt-get install postgresql-client); tests of SQL files are skipped")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "psql", append([]string{"-Xq", "-d", at, "-f", "roles.sql"}, args...)...).CombinedOutput()
	return string(output), err
}

func connect(t *testing.T, at string) *pgx.Conn {
	t.Helper()
	return (&pgtest.Database{URL: at}).Connect(t)
}

func exec1(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func value[T any](t *testing.T, conn *pgx.Conn, sql string) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// as returns a connection string for a login, and another database.
func as(t *testing.T, at, login, password, database string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	if login != "" {
		u.User = url.UserPassword(login, password)
	}
	u.Path = "/" + database
	return u.String()
}

// passwordFiles returns a folder with random passwords, and these.
func passwordFiles(t *testing.T) (folder, ownerPassword, servicePassword string) {
	t.Helper()
	folder = t.TempDir()
	write := func(name string) string {
		password := rand.Text()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return password
	}
	return folder, write("owner"), write("service")
}

// The owner that roles.sql creates installs and upgrades without CREATEROLE, and the service's
// login can only call the functions. The administrator may be a superuser or a login of a managed
// PostgreSQL.
func TestRoles(t *testing.T) {
	t.Parallel()
	for name, administrator := range map[string]string{
		"superuser":          "superuser",
		"not a superuser":    "createrole createdb",
		"of another cluster": "createrole createdb", // whose roles exist already
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
			base := server.Empty(t).URL
			superuser := connect(t, base)
			exec1(t, superuser, "create role admin login password 'admin' "+administrator)
			at := as(t, base, "admin", "admin", "postgres")
			folder, ownerPassword, servicePassword := passwordFiles(t)
			if name == "of another cluster" {
				exec1(t, superuser, "create role coupon_service; create role coupon_monitor; grant coupon_service to admin with admin option")
			}
			if output, err := psql(t, at, "-v", "passwords="+folder); err != nil || output != "" {
				t.Fatalf("%v: %s", err, output)
			}

			owner := connect(t, as(t, base, "coupond_owner", ownerPassword, "coupond"))
			for range 2 {
				if _, err := db.Apply(t.Context(), owner, db.Options{}); err != nil {
					t.Fatal(err)
				}
			}
			if others := value[int](t, owner, "select count(*) from pg_roles where rolname like 'coupon%' and (rolsuper or rolcreaterole or rolcreatedb)"); others != 0 {
				t.Errorf("%d roles have attributes", others)
			}

			service := connect(t, as(t, base, "coupond", servicePassword, "coupond"))
			for _, role := range []string{"none", "coupon_service"} {
				exec1(t, service, "set role "+role)
				if status := value[string](t, service, "select coupond.claim_coupon('ann', 'lamp')::text"); status != "coupon_not_found" {
					t.Errorf("role %s: a claim: %s", role, status)
				}
				denied := []string{
					"select from coupond.claims", "create temporary table mine ()", "create schema mine", "create table public.mine ()",
					"set role coupond_owner", "create role mine", "copy (select 1) to program 'true'",
				}
				if administrator == "superuser" {
					denied = append(denied, "select lo_create(0)", "select lo_from_bytea(0, 'x')", "select pg_advisory_lock(1)",
						"select pg_try_advisory_lock(1, 1)", "select pg_advisory_xact_lock_shared(1)")
				}
				for _, sql := range denied {
					_, err := service.Exec(t.Context(), sql)
					if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "42501" {
						t.Errorf("role %s: %s: %v", role, sql, err)
					}
				}
			}

			// Another database of the cluster, with logins of its own.
			if output, err := psql(t, at, "-v", "passwords="+folder, "-v", "database=shop", "-v", "owner=shop_owner", "-v", "login=shop"); err != nil || output != "" {
				t.Fatalf("%v: %s", err, output)
			}
			if _, err := db.Apply(t.Context(), connect(t, as(t, base, "shop_owner", ownerPassword, "shop")), db.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// No password is in the server's log, even if the statement fails that has it, and a missing one is
// an error.
func TestRoles_passwords(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "logging_collector": "on", "log_statement": "all", "log_min_duration_statement": "0"})
	at := server.Empty(t).URL
	folder, ownerPassword, servicePassword := passwordFiles(t)
	output, err := psql(t, at, "-v", "passwords="+folder, "-v", "login=pg_monitor")
	if err == nil || !strings.Contains(output, `role name "pg_monitor" is reserved`) {
		t.Fatalf("%v: %s", err, output)
	}
	var log string
	conn := connect(t, at)
	wait.For(t, "the error in the log", func() bool { // another process writes it
		log = value[string](t, conn, "select pg_read_file(pg_current_logfile())")
		return strings.Contains(log, `role name "pg_monitor" is reserved`)
	})
	for _, text := range []string{log, output} {
		if strings.Contains(text, ownerPassword) || strings.Contains(text, servicePassword) {
			t.Errorf("a password in: %s", text)
		}
	}

	if err := os.Truncate(filepath.Join(folder, "service"), 0); err != nil {
		t.Fatal(err)
	}
	if output, err := psql(t, at, "-v", "passwords="+folder); err == nil || !strings.Contains(output, "no file owner or service, or it is empty") {
		t.Errorf("%v: %s", err, output)
	}
}
