package pgstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/pgtest"
)

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
				cfg := testConfig(s.urls[0])
				cfg.ClaimTimeout = longTimeout
				direct, err := Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(direct.Close)
				store = direct
			}
			conn, err := store.pool.Acquire(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(conn.Release)

			claims, user := make([]*claim, maxBatch), 0
			newClaims := func() {
				for i := range claims {
					claims[i] = &claim{user: fmt.Sprint("user-", user), coupon: names[i]}
					user++
				}
			}
			for range 6 { // PostgreSQL chooses between custom and generic plans after five executions
				newClaims()
				if err := callClaimFunction(b.Context(), conn.Conn(), claims, ""); err != nil {
					b.Fatal(err)
				}
			}
			proxyCPU, shardsCPU, n := cpu(b, s.front), cpu(b, s.shards...), 0
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				newClaims()
				b.StartTimer()
				if err := callClaimFunction(b.Context(), conn.Conn(), claims, ""); err != nil {
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

// BenchmarkProxy_claims measures Claim from 1,024 goroutines on 512 coupons of 4 shards: with one
// batcher for all shards, as while the map of partitions is unknown, and with batchers for each
// shard.
func BenchmarkProxy_claims(b *testing.B) {
	const shards = 4
	s := newShardedStore(b, shards, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.Nop() })
	names := slices.Concat(s.couponsOf(b, maxBatch/shards)...)
	for _, name := range names {
		if status, err := s.CreateCoupon(b.Context(), name, 2147483647); status != Created {
			b.Fatal(status, err)
		}
	}
	s.wantShards(b, shards, nil)
	perShard := *s.servers.Load()
	shared := slices.Repeat(perShard[:1], len(perShard))
	var n atomic.Int64
	for _, batchers := range []string{"shared", "per-shard", "shared", "per-shard"} {
		b.Run("batchers="+batchers, func(b *testing.B) {
			if batchers == "shared" {
				s.servers.Store(&shared)
			} else {
				s.servers.Store(&perShard)
			}
			before, calls := n.Load(), s.calls(b)
			proxyCPU, shardsCPU := cpu(b, s.front), cpu(b, s.shards...)
			benchmarkClaims(b, 1024, func(string) error {
				i := n.Add(1)
				status, err := s.Claim(b.Context(), fmt.Sprint("user-", i), names[rand.IntN(len(names))])
				if err == nil && status != Claimed {
					err = errors.New(string(status))
				}
				return err
			})
			claims := float64(n.Load() - before)
			b.ReportMetric(claims/(s.calls(b)-calls), "claims/call")
			b.ReportMetric(10_000*float64(cpu(b, s.front)-proxyCPU)/claims, "proxy-CPU-µs/claim")
			b.ReportMetric(10_000*float64(cpu(b, s.shards...)-shardsCPU)/claims, "shards-CPU-µs/claim")
		})
	}
}

// calls returns how many calls the batchers have sent.
func (s *shardedStore) calls(b *testing.B) float64 {
	b.Helper()
	calls, err := strconv.ParseFloat(s.scrape(b)["coupond_batch_size_count"], 64)
	if err != nil {
		b.Fatal(err)
	}
	return calls
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
