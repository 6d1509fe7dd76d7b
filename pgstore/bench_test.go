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
