// Package deploy_test tests the SQL files that an operator runs with psql.
package deploy_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// psql runs psql. The output is that of stdout and stderr.
func psql(t *testing.T, at string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("psql is not installed (Debian: apt-get install postgresql-client); tests of SQL files are skipped")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, "psql", append([]string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-d", at}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

// mustPsql runs psql, which must print nothing but a result of the files.
func mustPsql(t *testing.T, at string, args ...string) string {
	t.Helper()
	output, err := psql(t, at, args...)
	if err != nil {
		t.Fatalf("psql %q: %v: %s", args, err, output)
	}
	return output
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

func value[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
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
	u.User, u.Path = url.UserPassword(login, password), "/"+database
	return u.String()
}

// passwordFile writes a random password to a file.
func passwordFile(t *testing.T, folder, name string) (password string) {
	t.Helper()
	password = rand.Text()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return password
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
			folder := t.TempDir()
			ownerPassword, servicePassword := passwordFile(t, folder, "owner"), passwordFile(t, folder, "service")
			if name == "of another cluster" {
				exec1(t, superuser, "create role coupon_service; create role coupon_monitor; grant coupon_service to admin with admin option")
			}
			roles := []string{"-v", "passwords=" + folder, "-f", "roles.sql"}
			if output := mustPsql(t, at, roles...); output != "" {
				t.Fatal(output)
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
			mustPsql(t, at, append(roles, "-v", "database=shop", "-v", "owner=shop_owner", "-v", "login=shop")...)
			if _, err := db.Apply(t.Context(), connect(t, as(t, base, "shop_owner", ownerPassword, "shop")), db.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// No password is among psql's arguments or in the server's log, even if the statement fails that
// has it.
func TestPasswords(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "logging_collector": "on", "log_statement": "all", "log_min_duration_statement": "0"})
	// notInLog waits until the log has the error, and the statements before now.
	notInLog := func(t *testing.T, d *pgtest.Database, failure string, passwords ...string) {
		t.Helper()
		conn := d.Connect(t)
		end := "the end of " + d.Name
		exec1(t, conn, "select '"+end+"'")
		var log string
		wait.For(t, "the error and the end in the log", func() bool { // another process writes it
			log = value[string](t, conn, "select pg_read_file(pg_current_logfile())")
			return strings.Contains(log, failure) && strings.Contains(log, end)
		})
		for _, password := range passwords {
			if strings.Contains(log, password) {
				t.Error("the server's log has a password")
			}
		}
	}

	t.Run("roles", func(t *testing.T) {
		d := server.New(t)
		folder := t.TempDir()
		passwords := []string{passwordFile(t, folder, "owner"), passwordFile(t, folder, "service")}
		roles := []string{"-v", "passwords=" + folder, "-f", "roles.sql"}
		const failure = `role name "pg_monitor" is reserved`
		output, err := psql(t, d.URL, append(roles, "-v", "login=pg_monitor")...)
		if err == nil || !strings.Contains(output, failure) || strings.Contains(output, passwords[0]) || strings.Contains(output, passwords[1]) {
			t.Fatalf("%v: %s", err, output)
		}
		notInLog(t, d, failure, passwords...)
		if err := os.Truncate(filepath.Join(folder, "service"), 0); err != nil {
			t.Fatal(err)
		}
		if output, err := psql(t, d.URL, roles...); err == nil || !strings.Contains(output, "no file owner or service, or it is empty") {
			t.Errorf("a file is empty: %v: %s", err, output)
		}
	})

	t.Run("shards", func(t *testing.T) {
		folder := t.TempDir()
		password := passwordFile(t, folder, "proxy.password")
		setPassword := fmt.Sprintf("\\set password `cat %s/proxy.password`", folder)
		shard := server.New(t)
		setUpShard := []string{"-v", "partitions=4", "-v", "owned={0,1,2,3}", "-c", setPassword, "-f", "shards/shard.sql"}
		mustPsql(t, shard.URL, setUpShard...)
		const failure = `role "coupon_proxy_login" already exists`
		if output, err := psql(t, shard.URL, setUpShard...); err == nil || !strings.Contains(output, failure) {
			t.Errorf("the second time: %v: %s", err, output)
		}
		u, err := url.Parse(shard.URL)
		if err != nil {
			t.Fatal(err)
		}
		address := fmt.Sprintf("host=%s port=%s dbname=%s", u.Hostname(), u.Port(), shard.Name)

		proxy := server.ForProxy(t)
		conn := proxy.Connect(t)
		if err := db.ApplyProxy(t.Context(), conn, db.Options{}); err != nil {
			t.Fatal(err)
		}
		mustPsql(t, proxy.URL, "-v", "partitions=4", "-v", `shards={"`+address+`"}`, "-c", setPassword, "-f", "shards/proxy.sql")
		exec1(t, conn, "set role coupon_service")
		if status := value[string](t, conn, "select coupond.claim_coupon('ann', 'lamp')::text"); status != "coupon_not_found" {
			t.Errorf("a claim by the proxy: %s", status)
		}
		notInLog(t, proxy, failure, password)
	})
}

// fence.sql prints a position that the new server must have reached. It waits for older claims.
func TestFence(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{
		"fsync": "off", "synchronous_commit": "off", "wal_writer_delay": "10s", "max_prepared_transactions": "10",
	})
	// newShard returns a database that owns all partitions, with the coupon "lamp", and the arguments
	// that set the fence for its partition.
	newShard := func(t *testing.T) (d *pgtest.Database, conn *pgx.Conn, fence []string) {
		t.Helper()
		d = server.New(t)
		conn = d.Connect(t)
		exec1(t, conn, "insert into coupond.shard (partitions, owned) select 64, array_agg(p) from generate_series(0, 63) as p")
		exec1(t, conn, "select coupond.create_coupon('lamp', 10)")
		return d, conn, []string{"-v", fmt.Sprint("partition=", value[int](t, conn, "select hashtext('lamp') & 63")), "-f", "shards/fence.sql"}
	}

	// PostgreSQL may not have written the commits of the claims for which the fence waits, because
	// synchronous_commit is off.
	t.Run("asynchronous commits", func(t *testing.T) {
		d, conn, fence := newShard(t)
		other := d.Connect(t)
		exec1(t, conn, "begin; select coupond.claim_coupon('ann', 'lamp')")
		var position string
		var err error
		var running sync.WaitGroup
		running.Go(func() { position, err = psql(t, d.URL, fence...) })
		wait.For(t, "the fence to wait for the claim", func() bool {
			return value[bool](t, other, "select exists (select from pg_stat_activity where wait_event = 'PgSleep')")
		})
		inserted := value[string](t, conn, "select pg_current_wal_insert_lsn()::text")
		exec1(t, conn, "commit")
		running.Wait()
		if err != nil {
			t.Fatalf("%v: %s", err, position)
		}
		if !value[bool](t, conn, "select $1::text::pg_lsn > $2::text::pg_lsn", position, inserted) {
			t.Errorf("the fence is at %s, before the commit of the claim, which is after %s", position, inserted)
		}
		if flushed := value[string](t, conn, "select pg_current_wal_flush_lsn()::text"); !value[bool](t, conn,
			"select $1::text::pg_lsn >= $2::text::pg_lsn", flushed, position) {
			t.Errorf("the fence is at %s, and only %s is flushed, so that a subscriber does not get the rest", position, flushed)
		}
	})

	// A claim that was prepared before the fence can still be committed, so the fence waits for it. It
	// does not wait for a prepared transaction that has nothing to do with coupons.
	t.Run("prepared transaction", func(t *testing.T) {
		d, conn, fence := newShard(t)
		exec1(t, conn, "create table public.other ()")
		exec1(t, conn, "begin; insert into public.other default values; prepare transaction 'other'")
		exec1(t, conn, "begin; select coupond.claim_coupon('ann', 'lamp'); prepare transaction 'claim'")
		output, err := psql(t, d.URL, append([]string{"-c", "set statement_timeout = '1s'"}, fence...)...)
		if err == nil || !strings.Contains(output, "statement timeout") {
			t.Errorf("the fence does not wait for the prepared claim: %v: %s", err, output)
		}
		exec1(t, conn, "commit prepared 'claim'")
		mustPsql(t, d.URL, fence...)
		exec1(t, conn, "rollback prepared 'other'")
	})
}
