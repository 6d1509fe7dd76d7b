package pgstore

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
)

// BenchmarkBatcher measures batching alone: claims are handed to a call that does nothing. The
// benchmarks of whole claims are in package bench.
func BenchmarkBatcher(b *testing.B) {
	for _, goroutines := range []int{1, 2, 16, 128, 1024} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			var calls sync.WaitGroup
			batcher := newBatcher(instantServer{}, 1, 4096, time.Minute, make(chan struct{}, 1), &calls)
			b.Cleanup(calls.Wait)
			users := make([]string, b.N)
			for i := range users {
				users[i] = fmt.Sprintf("%s-%09d", b.Name(), i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			var all sync.WaitGroup
			for g := range goroutines {
				all.Go(func() {
					for i := g; i < b.N; i += goroutines {
						if _, err := batcher.claim(context.Background(), users[i], "coupon"); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// instantServer answers each call at once.
type instantServer struct{}

func (instantServer) sendShared(_ context.Context, claims []*claim) {
	for _, c := range claims {
		c.status = Claimed
	}
}

func (s instantServer) sendSolo(ctx context.Context, claims []*claim) bool {
	s.sendShared(ctx, claims)
	return false
}

// BenchmarkProxy_batch measures one call of claim_batch for 512 coupons, directly to a shard and
// through a proxy with 1 and 4 shards, and the CPU time of the proxy and of the shards for each
// claim.
func BenchmarkProxy_batch(b *testing.B) {
	for _, shards := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			s := newShardedStore(b, max(1, shards))
			names := slices.Concat(s.couponsOf(b, maxBatch/max(1, shards))...)
			for _, name := range names {
				if status, err := s.CreateCoupon(b.Context(), name, 2147483647); status != Created {
					b.Fatal(status, err)
				}
			}
			store := s.Store
			if shards == 0 {
				store = openStore(b, s.urls[0])
			}
			conn, err := store.pool.Acquire(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(conn.Release)

			claims, user := make([]*claim, maxBatch), 0
			call := store.serverOf("").claimCall(claims, false)
			newClaims := func() {
				for i := range claims {
					claims[i] = &claim{user: fmt.Sprint("user-", user), coupon: names[i]}
					user++
				}
			}
			for range 6 { // PostgreSQL chooses between custom and generic plans after five executions
				newClaims()
				if err := call(b.Context(), conn.Conn()); err != nil {
					b.Fatal(err)
				}
			}
			proxyCPU, shardsCPU, n := cpu(b, s.front), cpu(b, s.shards...), 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				newClaims()
				b.StartTimer()
				if err := call(b.Context(), conn.Conn()); err != nil {
					b.Fatal(err)
				}
				n += len(claims)
				for _, c := range claims {
					if c.status != Claimed || c.err != nil {
						b.Fatalf("%s: status %q, error %v", c.user, c.status, c.err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/claim")
			b.ReportMetric(10_000*float64(cpu(b, s.front)-proxyCPU)/float64(n), "proxy-CPU-µs/claim")
			b.ReportMetric(10_000*float64(cpu(b, s.shards...)-shardsCPU)/float64(n), "shards-CPU-µs/claim")
		})
	}
}

// cpu returns the CPU time of the servers' processes so far, in hundredths of a second (Linux).
func cpu(b *testing.B, servers ...*pgtest.Server) (ticks int) {
	b.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for _, entry := range entries {
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // not a process, or one that has ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		parent, _ := strconv.Atoi(fields[1])
		if slices.ContainsFunc(servers, func(s *pgtest.Server) bool { return s.Pid() == parent }) {
			for _, field := range fields[11:13] { // user and system
				n, _ := strconv.Atoi(field)
				ticks += n
			}
		}
	}
	return ticks
}
