package pgstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkBatcher measures batching alone: claims are handed to a call that does nothing. The
// benchmarks of whole claims are in package bench.
func BenchmarkBatcher(b *testing.B) {
	for _, goroutines := range []int{1, 2, 16, 128, 1024} {
		b.Run(fmt.Sprintf("goroutines=%d", goroutines), func(b *testing.B) {
			batchers := newBatchers(1, 4096, time.Minute, func(_ context.Context, claims []*claim) {
				for _, c := range claims {
					c.status = Claimed
				}
			})
			b.Cleanup(batchers.close)
			benchmarkClaims(b, goroutines, func(user string) error {
				_, err := batchers.claim(context.Background(), user, "coupon")
				return err
			})
		})
	}
}

// benchmarkClaims calls claim b.N times, from that number of goroutines at once.
func benchmarkClaims(b *testing.B, goroutines int, claim func(user string) error) {
	b.Helper()
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
				if err := claim(users[i]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
