package pgstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/wait"
)

// deploy/shards/move moves a partition to another server during a sale: no acknowledged claim is
// lost, no user has a coupon twice, and no coupon is reported as not found. The new server refuses
// the first attempt at the last step, and the old one continues.
func TestMoveScript_duringASale(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	coupons := s.couponsOf(t, 1)
	moving, staying := coupons[0][0], coupons[1][0]
	for _, coupon := range []string{moving, staying} {
		s.wantCreate(t, coupon, 1_000_000, Created)
	}
	old, target := connect(t, s.urls[0]), connect(t, s.urls[1])
	do := func(conn *pgx.Conn, sql string, args ...any) {
		t.Helper()
		execSQL(t, conn, sql, args...)
	}
	value := func(conn *pgx.Conn, sql string) (text string) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return text
	}
	partition := value(old, `select (hashtext('`+moving+`') & 63)::text`)

	answers := map[string]*recorder{moving: {}, staying: {}}
	stop := concurrently(t, 8, func(client, n int) {
		coupon, user := coupons[n%2][0], fmt.Sprint(client, "/", n)
		status, err := s.Claim(t.Context(), user, coupon)
		record(answers[coupon], user, status, err)
	})
	sold := func(coupon string) int { return answers[coupon].count(string(Claimed)) }
	move := func() (output string, err error) {
		cmd := exec.CommandContext(t.Context(), "../deploy/shards/move", partition, s.urls[0], s.urls[1], libpq(t, s.urls[1]), s.proxy)
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	waitForClaims := func() {
		t.Helper()
		movingBefore, stayingBefore := sold(moving), sold(staying)
		wait.For(t, "200 claims of each coupon", func() bool { return sold(moving) > movingBefore+200 && sold(staying) > stayingBefore+200 })
	}
	waitForClaims()
	do(target, `alter table coupond.shard add constraint full_up check (cardinality(owned) <= 32)`)
	if output, err := move(); err == nil || !strings.Contains(output, "fenced at") || !strings.Contains(output, "OLD keeps partition "+partition) {
		t.Fatalf("%v: %s", err, output)
	}
	for _, left := range []struct {
		on  *pgx.Conn
		sql string
	}{
		{target, `select from coupond.shard where ` + partition + ` = any (owned)`},
		{target, `select from coupond.coupons where name = '` + moving + `'`},
		{target, `select from coupond.claims where coupon_name = '` + moving + `'`},
		{target, `select from pg_subscription`},
		{old, `select from pg_publication`},
		{old, `select from pg_replication_slots`},
	} {
		if value(left.on, `select exists (`+left.sql+`)::text`) != "false" {
			t.Errorf("the failed move left rows: %s", left.sql)
		}
	}
	waitForClaims()
	do(target, `alter table coupond.shard drop constraint full_up`)
	if output, err := move(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if value(target, `select exists (select from coupond.coupons where name = '`+moving+`')::text`) != "true" {
		t.Error("the new server does not have the coupon")
	}
	waitForClaims()
	stop()
	if answers[moving].count(refused) == 0 {
		t.Error("no claim was refused: the partition was not fenced")
	}
	s.owner = target
	for _, coupon := range []string{moving, staying} {
		answers[coupon].wantTrue(t, s.holders(t, coupon), 1_000_000)
		s.claims(t, 1, coupon)
	}
}

// A move that cannot be completed stops before it has changed anything, or says what it has
// changed.
func TestMoveScript_stopsBeforeDamage(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	coupon := s.couponsOf(t, 1)[0][0]
	s.wantCreate(t, coupon, 10, Created)
	old, target, proxy := connect(t, s.urls[0]), connect(t, s.urls[1]), connect(t, s.proxy)
	do := func(conn *pgx.Conn, sql string) {
		t.Helper()
		execSQL(t, conn, sql)
	}
	exists := func(conn *pgx.Conn, sql string) (found bool) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `select exists (`+sql+`)`).Scan(&found); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return found
	}
	partition := queryValue[string](t, old, `select (hashtext($1) & 63)::text`, coupon)
	owned := `select from coupond.shard where ` + partition + ` = any (owned)`
	published := `select from pg_publication where pubname = 'move_` + partition + `'`
	copied := `select from coupond.coupons where name = '` + coupon + `'`
	fenceTimeout, stepTimeout := "30s", "30s"
	move := func(partition, proxy string) (output string, err error) {
		cmd := exec.CommandContext(t.Context(), "../deploy/shards/move", partition, s.urls[0], s.urls[1], libpq(t, s.urls[1]), s.proxy, proxy)
		cmd.Env = append(os.Environ(), "FENCE_TIMEOUT="+fenceTimeout, "STEP_TIMEOUT="+stepTimeout)
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	wantStopped := func(reason, partition, proxy, want string) {
		t.Helper()
		if output, err := move(partition, proxy); err == nil || !strings.Contains(output, want) {
			t.Fatalf("%s: error %v, output %q; want an error and %q", reason, err, output, want)
		}
	}
	wantUnchanged := func(reason string) {
		t.Helper()
		if !exists(old, owned) || exists(target, owned) || exists(old, published) || exists(target, `select from pg_subscription`) || exists(target, copied) {
			t.Fatalf("%s: the move has changed something", reason)
		}
	}

	wantStopped("unknown partition", "64", s.proxy, "a PROXY has no partition 64")
	wantStopped("a shard instead of a proxy", partition, s.urls[0], "a PROXY has no partition "+partition)
	wantUnchanged("wrong proxy")

	// Another move is running, which has copied the coupon and fenced its partition.
	do(old, `create publication move_`+partition)
	do(old, `update coupond.shard set owned = array_remove(owned, `+partition+`)`)
	do(target, `insert into coupond.coupons (name, amount, remaining_amount) values ('`+coupon+`', 10, 10)`)
	wantStopped("another move is running", partition, s.proxy, "a move of partition "+partition+" is under way")
	if exists(old, owned) || !exists(old, published) || !exists(target, copied) {
		t.Fatal("the second move has undone the first one")
	}
	do(old, `drop publication move_`+partition)
	wantStopped("OLD does not own the partition", partition, s.proxy, "OLD does not own partition "+partition)
	do(old, `update coupond.shard set owned = owned || `+partition)
	wantStopped("NEW has coupons of the partition", partition, s.proxy, "holds coupons of it")
	if !exists(target, copied) {
		t.Fatal("the move has deleted coupons that it had not copied")
	}
	do(target, `delete from coupond.coupons where name = '`+coupon+`'`)
	wantUnchanged("no copy left")

	report := connect(t, s.urls[0])
	do(report, `begin`)
	fenceTimeout = "1s"
	wantStopped("a transaction is open on OLD", partition, s.proxy, "README.md, step 3")
	wantUnchanged("a transaction is open on OLD")
	fenceTimeout = "30s"
	do(report, `rollback`)

	// The subscription cannot be dropped: it waits for something without a time-out of its own.
	do(target, `
		create function public.hang() returns event_trigger language plpgsql as $$ begin perform pg_sleep(3600); end $$;
		create event trigger hang on ddl_command_start when tag in ('DROP SUBSCRIPTION') execute function public.hang()`)
	stepTimeout = "3s"
	wantStopped("DROP SUBSCRIPTION hangs", partition, s.proxy, "could not delete the copy on NEW")
	if !exists(old, owned) || exists(target, owned) || exists(old, published) {
		t.Fatal("DROP SUBSCRIPTION hangs: OLD does not keep the partition")
	}
	stepTimeout = "30s"
	// As README.md says.
	do(target, `drop event trigger hang`)
	do(target, `drop subscription move_`+partition)
	do(target, `delete from coupond.coupons where name = '`+coupon+`'`)
	wantUnchanged("DROP SUBSCRIPTION hangs")

	// A transaction in another database does not matter. The proxies are changed last, and a proxy
	// that cannot be changed is an error.
	do(old, `create database reports`)
	elsewhere := old.Config().Copy()
	elsewhere.Database = "reports"
	report, err := pgx.ConnectConfig(t.Context(), elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = report.Close(context.WithoutCancel(t.Context())) }()
	do(report, `begin`)
	do(proxy, `
		create function coupond.refuse() returns event_trigger language plpgsql as $$ begin raise 'read only'; end $$;
		create event trigger refuse on ddl_command_start when tag in ('ALTER SERVER') execute function coupond.refuse()`)
	// 05 is 5.
	wantStopped("the proxy cannot be changed", "0"+partition, s.proxy, "NEW owns partition "+partition+", but not every proxy knows it")
	if exists(old, owned) || !exists(target, owned) || !exists(target, copied) {
		t.Error("NEW is not the only owner of the partition")
	}
	do(proxy, `drop event trigger refuse`)
	do(proxy, `alter server coupond options (set p`+partition+` '`+libpq(t, s.urls[1])+`')`)
	wait.For(t, "a claim of the moved coupon", func() bool {
		status, _ := s.Claim(t.Context(), "user", coupon)
		return status == Claimed || status == AlreadyClaimed
	})
}
