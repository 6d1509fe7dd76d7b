package pgstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// deploy/shards/move moves a partition to another server during a sale: no acknowledged claim is
// lost, no user has a coupon twice, and no coupon is reported as not found. The new server refuses
// the first attempt at the last step, and the old one continues.
func TestMoveScript_duringASale(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, []*pgtest.Server{startServer(t), startServer(t)})
	coupons := s.couponsOf(t, 1)
	moving, staying := coupons[0][0], coupons[1][0]
	for _, coupon := range []string{moving, staying} {
		s.wantCreate(t, coupon, 1_000_000, Created)
	}
	old, target := s.shards[0], s.shards[1]
	partition := s.partitionOf(t, moving)

	answers := map[string]*recorder{moving: {}, staying: {}}
	stop := concurrently(t, 8, func(client, n int) {
		coupon, user := coupons[n%2][0], fmt.Sprint(client, "/", n)
		status, err := s.Claim(t.Context(), user, coupon)
		record(answers[coupon], user, status, err)
	})
	sold := func(coupon string) int { return answers[coupon].count(string(Claimed)) }
	move := func() (output string, err error) { return s.move(t, partition, s.url) }
	waitForClaims := func() {
		t.Helper()
		movingBefore, stayingBefore := sold(moving), sold(staying)
		wait.For(t, "200 claims of each coupon", func() bool { return sold(moving) > movingBefore+200 && sold(staying) > stayingBefore+200 })
	}
	waitForClaims()
	target.exec(t, `alter table coupond.shard add constraint full_up check (cardinality(owned) <= 32)`)
	if output, err := move(); err == nil || !strings.Contains(output, "fenced at") || !strings.Contains(output, "OLD keeps partition "+partition) {
		t.Fatalf("%v: %s", err, output)
	}
	for _, left := range []struct {
		on  *testShard
		sql string
	}{
		{target, `select from coupond.shard where ` + partition + ` = any (owned)`},
		{target, `select from coupond.coupons where name = '` + moving + `'`},
		{target, `select from coupond.claims where coupon_name = '` + moving + `'`},
		{target, `select from pg_subscription`},
		{old, `select from pg_publication`},
		{old, `select from pg_replication_slots`},
	} {
		if left.on.exists(t, left.sql) {
			t.Errorf("the failed move left rows: %s", left.sql)
		}
	}
	waitForClaims()
	target.exec(t, `alter table coupond.shard drop constraint full_up`)
	if output, err := move(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if !target.exists(t, `select from coupond.coupons where name = '`+moving+`'`) {
		t.Error("the new server does not have the coupon")
	}
	waitForClaims()
	stop()
	if answers[moving].count(refused) == 0 {
		t.Error("no claim was refused: the partition was not fenced")
	}
	for _, coupon := range []string{moving, staying} {
		answers[coupon].wantTrue(t, target.holders(t, coupon), 1_000_000)
		s.claims(t, 1, coupon)
	}
}

