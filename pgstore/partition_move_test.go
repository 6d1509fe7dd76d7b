package pgstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A partition moves to another server while its coupons are sold, by deploy/shards/move:
// nothing acknowledged is lost, nobody has a coupon twice, and nothing is said not to exist.
// The first time the new server refuses it at the last step, and the old one goes on.
func TestPartitionMovesWhileSelling(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2)
	coupons := s.couponsOf(t, 1)
	moving, staying := coupons[0][0], coupons[1][0]
	for _, coupon := range []string{moving, staying} {
		if status, err := s.CreateCoupon(t.Context(), coupon, 1_000_000); status != Created {
			t.Fatal(status, err)
		}
	}
	old, target := connect(t, s.urls[0]), connect(t, s.urls[1])
	do := func(conn *pgx.Conn, sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	value := func(conn *pgx.Conn, sql string) (text string) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return text
	}
	partition := value(old, `select (hashtext('`+moving+`') & 63)::text`)

	var mu sync.Mutex
	told := make(map[string]map[string]bool) // coupon, then users who were told "claimed"
	refused := make(map[string]int)
	sold := func(coupon string) int {
		mu.Lock()
		defer mu.Unlock()
		return len(told[coupon])
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				coupon, user := coupons[n%2][0], fmt.Sprint(client, "/", n)
				status, err := s.Claim(t.Context(), user, coupon)
				mu.Lock()
				switch {
				case status == Claimed:
					if told[coupon] == nil {
						told[coupon] = make(map[string]bool)
					}
					told[coupon][user] = true
				case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOutcomeUnknown):
					refused[coupon]++
				default:
					t.Errorf("%s, %s: %q, %v", user, coupon, status, err)
				}
				mu.Unlock()
			}
		})
	}
	ended := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer ended()
	move := func() (said string, err error) {
		cmd := exec.CommandContext(t.Context(), "../deploy/shards/move", partition, s.urls[0], s.urls[1], libpq(t, s.urls[1]), s.proxy)
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	granted := func() {
		t.Helper()
		before, beside := sold(moving), sold(staying)
		eventually(t, "claims are granted", func() bool { return sold(moving) > before+200 && sold(staying) > beside+200 })
	}
	granted()
	do(target, `alter table public.shard add constraint full_up check (cardinality(owned) <= 32)`)
	if said, err := move(); err == nil || !strings.Contains(said, "fenced at") || !strings.Contains(said, "OLD keeps partition "+partition) {
		t.Fatalf("%v: %s", err, said)
	}
	for _, left := range []struct {
		on  *pgx.Conn
		sql string
	}{
		{target, `select from public.shard where ` + partition + ` = any (owned)`},
		{target, `select from public.coupons where name = '` + moving + `'`},
		{target, `select from public.claims where coupon_name = '` + moving + `'`},
		{target, `select from pg_subscription`},
		{old, `select from pg_publication`},
		{old, `select from pg_replication_slots`},
	} {
		if value(left.on, `select exists (`+left.sql+`)::text`) != "false" {
			t.Errorf("the move that failed has left something: %s", left.sql)
		}
	}
	granted()
	do(target, `alter table public.shard drop constraint full_up`)
	if said, err := move(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if value(target, `select exists (select from public.coupons where name = '`+moving+`')::text`) != "true" {
		t.Error("the new server does not have the coupon")
	}
	granted()
	ended()
	if refused[moving] == 0 {
		t.Error("the coupon was never refused: was it fenced?")
	}

	for i, coupon := range []string{moving, staying} {
		n := s.claims(t, 1, coupon)
		if n < len(told[coupon]) || n > len(told[coupon])+refused[coupon] {
			t.Errorf("%s: %d claims, %d were acknowledged and %d refused", coupon, n, len(told[coupon]), refused[coupon])
		}
		has := make(map[string]bool, n)
		rows, err := target.Query(t.Context(), `select user_id from public.claims where coupon_name = $1`, coupon)
		if err != nil {
			t.Fatal(err)
		}
		users, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, user := range users {
			has[user] = true
		}
		for user := range told[coupon] {
			if !has[user] {
				t.Errorf("%s was told that he has coupon %d, and has not", user, i)
			}
		}
	}
}

// What stands in a move's way stops it where nothing, or not more than it says, has changed.
func TestPartitionMovesNoFurtherThanItMay(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2)
	coupon := s.couponsOf(t, 1)[0][0]
	if status, err := s.CreateCoupon(t.Context(), coupon, 10); status != Created {
		t.Fatal(status, err)
	}
	old, target, proxy := connect(t, s.urls[0]), connect(t, s.urls[1]), connect(t, s.proxy)
	do := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	is := func(conn *pgx.Conn, sql string) (yes bool) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), `select exists (`+sql+`)`).Scan(&yes); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return yes
	}
	var partition string
	if err := old.QueryRow(t.Context(), `select (hashtext($1) & 63)::text`, coupon).Scan(&partition); err != nil {
		t.Fatal(err)
	}
	owned := `select from public.shard where ` + partition + ` = any (owned)`
	published := `select from pg_publication where pubname = 'move_` + partition + `'`
	copied := `select from public.coupons where name = '` + coupon + `'`
	patience := "30s"
	move := func(partition, proxy string) (said string, err error) {
		cmd := exec.CommandContext(t.Context(), "../deploy/shards/move", partition, s.urls[0], s.urls[1], libpq(t, s.urls[1]), s.proxy, proxy)
		cmd.Env = append(os.Environ(), "FENCE_TIMEOUT="+patience)
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	stopped := func(why, partition, proxy, want string) {
		t.Helper()
		if said, err := move(partition, proxy); err == nil || !strings.Contains(said, want) {
			t.Fatalf("%s: %v: %s", why, err, said)
		}
	}
	unchanged := func(why string) {
		t.Helper()
		if !is(old, owned) || is(target, owned) || is(old, published) || is(target, `select from pg_subscription`) || is(target, copied) {
			t.Fatalf("%s, and the move has changed something", why)
		}
	}

	stopped("no proxy knows the partition", "64", s.proxy, "a PROXY has no partition 64")
	stopped("a shard is no proxy", partition, s.urls[0], "a PROXY has no partition "+partition)
	unchanged("the proxies are not as they must be")

	// Another move, which has copied the coupon and fenced its partition.
	do(old, `create publication move_`+partition)
	do(old, `update public.shard set owned = array_remove(owned, `+partition+`)`)
	do(target, `insert into public.coupons (name, amount, remaining_amount) values ('`+coupon+`', 10, 10)`)
	stopped("another is under way", partition, s.proxy, "a move of partition "+partition+" is under way")
	if is(old, owned) || !is(old, published) || !is(target, copied) {
		t.Fatal("the second move has taken the first one back")
	}
	do(old, `drop publication move_`+partition)
	stopped("the partition is another's", partition, s.proxy, "OLD does not own partition "+partition)
	do(old, `update public.shard set owned = owned || `+partition)
	stopped("a copy was left there", partition, s.proxy, "holds coupons of it")
	if !is(target, copied) {
		t.Fatal("the move has deleted what it had not copied")
	}
	do(target, `delete from public.coupons where name = '`+coupon+`'`)
	unchanged("the copy is gone")

	report := connect(t, s.urls[0])
	do(report, `begin`)
	patience = "1s"
	stopped("a report is being written", partition, s.proxy, "README.md, step 3")
	unchanged("a report is being written")
	patience = "30s"
	do(report, `rollback`)

	// Nobody waits for another database's report. The proxies are told last, and one that cannot be told is not passed over.
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
		create function public.refuse() returns event_trigger language plpgsql as $$ begin raise 'read only'; end $$;
		create event trigger refuse on ddl_command_start when tag in ('ALTER SERVER') execute function public.refuse()`)
	// 05 is 5.
	stopped("the proxy does not listen", "0"+partition, s.proxy, "NEW owns partition "+partition+", but not every proxy knows it")
	if is(old, owned) || !is(target, owned) || !is(target, copied) {
		t.Error("the new server does not own the partition alone")
	}
	do(proxy, `drop event trigger refuse`)
	do(proxy, `alter server coupons options (set p`+partition+` '`+libpq(t, s.urls[1])+`')`)
	eventually(t, "the coupon is sold again", func() bool {
		status, _ := s.Claim(t.Context(), "user", coupon)
		return status == Claimed || status == AlreadyClaimed
	})
}
