package pgstore

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A partition moves to another server while its coupons are sold, as deploy/shards says:
// nothing acknowledged is lost, nobody has a coupon twice, and nothing is said not to exist.
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
	admin, old, target := connect(t, s.proxy), connect(t, s.urls[0]), connect(t, s.urls[1])
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
	eventually(t, "claims are granted", func() bool { return sold(moving) > 200 })

	do(old, `create publication move for
		table public.coupons where (hashtext(name) & 63 = `+partition+`),
		table public.claims where (hashtext(coupon_name) & 63 = `+partition+`)`)
	do(target, `create subscription move connection '`+old.Config().ConnString()+`' publication move`)
	eventually(t, "the partition is copied", func() bool {
		return value(target, `select (count(*) = 2 and bool_and(srsubstate = 'r'))::text from pg_subscription_rel`) == "true"
	})
	fence, err := os.ReadFile("../deploy/shards/fence.sql")
	if err != nil {
		t.Fatal(err)
	}
	var lsn string
	results, err := old.PgConn().Exec(t.Context(), strings.ReplaceAll(string(fence), ":partition", partition)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range results {
		for _, row := range result.Rows {
			lsn = string(row[0])
		}
	}
	eventually(t, "claims are refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return refused[moving] > 0
	})
	eventually(t, "the new server has read it all", func() bool {
		return value(old, `select (confirmed_flush_lsn >= '`+lsn+`')::text from pg_replication_slots where slot_name = 'move'`) == "true"
	})
	do(target, `drop subscription move`)
	do(target, `update public.shard set owned = owned || `+partition)
	before, beside := sold(moving), sold(staying)
	do(admin, `alter server coupons options (set p`+partition+` '`+libpq(t, s.urls[1])+`')`)
	do(old, `drop publication move`)
	eventually(t, "claims are granted by the new server", func() bool { return sold(moving) > before+200 && sold(staying) > beside+200 })
	ended()

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
