package pgstore

import (
	"errors"
	"fmt"
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
