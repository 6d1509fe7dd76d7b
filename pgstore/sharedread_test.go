package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// look is what a fake read saw: when it began, and which of the reads it was.
type look struct {
	began  time.Time
	number int
}

// slowReads is a reads whose every read takes a second.
func slowReads(count *int) *reads[*look] {
	return &reads[*look]{
		timeout: time.Hour,
		read: func(ctx context.Context, _ string) (*look, error) {
			*count++
			l := &look{began: time.Now(), number: *count}
			time.Sleep(time.Second)
			return l, ctx.Err()
		},
	}
}

func TestReadsJoinTheNextReadNeverTheOneUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		// The first finds nothing under way. The others come 100 ms apart during the first
		// read, so that all of them share the second.
		looks := make([]*look, 6)
		var callers sync.WaitGroup
		for i := range looks {
			callers.Go(func() {
				asked := time.Now()
				l, err := r.join(t.Context(), "c")
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
					return
				}
				if l.began.Before(asked) {
					t.Errorf("caller %d got a read that began %v before he asked", i, asked.Sub(l.began))
				}
				looks[i] = l
			})
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		callers.Wait()

		for i, l := range looks {
			if want := min(i, 1) + 1; l.number != want {
				t.Errorf("caller %d got read %d, want %d", i, l.number, want)
			}
		}
		if count != 2 {
			t.Errorf("%d reads, want 2", count)
		}
	})
}

func TestReadsOfDifferentKeysDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int32
		r := &reads[int]{timeout: time.Hour, read: func(context.Context, string) (int, error) {
			begun.Add(1)
			time.Sleep(time.Second)
			return 0, nil
		}}
		for i := range 5 {
			go func() { _, _ = r.join(t.Context(), fmt.Sprint(i)) }()
		}
		synctest.Wait()
		if begun.Load() != 5 {
			t.Errorf("%d reads under way, want 5", begun.Load())
		}
		time.Sleep(2 * time.Second)
	})
}

func TestReadsACallerWhoLeavesFailsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		leaving, leave := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for i := range 4 {
			// 0 and 1 leave: the one whom the read under way was made for, and one of those who
			// gather for the next.
			ctx := t.Context()
			if i < 2 {
				ctx = leaving
			}
			callers.Go(func() {
				start := time.Now()
				l, err := r.join(ctx, "c")
				switch {
				case i >= 2 && (err != nil || l.number != 2):
					t.Errorf("caller %d, who stayed: %v, %v", i, l, err)
				case i < 2 && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled)):
					t.Errorf("caller %d, who left: %v", i, err)
				case i < 2 && time.Since(start) != 500*time.Millisecond:
					t.Errorf("caller %d, who left, was released after %v", i, time.Since(start))
				}
			})
			synctest.Wait()
		}
		time.Sleep(500 * time.Millisecond)
		leave()
		callers.Wait()
	})
}

func TestReadsARideThatAllHaveLeftIsNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := 0
		r := slowReads(&count)

		leaving, leave := context.WithCancel(t.Context())
		go func() { _, _ = r.join(t.Context(), "c") }()
		synctest.Wait()
		go func() { _, _ = r.join(leaving, "c") }()
		synctest.Wait()
		leave()
		time.Sleep(10 * time.Second)
		synctest.Wait()

		if count != 1 {
			t.Errorf("%d reads, want only the first", count)
		}
		if len(r.underWay) != 0 {
			t.Errorf("%d rides are kept", len(r.underWay))
		}
	})
}

func TestReadsAreBoundedWithoutTheirCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reads[int]{timeout: 5 * time.Second, read: func(ctx context.Context, _ string) (int, error) {
			<-ctx.Done() // a database that does not answer
			return 0, ctx.Err()
		}}
		start := time.Now()
		_, err := r.join(t.Context(), "c")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestReadsAnErrorIsSharedAndForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		var count atomic.Int32
		r := &reads[int]{timeout: time.Hour, read: func(context.Context, string) (int, error) {
			time.Sleep(time.Second)
			if count.Add(1) == 2 {
				return 0, broken
			}
			return 7, nil
		}}
		go func() { _, _ = r.join(t.Context(), "c") }()
		synctest.Wait()
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				if _, err := r.join(t.Context(), "c"); !errors.Is(err, broken) {
					t.Errorf("%v, want the error of the shared read", err)
				}
			})
		}
		callers.Wait()
		if v, err := r.join(t.Context(), "c"); v != 7 || err != nil {
			t.Errorf("afterwards: %v, %v", v, err)
		}
	})
}

func TestReadsKeepNothing(t *testing.T) {
	r := &reads[*look]{timeout: time.Hour, read: func(context.Context, string) (*look, error) {
		return &look{number: 1}, nil
	}}
	l, err := r.join(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	kept := weak.Make(l)
	runtime.KeepAlive(l)
	l = nil
	for range 10 {
		runtime.GC()
		if kept.Value() == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the value outlives its last reader")
}

// What was true before a caller asked is in what he reads, however many share it.
func TestReadsShowWhatWasThereBefore(t *testing.T) {
	var written [3]atomic.Int64
	r := &reads[int64]{timeout: time.Hour, read: func(_ context.Context, key string) (int64, error) {
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
				seen, err := r.join(ctx, fmt.Sprint(key))
				if err == nil && seen < mine {
					t.Errorf("read %d after %d was written", seen, mine)
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	clients.Wait()
	// Reads of callers who left end by themselves.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		kept := len(r.underWay)
		r.mu.Unlock()
		if kept == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d rides are kept", kept)
		}
	}
}

func TestEncodeOnce(t *testing.T) {
	c := NewCoupon("c", 3, []string{"a", "b"})
	var encodings atomic.Int32
	encode := func(c *Coupon) []byte {
		encodings.Add(1)
		claimers, _ := c.Whole()
		return fmt.Append(nil, claimers)
	}
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			if body := c.EncodeOnce(encode); string(body) != "[a b]" {
				t.Errorf("%q", body)
			}
		})
	}
	readers.Wait()
	if encodings.Load() != 1 {
		t.Errorf("encoded %d times", encodings.Load())
	}
}

func TestWholeCoupon(t *testing.T) {
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
			t.Errorf("Claimers yields %d of %d", count, len(claimers))
		}
	}
}
