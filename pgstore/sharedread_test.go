package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"scalable-coupon-system/internal/wait"
)

// readResult is when a fake read started, and its number.
type readResult struct {
	began  time.Time
	number int
}

// slowReads returns sharedReads on a fake read that takes a second.
func slowReads(count *int) *sharedReads[*readResult] {
	return &sharedReads[*readResult]{
		timeout: time.Hour,
		read: func(ctx context.Context, _ string) (*readResult, error) {
			*count++
			l := &readResult{began: time.Now(), number: *count}
			time.Sleep(time.Second)
			return l, ctx.Err()
		},
	}
}

func TestSharedReads_joinTheNextRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		// The first call starts a read. The others arrive 100 ms apart during that read, so all of
		// them share the second.
		results := make([]*readResult, 6)
		var callers sync.WaitGroup
		for i := range results {
			callers.Go(func() {
				start := time.Now()
				l, err := r.get(t.Context(), "c")
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
					return
				}
				if l.began.Before(start) {
					t.Errorf("caller %d: the read started %v before the call", i, start.Sub(l.began))
				}
				results[i] = l
			})
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		callers.Wait()

		for i, l := range results {
			if want := min(i, 1) + 1; l.number != want {
				t.Errorf("caller %d: read %d, want %d", i, l.number, want)
			}
		}
		if count != 2 {
			t.Errorf("%d reads, want 2", count)
		}
	})
}

func TestSharedReads_keysAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var started atomic.Int32
		r := &sharedReads[int]{timeout: time.Hour, read: func(context.Context, string) (int, error) {
			started.Add(1)
			time.Sleep(time.Second)
			return 0, nil
		}}
		for i := range 5 {
			go func() { _, _ = r.get(t.Context(), fmt.Sprint(i)) }()
		}
		synctest.Wait()
		if started.Load() != 5 {
			t.Errorf("%d reads are running, want 5", started.Load())
		}
		time.Sleep(2 * time.Second)
	})
}

func TestSharedReads_canceledCallerFailsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		canceled, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for i := range 4 {
			// Callers 0 and 1 are canceled: that of the running read, and one of the next read.
			ctx := t.Context()
			if i < 2 {
				ctx = canceled
			}
			callers.Go(func() {
				start := time.Now()
				l, err := r.get(ctx, "c")
				switch {
				case i >= 2 && (err != nil || l.number != 2):
					t.Errorf("caller %d: %v, %v; want read 2", i, l, err)
				case i < 2 && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled)):
					t.Errorf("canceled caller %d: %v", i, err)
				case i < 2 && time.Since(start) != 500*time.Millisecond:
					t.Errorf("canceled caller %d: returned after %v, want 500ms", i, time.Since(start))
				}
			})
			synctest.Wait()
		}
		time.Sleep(500 * time.Millisecond)
		cancel()
		callers.Wait()
	})
}

func TestSharedReads_abandonedReadIsNotStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		canceled, cancel := context.WithCancel(t.Context())
		go func() { _, _ = r.get(t.Context(), "c") }()
		synctest.Wait()
		go func() { _, _ = r.get(canceled, "c") }()
		synctest.Wait()
		cancel()
		time.Sleep(10 * time.Second)
		synctest.Wait()

		if count != 1 {
			t.Errorf("%d reads, want 1", count)
		}
		if len(r.running) != 0 {
			t.Errorf("%d reads are left in the map, want 0", len(r.running))
		}
	})
}

func TestSharedReads_timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &sharedReads[int]{timeout: 5 * time.Second, read: func(ctx context.Context, _ string) (int, error) {
			<-ctx.Done() // a database that does not answer
			return 0, ctx.Err()
		}}
		start := time.Now()
		_, err := r.get(t.Context(), "c")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v; want a deadline error after 5s", err, time.Since(start))
		}
	})
}

func TestSharedReads_errorIsSharedButNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		var count atomic.Int32
		r := &sharedReads[int]{timeout: time.Hour, read: func(context.Context, string) (int, error) {
			time.Sleep(time.Second)
			if count.Add(1) == 2 {
				return 0, broken
			}
			return 7, nil
		}}
		go func() { _, _ = r.get(t.Context(), "c") }()
		synctest.Wait()
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				if _, err := r.get(t.Context(), "c"); !errors.Is(err, broken) {
					t.Errorf("error %v, want the error of the shared read", err)
				}
			})
		}
		callers.Wait()
		if v, err := r.get(t.Context(), "c"); v != 7 || err != nil {
			t.Errorf("afterwards: %v, %v", v, err)
		}
	})
}

// A read returns what was written before it was requested, however many callers share it.
func TestSharedReads_seeEarlierWrites(t *testing.T) {
	var written [3]atomic.Int64
	r := &sharedReads[int64]{timeout: time.Hour, read: func(_ context.Context, key string) (int64, error) {
		seen := written[key[0]-'0'].Load()
		time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		return seen, nil
	}}
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for range 300 {
				key := rand.IntN(len(written))
				mine := written[key].Add(1)
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(10) == 0 {
					go cancel()
				}
				seen, err := r.get(ctx, fmt.Sprint(key))
				if err == nil && seen < mine {
					t.Errorf("got %d, want at least %d, which was written before", seen, mine)
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	clients.Wait()
	// Reads of canceled callers end as well.
	wait.For(t, "all reads to end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.running) == 0
	})
}

func TestCoupon_Whole(t *testing.T) {
	for _, claimers := range [][]string{nil, {"a"}, {"a", "b", "c"}} {
		c := NewCoupon("c", 3, claimers)
		if c.Amount != 3 || c.RemainingAmount != 3-len(claimers) {
			t.Errorf("%d of %d remain with %d claimers", c.RemainingAmount, c.Amount, len(claimers))
		}
		whole, ok := c.Whole()
		if !ok || len(whole) != len(claimers) {
			t.Errorf("Whole: %v, %v", whole, ok)
		}
		count := 0
		for page, err := range c.Claimers(t.Context()) {
			if err != nil || len(page) == 0 {
				t.Errorf("page %v, %v", page, err)
			}
			count += len(page)
		}
		if count != len(claimers) {
			t.Errorf("Claimers yields %d ids, want %d", count, len(claimers))
		}
	}
}
