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

// A deploy installs the functions anew while a sale is on. Nobody who is calling them may notice.
func TestFunctionsAreInstalledAnewUnderClaimingClients(t *testing.T) {
	t.Parallel()
	const (
		clients  = 8
		installs = 50
	)
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("hot", 1_000_000)

	var over atomic.Bool
	var running atomic.Int64 // clients that still claim
	var rounds [clients]atomic.Int64
	running.Store(clients)
	sessions := append(several(t, clients, database, service), admin)
	won := together(t, sessions, func(ctx context.Context, i int, s *session) (users []string, err error) {
		if s == admin {
			defer over.Store(true)
			for range installs {
				var before [clients]int64
				for i := range rounds {
					before[i] = rounds[i].Load()
				}
				if _, err := db.Apply(ctx, s.Conn); err != nil {
					return nil, err
				}
				// Everybody has used what was installed before it is installed anew: a quick installer would prove little.
				for i := range rounds {
					for rounds[i].Load() == before[i] && running.Load() == clients && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
				}
			}
			return nil, ctx.Err()
		}
		defer running.Add(-1)
		for n := 0; !over.Load(); n++ {
			crowd := names(fmt.Sprintf("%d/%d/%%d", i, n), 2)
			status, err := ask[string](ctx, s.Conn, "select public.claim_coupon($1, 'hot')", crowd[0])
			if err != nil {
				return nil, fmt.Errorf("claim_coupon: %w", err)
			}
			statuses, err := s.claimCouponsErr(ctx, crowd, "hot")
			if err != nil {
				return nil, fmt.Errorf("claim_coupons: %w", err)
			}
			more, err := s.claimBatchErr(ctx, []string{crowd[0], "batch " + crowd[0]}, []string{"none", "hot"})
			if err != nil {
				return nil, fmt.Errorf("claim_batch: %w", err)
			}
			left, err := ask[int](ctx, s.Conn, "select remaining_amount from public.get_coupon('hot')")
			if err != nil || left < 0 {
				return nil, fmt.Errorf("get_coupon: %d left: %w", left, err)
			}
			if n := len(users); n > 0 {
				if _, err := ask[string](ctx, s.Conn, "select public.coupon_claimers('hot', 0, 1)"); err != nil {
					return nil, fmt.Errorf("coupon_claimers: %w", err)
				}
			}
			got := slices.Concat([]string{status}, statuses, more)
			if want := []string{claimed, alreadyClaimed, claimed, couponNotFound, claimed}; !slices.Equal(got, want) {
				return nil, fmt.Errorf("%v, not %v", got, want)
			}
			users = append(users, crowd[0], crowd[1], "batch "+crowd[0])
			rounds[i].Add(1)
		}
		return users, nil
	})

	answered, stored := slices.Concat(won...), admin.claims("hot")
	slices.Sort(answered)
	slices.Sort(stored)
	equal(t, "who was told so has it", answered, stored)
	for i, users := range won[:clients] {
		if len(users) < 3*installs {
			t.Errorf("client %d claimed %d times during %d installations", i, len(users), installs)
		}
	}
}
