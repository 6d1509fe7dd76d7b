package db_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// A deploy reinstalls the functions during a sale. Sessions that call them are not affected.
func TestApply_duringClaims(t *testing.T) {
	t.Parallel()
	const (
		clients  = 4
		installs = 10
	)
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("hot", 1_000_000)

	var installed atomic.Bool
	var running atomic.Int64 // clients that still claim
	var rounds [clients]atomic.Int64
	running.Store(clients)
	ctx := bounded(t)
	sessions := append(several(t, clients, database, service), admin)
	won := concurrently(t, sessions, func(i int, s *session) (users []string) {
		if i == clients {
			defer installed.Store(true)
			for range installs {
				var before [clients]int64
				for i := range rounds {
					before[i] = rounds[i].Load()
				}
				if _, err := db.Apply(ctx, s.Conn, db.Options{}); err != nil {
					s.t.Fatal(err)
				}
				// Wait until each client has called the functions that were just installed: without that, a
				// fast installer would prove little.
				for i := range rounds {
					for rounds[i].Load() == before[i] && running.Load() == clients && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
				}
			}
			return nil
		}
		defer running.Add(-1)
		for n := 0; !installed.Load(); n++ {
			batch := names(fmt.Sprintf("%d/%d/%%d", i, n), 2)
			got := slices.Concat([]string{s.claim(batch[0], "hot")}, s.claimCoupons(batch, "hot"),
				s.claimBatch([]string{batch[0], "batch " + batch[0]}, []string{"none", "hot"}))
			if want := []string{claimed, alreadyClaimed, claimed, couponNotFound, claimed}; !slices.Equal(got, want) {
				s.t.Fatalf("got %v, want %v", got, want)
			}
			if left := get[int](s, "select remaining_amount from coupond.get_coupon('hot')"); left < 0 {
				s.t.Fatalf("get_coupon: %d left", left)
			}
			if locked := get[int](s, "select count(*) from coupond.locked_coupons(array['hot', 'none'])"); locked > 1 {
				s.t.Fatalf("locked_coupons: %d locked", locked)
			}
			s.exec("select coupond.coupon_claimers('hot', 0, 1)")
			users = append(users, batch[0], batch[1], "batch "+batch[0])
			rounds[i].Add(1)
		}
		return users
	})

	returned, stored := slices.Concat(won...), admin.claims("hot")
	slices.Sort(returned)
	slices.Sort(stored)
	equal(t, "users that got claimed, and stored users", returned, stored)
	for i, users := range won[:clients] {
		if len(users) < 3*installs {
			t.Errorf("client %d claimed %d times, want at least 3 times per installation (%d)", i, len(users), installs)
		}
	}
}
