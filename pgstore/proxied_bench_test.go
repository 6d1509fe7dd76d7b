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

// BenchmarkThroughAProxy is one call of claim_batch for 512 users who want 512 coupons, straight to a shard and through a proxy
// with 1 and 4 of them, with the CPU that the proxy's server and the shards' take for a claim.
func BenchmarkThroughAProxy(b *testing.B) {
	for _, shards := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			s := newSharded(b, max(1, shards))
			names := slices.Concat(s.couponsOf(b, mostInCall/max(1, shards))...)
			for _, name := range names {
				if status, err := s.CreateCoupon(b.Context(), name, 2147483647); status != Created {
					b.Fatal(status, err)
				}
			}
			store := s.Store
			if shards == 0 {
				cfg := testConfig(s.urls[0])
				cfg.ClaimTimeout = patience
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
			front, behind := cpu(b, s.front), cpu(b, s.shards...)
			n := 0
			benchCalls(b, conn.Conn(), mostInCall, func(i int) string { n++; return names[i] })
			b.ReportMetric(10_000*float64(cpu(b, s.front)-front)/float64(n), "proxy-CPU-µs/claim")
			b.ReportMetric(10_000*float64(cpu(b, s.shards...)-behind)/float64(n), "shards-CPU-µs/claim")
		})
	}
}

// BenchmarkCrowdThroughAProxy is Claim from end to end, for 1,024 callers who want 512 coupons of 4 shards: with a call for all of
// them together, as while the map of partitions is not known, and with lanes for each shard.
func BenchmarkCrowdThroughAProxy(b *testing.B) {
	const shards = 4
	s := newSharded(b, shards, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.Nop() })
	names := slices.Concat(s.couponsOf(b, mostInCall/shards)...)
	for _, name := range names {
		if status, err := s.CreateCoupon(b.Context(), name, 2147483647); status != Created {
			b.Fatal(status, err)
		}
	}
	s.wantShards(b, shards, nil)
	known := *s.lanes.partitions.Load()
	together := []group{known[0]}
	var n atomic.Int64
	for _, lanes := range []string{"together", "apart", "together", "apart"} {
		b.Run("lanes="+lanes, func(b *testing.B) {
			if lanes == "apart" {
				s.lanes.partitions.Store(&known)
			} else {
				s.lanes.partitions.Store(&together)
			}
			before, calls := n.Load(), s.calls(b)
			front, behind := cpu(b, s.front), cpu(b, s.shards...)
			benchCallers(b, 1024, func(string) error {
				i := n.Add(1)
				status, err := s.Claim(b.Context(), fmt.Sprint("user-", i), names[rand.IntN(len(names))])
				if err == nil && status != Claimed {
					err = errors.New(string(status))
				}
				return err
			})
			claims := float64(n.Load() - before)
			b.ReportMetric(claims/(s.calls(b)-calls), "claims/call")
			b.ReportMetric(10_000*float64(cpu(b, s.front)-front)/claims, "proxy-CPU-µs/claim")
			b.ReportMetric(10_000*float64(cpu(b, s.shards...)-behind)/claims, "shards-CPU-µs/claim")
		})
	}
}

// calls counts the calls of claims.
func (s *sharded) calls(b *testing.B) float64 {
	b.Helper()
	calls, err := strconv.ParseFloat(s.scrape(b)["coupond_claims_per_call_count"], 64)
	if err != nil {
		b.Fatal(err)
	}
	return calls
}

// cpu is what the servers' processes have used so far, in hundredths of a second (Linux).
func cpu(b *testing.B, servers ...*pgtest.Server) (ticks int) {
	b.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for _, entry := range entries {
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // no process, or not any more
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
