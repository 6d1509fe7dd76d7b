// Package bench measures one claim, layer by layer: the SQL functions by batch size, the Store, and
// the HTTP handler without net/http. It compares nothing; that is what bench/race is for.
//
//	go test -run '^$' -bench . -count 10 ./bench
package bench

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/pgstore"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// batchSizes ends with the largest batch that the service sends.
var batchSizes = []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}

// amount is the stock of every coupon here: enough for any number of claims.
const amount = 2147483647

// BenchmarkClaimCoupon measures one call of claim_coupon with its commit.
func BenchmarkClaimCoupon(b *testing.B) {
	conn, coupons := newSession(b, 1)
	benchmarkCalls(b, conn, 1, `select array[coupond.claim_coupon(($1::text[])[1], $2)]`, coupons[0])
}

// BenchmarkClaimCoupons measures one call of claim_coupons with its commit, by batch size.
func BenchmarkClaimCoupons(b *testing.B) {
	conn, coupons := newSession(b, 1)
	for _, size := range batchSizes {
		b.Run(fmt.Sprintf("claims=%d", size), func(b *testing.B) {
			benchmarkCalls(b, conn, size, `select coupond.claim_coupons($1, $2)`, coupons[0])
		})
	}
}

// BenchmarkClaimBatch measures one call of claim_batch with its commit, by batch size. Each claim
// is for another coupon, which is the most work a batch can be.
func BenchmarkClaimBatch(b *testing.B) {
	conn, coupons := newSession(b, batchSizes[len(batchSizes)-1])
	positions := make([]int32, len(coupons))
	for i := range positions {
		positions[i] = int32(i)
	}
	for _, size := range batchSizes {
		b.Run(fmt.Sprintf("claims=%d", size), func(b *testing.B) {
			benchmarkCalls(b, conn, size, `select array_agg(status) from coupond.claim_batch($1, $2, $3)`, coupons[:size], positions[:size])
		})
	}
}

// BenchmarkStoreClaim measures Store.Claim on one coupon: from one goroutine, and from many, where
// the claims are batched.
func BenchmarkStoreClaim(b *testing.B) {
	database := pgtest.New(b)
	createCoupons(b, database.Connect(b), "coupon")
	store, err := pgstore.Open(pgstore.Config{
		URL:              database.URL,
		MaxConns:         8,
		ClaimConcurrency: 1,
		ClaimQueue:       4096,
		ClaimTimeout:     30 * time.Second, // a busy machine must not fail a claim
		SchemaVersion:    1,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(store.Close)
	for _, goroutines := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			users := newUsers(b.N)
			b.ReportAllocs()
			b.ResetTimer()
			var all sync.WaitGroup
			for g := range goroutines {
				all.Go(func() {
					for i := g; i < b.N; i += goroutines {
						if status, err := store.Claim(b.Context(), users[i], "coupon"); err != nil || status != pgstore.Claimed {
							b.Errorf("%s: status %q, error %v", users[i], status, err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// newSession returns a connection with the role and search_path of the service, and the names of
// new coupons.
func newSession(b *testing.B, coupons int) (conn *pgx.Conn, names []string) {
	b.Helper()
	conn = pgtest.New(b).Connect(b)
	for i := range coupons {
		names = append(names, fmt.Sprintf("coupon-%d", i))
	}
	createCoupons(b, conn, names...)
	if _, err := conn.Exec(b.Context(), `set role coupon_service; set search_path = pg_catalog, pg_temp`); err != nil {
		b.Fatal(err)
	}
	return conn, names
}

func createCoupons(b *testing.B, owner *pgx.Conn, names ...string) {
	b.Helper()
	_, err := owner.Exec(b.Context(), `select coupond.create_coupon(name, $2) from unnest($1::text[]) as name`, names, amount)
	if err != nil {
		b.Fatal(err)
	}
}

// benchmarkCalls measures calls that claim for size new users each. The users are the first
// argument of call, which returns the statuses as an array. All claims must succeed.
func benchmarkCalls(b *testing.B, conn *pgx.Conn, size int, call string, args ...any) {
	b.Helper()
	claim := func(users []string) {
		var statuses []string
		if err := conn.QueryRow(b.Context(), call, append([]any{users}, args...)...).Scan(&statuses); err != nil {
			b.Fatal(err)
		}
		if !slices.Equal(statuses, slices.Repeat([]string{string(pgstore.Claimed)}, size)) {
			b.Fatalf("statuses %q, want %d × %s", statuses, size, pgstore.Claimed)
		}
	}
	for range 6 { // PostgreSQL chooses between custom and generic plans after five executions
		claim(newUsers(size))
	}
	b.ReportAllocs()
	calls := 0
	for b.Loop() {
		b.StopTimer()
		users := newUsers(size)
		b.StartTimer()
		claim(users)
		calls++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(calls*size), "ns/claim")
}

// lastUser numbers the users of all benchmarks, so that none claims twice, also with -count.
var lastUser atomic.Int64

func newUsers(n int) []string {
	users := make([]string, n)
	for i := range users {
		users[i] = fmt.Sprintf("user-%09d", lastUser.Add(1))
	}
	return users
}
