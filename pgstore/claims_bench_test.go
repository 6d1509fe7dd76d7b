package pgstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/pgtest"
)

// The crowd sizes at which a call is measured; the last is the most that travels in one (mostInCall).
var crowdSizes = []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}

// benchSession is a session of a store, and as many coupons as are asked for.
func benchSession(b *testing.B, coupons int) (conn *pgx.Conn, names []string) {
	b.Helper()
	database := pgtest.New(b)
	owner := database.Connect(b)
	for i := range coupons {
		names = append(names, fmt.Sprintf("coupon-%d", i))
		if _, err := owner.Exec(b.Context(), "select public.create_coupon($1, 2147483647)", names[i]); err != nil {
			b.Fatal(err)
		}
	}
	cfg := testConfig(database.URL)
	cfg.ClaimTimeout = patience
	store, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(store.Close)
	pooled, err := store.pool.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pooled.Release)
	return pooled.Conn(), names
}

// benchCalls measures calls of ask for crowds of the given size that all win, and says what a claim takes.
func benchCalls(b *testing.B, conn *pgx.Conn, size int, coupon func(i int) string) {
	b.Helper()
	b.ReportAllocs()
	claims := make([]*claim, size)
	user := 0
	next := func() {
		for i := range claims {
			claims[i] = &claim{user: fmt.Sprintf("%s-%09d", b.Name(), user), coupon: coupon(i)}
			user++
		}
	}
	// PostgreSQL settles on its plans after five executions.
	for range 6 {
		next()
		if err := ask(b.Context(), conn, claims); err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	for b.Loop() {
		b.StopTimer()
		next()
		b.StartTimer()
		if err := ask(b.Context(), conn, claims); err != nil {
			b.Fatal(err)
		}
		n += size
		for _, c := range claims {
			if c.status != Claimed || c.err != nil {
				b.Fatalf("%s: %s, %v", c.user, c.status, c.err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/claim")
}

// BenchmarkClaimCoupons is one call of claim_coupons, its commit included, for a crowd of each size.
func BenchmarkClaimCoupons(b *testing.B) {
	conn, coupons := benchSession(b, 1)
	for _, size := range crowdSizes {
		b.Run(fmt.Sprintf("users=%d", size), func(b *testing.B) {
			benchCalls(b, conn, size, func(int) string { return coupons[0] })
		})
	}
}

// BenchmarkClaimBatch is one call of claim_batch, its commit included, for a crowd of each size: every user wants a coupon
// of his own, which is the most work there can be. (A crowd of one wants one coupon, so it is no case for claim_batch.)
func BenchmarkClaimBatch(b *testing.B) {
	conn, coupons := benchSession(b, mostInCall)
	for _, size := range crowdSizes[1:] {
		b.Run(fmt.Sprintf("users=%d", size), func(b *testing.B) {
			benchCalls(b, conn, size, func(i int) string { return coupons[i] })
		})
	}
}

// BenchmarkStoreClaim is Claim from end to end: 1 caller, who carries his own claim, and crowds that travel together.
func BenchmarkStoreClaim(b *testing.B) {
	database := pgtest.New(b)
	if _, err := database.Connect(b).Exec(b.Context(), "select public.create_coupon('coupon', 2147483647)"); err != nil {
		b.Fatal(err)
	}
	cfg := testConfig(database.URL)
	cfg.ClaimQueue, cfg.ClaimTimeout, cfg.Log = 4096, patience, zerolog.Nop()
	store, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(store.Close)
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			benchCallers(b, callers, func(user string) error {
				status, err := store.Claim(b.Context(), user, "coupon")
				if err == nil && status != Claimed && status != AlreadyClaimed { // the latter: b.N is tried with several sizes
					err = fmt.Errorf("%s: %s", user, status)
				}
				return err
			})
		})
	}
}

// BenchmarkLanes is what travelling together costs by itself: the hand-over of claims, to a call that does nothing.
func BenchmarkLanes(b *testing.B) {
	for _, callers := range []int{1, 2, 16, 128, 1024} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			lanes := newLanes(1, 4096, time.Minute, func(_ context.Context, claims []*claim) {
				for _, c := range claims {
					c.status = Claimed
				}
			})
			b.Cleanup(lanes.close)
			benchCallers(b, callers, func(user string) error {
				_, err := lanes.claim(context.Background(), user, "coupon")
				return err
			})
		})
	}
}

// benchCallers lets so many goroutines make b.N calls together.
func benchCallers(b *testing.B, callers int, call func(user string) error) {
	b.Helper()
	users := make([]string, b.N)
	for i := range users {
		users[i] = fmt.Sprintf("%s-%09d", b.Name(), i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for c := range callers {
		all.Go(func() {
			for i := c; i < b.N; i += callers {
				if err := call(users[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
