package db_test

import (
	"context"
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
	sessions := append(several(t, clients, database, service), admin)
	won := concurrently(t, sessions, func(ctx context.Context, i int, s *session) (users []string, err error) {
		if s == admin {
			defer installed.Store(true)
			for range installs {
				var before [clients]int64
				for i := range rounds {
					before[i] = rounds[i].Load()
				}
				if _, err := db.Apply(ctx, s.Conn, db.Options{}); err != nil {
					return nil, err
				}
				// Wait until each client has called the functions that were just installed: without that, a
				// fast installer would prove little.
				for i := range rounds {
					for rounds[i].Load() == before[i] && running.Load() == clients && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
				}
			}
			return nil, ctx.Err()
		}
		defer running.Add(-1)
		for n := 0; !installed.Load(); n++ {
			batch := names(fmt.Sprintf("%d/%d/%%d", i, n), 2)
			status, err := getErr[string](ctx, s.Conn, "select coupond.claim_coupon($1, 'hot')", batch[0])
			if err != nil {
				return nil, fmt.Errorf("claim_coupon: %w", err)
			}
			statuses, err := s.claimCouponsErr(ctx, batch, "hot")
			if err != nil {
				return nil, fmt.Errorf("claim_coupons: %w", err)
			}
			more, err := s.claimBatchErr(ctx, []string{batch[0], "batch " + batch[0]}, []string{"none", "hot"})
			if err != nil {
				return nil, fmt.Errorf("claim_batch: %w", err)
			}
			left, err := getErr[int](ctx, s.Conn, "select remaining_amount from coupond.get_coupon('hot')")
			if err != nil || left < 0 {
				return nil, fmt.Errorf("get_coupon: %d left: %w", left, err)
			}
			locked, err := getErr[int](ctx, s.Conn, "select count(*) from coupond.locked_coupons(array['hot', 'none'])")
			if err != nil || locked > 1 {
				return nil, fmt.Errorf("locked_coupons: %d locked: %w", locked, err)
			}
			if n := len(users); n > 0 {
				if _, err := getErr[string](ctx, s.Conn, "select coupond.coupon_claimers('hot', 0, 1)"); err != nil {
					return nil, fmt.Errorf("coupon_claimers: %w", err)
				}
			}
			got := slices.Concat([]string{status}, statuses, more)
			if want := []string{claimed, alreadyClaimed, claimed, couponNotFound, claimed}; !slices.Equal(got, want) {
				return nil, fmt.Errorf("got %v, want %v", got, want)
			}
			users = append(users, batch[0], batch[1], "batch "+batch[0])
			rounds[i].Add(1)
		}
		return users, nil
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