// move runs deploy/shards/move from the first shard to the second.
func (s *shardedStore) move(t *testing.T, partition, proxy string, environ ...string) (output string, err error) {
	t.Helper()
	old, target := s.shards[0], s.shards[1]
	cmd := exec.CommandContext(t.Context(), "../deploy/shards/move", partition, old.url, target.url, target.address, s.url, proxy)
	cmd.Env = append(os.Environ(), environ...)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

func (s *shardedStore) partitionOf(t *testing.T, coupon string) string {
	t.Helper()
	return queryValue[string](t, s.owner, `select (hashtext($1) & 63)::text`, coupon)
}

// exists reports whether a query has rows.
func (s *testStore) exists(t *testing.T, query string) bool {
	t.Helper()
	return queryValue[bool](t, s.owner, `select exists (`+query+`)`)
}

// A move that cannot be completed stops before it has changed anything, or says what it has
// changed.
func TestMoveScript_stopsBeforeDamage(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, []*pgtest.Server{startServer(t), startServer(t)})
	coupon := s.couponsOf(t, 1)[0][0]
	s.wantCreate(t, coupon, 10, Created)
	old, target := s.shards[0], s.shards[1]
	partition := s.partitionOf(t, coupon)
	owned := `select from coupond.shard where ` + partition + ` = any (owned)`
	published := `select from pg_publication where pubname = 'move_` + partition + `'`
	copied := `select from coupond.coupons where name = '` + coupon + `'`
	fenceTimeout, stepTimeout := "30s", "30s"
	wantStopped := func(reason, partition, proxy, want string) {
		t.Helper()
		output, err := s.move(t, partition, proxy, "FENCE_TIMEOUT="+fenceTimeout, "STEP_TIMEOUT="+stepTimeout)
		if err == nil || !strings.Contains(output, want) {
			t.Fatalf("%s: error %v, output %q; want an error and %q", reason, err, output, want)
		}
	}
	wantUnchanged := func(reason string) {
		t.Helper()
		if !old.exists(t, owned) || target.exists(t, owned) || old.exists(t, published) || target.exists(t, `select from pg_subscription`) || target.exists(t, copied) {
			t.Fatalf("%s: the move has changed something", reason)
		}
	}

	wantStopped("unknown partition", "64", s.url, "a PROXY has no partition 64")
	wantStopped("a shard instead of a proxy", partition, old.url, "a PROXY has no partition "+partition)
	wantUnchanged("wrong proxy")

	// Another move is running, which has copied the coupon and fenced its partition.
	old.exec(t, `create publication move_`+partition)
	old.exec(t, `update coupond.shard set owned = array_remove(owned, `+partition+`)`)
	target.exec(t, `insert into coupond.coupons (name, amount, remaining_amount) values ('`+coupon+`', 10, 10)`)
	wantStopped("another move is running", partition, s.url, "a move of partition "+partition+" is under way")
	if old.exists(t, owned) || !old.exists(t, published) || !target.exists(t, copied) {
		t.Fatal("the second move has undone the first one")
	}
	old.exec(t, `drop publication move_`+partition)
	wantStopped("OLD does not own the partition", partition, s.url, "OLD does not own partition "+partition)
	old.exec(t, `update coupond.shard set owned = owned || `+partition)
	wantStopped("NEW has coupons of the partition", partition, s.url, "holds coupons of it")
	if !target.exists(t, copied) {
		t.Fatal("the move has deleted coupons that it had not copied")
	}
	target.exec(t, `delete from coupond.coupons where name = '`+coupon+`'`)
	wantUnchanged("no copy left")

	report := connect(t, old.url)
	execSQL(t, report, `begin`)
	fenceTimeout = "1s"
	wantStopped("a transaction is open on OLD", partition, s.url, "README.md, step 3")
	wantUnchanged("a transaction is open on OLD")
	fenceTimeout = "30s"
	execSQL(t, report, `rollback`)

	// The subscription cannot be dropped: it waits for something without a time-out of its own.
	target.exec(t, `
		create function public.hang() returns event_trigger language plpgsql as $$ begin perform pg_sleep(3600); end $$;
		create event trigger hang on ddl_command_start when tag in ('DROP SUBSCRIPTION') execute function public.hang()`)
	stepTimeout = "3s"
	wantStopped("DROP SUBSCRIPTION hangs", partition, s.url, "could not delete the copy on NEW")
	if !old.exists(t, owned) || target.exists(t, owned) || old.exists(t, published) {
		t.Fatal("DROP SUBSCRIPTION hangs: OLD does not keep the partition")
	}
	stepTimeout = "30s"
	// As README.md says.
	target.exec(t, `drop event trigger hang`)
	target.exec(t, `drop subscription move_`+partition)
	target.exec(t, `delete from coupond.coupons where name = '`+coupon+`'`)
	wantUnchanged("DROP SUBSCRIPTION hangs")

	// A transaction in another database does not matter. The proxies are changed last, and a proxy
	// that cannot be changed is an error.
	old.exec(t, `create database reports`)
	elsewhere := old.owner.Config().Copy()
	elsewhere.Database = "reports"
	report, err := pgx.ConnectConfig(t.Context(), elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = report.Close(context.WithoutCancel(t.Context())) }()
	execSQL(t, report, `begin`)
	s.exec(t, `
		create function coupond.refuse() returns event_trigger language plpgsql as $$ begin raise 'read only'; end $$;
		create event trigger refuse on ddl_command_start when tag in ('ALTER SERVER') execute function coupond.refuse()`)
	// 05 is 5.
	wantStopped("the proxy cannot be changed", "0"+partition, s.url, "NEW owns partition "+partition+", but not every proxy knows it")
	if old.exists(t, owned) || !target.exists(t, owned) || !target.exists(t, copied) {
		t.Error("NEW is not the only owner of the partition")
	}
	s.exec(t, `drop event trigger refuse`)
	s.exec(t, `alter server coupond options (set p`+partition+` '`+target.address+`')`)
	wait.For(t, "a claim of the moved coupon", func() bool {
		status, _ := s.Claim(t.Context(), "user", coupon)
		return status == Claimed || status == AlreadyClaimed
	})
}
