package shards_test

import (
	"context"
	"crypto/rand"
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

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func needPsql(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("psql is not installed (Debian: apt-get install postgresql-client); tests of SQL files are skipped")
	}
}

// psql runs psql on a database. The output is that of stdout and stderr.
func psql(t *testing.T, options string, d *pgtest.Database, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "psql", append([]string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-d", d.URL}, args...)...)
	cmd.Env = append(os.Environ(), "PGOPTIONS="+options)
	output, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

func mustPsql(t *testing.T, d *pgtest.Database, args ...string) string {
	t.Helper()
	output, err := psql(t, "", d, args...)
	if err != nil {
		t.Fatalf("psql %q: %v: %s", args, err, output)
	}
	return output
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

// shardWithACoupon returns a database that owns all partitions, the coupon "lamp", and its
// partition.
func shardWithACoupon(t *testing.T, settings map[string]string) (d *pgtest.Database, partition int) {
	t.Helper()
	needPsql(t)
	d = pgtest.StartServer(t, settings).New(t)
	conn := d.Connect(t)
	exec1(t, conn, "insert into coupond.shard (partitions, owned) select 64, array_agg(p) from generate_series(0, 63) as p")
	exec1(t, conn, "select coupond.create_coupon('lamp', 10)")
	return d, value[int](t, conn, "select hashtext('lamp') & 63")
}

// The new server must have everything up to the position that the fence prints. That includes the
// claims for which the fence waits, although PostgreSQL may not have written their commits yet,
// because synchronous_commit is off.
func TestFence_asynchronousCommits(t *testing.T) {
	t.Parallel()
	d, partition := shardWithACoupon(t, map[string]string{"fsync": "off", "synchronous_commit": "off", "wal_writer_delay": "10s"})
	conn, other := d.Connect(t), d.Connect(t)
	exec1(t, conn, "begin; select coupond.claim_coupon('ann', 'lamp')")
	var position string
	var err error
	var fence sync.WaitGroup
	fence.Go(func() { position, err = psql(t, "", d, "-v", fmt.Sprint("partition=", partition), "-f", "fence.sql") })
	wait.For(t, "the fence to wait for the claim", func() bool {
		return value[bool](t, other, "select exists (select from pg_stat_activity where wait_event = 'PgSleep')")
	})
	inserted := value[string](t, conn, "select pg_current_wal_insert_lsn()::text")
	exec1(t, conn, "commit")
	fence.Wait()
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
}

// A claim that was prepared before the fence can still be committed, so the fence waits for it. It
// does not wait for a prepared transaction that has nothing to do with coupons.
func TestFence_preparedTransaction(t *testing.T) {
	t.Parallel()
	d, partition := shardWithACoupon(t, map[string]string{"fsync": "off", "max_prepared_transactions": "10"})
	conn := d.Connect(t)
	exec1(t, conn, "create table public.other ()")
	exec1(t, conn, "begin; insert into public.other default values; prepare transaction 'other'")
	exec1(t, conn, "begin; select coupond.claim_coupon('ann', 'lamp'); prepare transaction 'claim'")
	fence := []string{"-v", fmt.Sprint("partition=", partition), "-f", "fence.sql"}
	output, err := psql(t, "-c statement_timeout=1s", d, fence...)
	if err == nil || !strings.Contains(output, "statement timeout") {
		t.Errorf("the fence does not wait for the prepared claim: %v: %s", err, output)
	}
	exec1(t, conn, "commit prepared 'claim'")
	mustPsql(t, d, fence...)
	exec1(t, conn, "rollback prepared 'other'")
}

// The passwords are neither among psql's arguments nor in the server's log, even if a statement
// fails.
func TestSetUp_keepsPasswordsSecret(t *testing.T) {
	t.Parallel()
	needPsql(t)
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "logging_collector": "on", "log_statement": "all", "log_min_duration_statement": "0"})
	password := rand.Text()
	file := filepath.Join(t.TempDir(), "proxy.password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	setPassword := fmt.Sprintf("\\set password `cat %s`", file)

	shard := server.New(t)
	setUpShard := []string{"-v", "partitions=4", "-v", "owned={0,1,2,3}", "-c", setPassword, "-f", "shard.sql"}
	mustPsql(t, shard, setUpShard...)
	if output, err := psql(t, "", shard, setUpShard...); err == nil || !strings.Contains(output, "already exists") {
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
	mustPsql(t, proxy, "-v", "partitions=4", "-v", `shards={"`+address+`"}`, "-c", setPassword, "-f", "proxy.sql")
	exec1(t, conn, "set role coupon_service")
	if status := value[string](t, conn, "select coupond.claim_coupon('ann', 'lamp')::text"); status != "coupon_not_found" {
		t.Errorf("a claim by the proxy: %s", status)
	}

	var log string
	exec1(t, conn, "reset role; select 'the end'")
	wait.For(t, "the error and the end in the log", func() bool { // another process writes it
		log = value[string](t, conn, "select pg_read_file(pg_current_logfile())")
		return strings.Contains(log, `role "coupon_proxy_login" already exists`) && strings.Contains(log, "'the end'")
	})
	if strings.Contains(log, password) {
		t.Error("the server's log has the password")
	}
}
