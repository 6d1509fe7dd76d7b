package pgstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A limiter bounds how many calls run, how many wait, and for how long.
func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2, 1, testTimeout)
		for range 2 {
			if err := l.enter(t.Context(), ""); err != nil {
				t.Fatalf("a call that need not wait: %v", err)
			}
		}
		enter := func(ctx context.Context) <-chan error {
			entered := make(chan error, 1)
			go func() { entered <- l.enter(ctx, "") }()
			synctest.Wait()
			return entered
		}
		third := enter(t.Context())
		began := time.Now()
		if err := l.enter(t.Context(), ""); !errors.Is(err, ErrOverloaded) || !time.Now().Equal(began) {
			t.Errorf("a second call that waits: %v after %v; want ErrOverloaded at once", err, time.Since(began))
		}
		l.exit("")
		if err := <-third; err != nil {
			t.Errorf("the first call that waits, after another has left: %v", err)
		}

		began = time.Now()
		if err := l.enter(t.Context(), ""); !errors.Is(err, ErrOverloaded) || time.Since(began) != testTimeout/2 {
			t.Errorf("a call that waits in vain: %v after %v; want ErrOverloaded after %v", err, time.Since(began), testTimeout/2)
		}
		ctx, cancel := context.WithCancel(t.Context())
		left := enter(ctx)
		cancel()
		if err := <-left; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("a call after its caller has left: %v", err)
		}
		if n := l.waiting.Load(); n != 0 {
			t.Errorf("%d calls are waiting, want 0", n)
		}
	})
}

// Calls with the same key run one after the other, and do not use the places of the others.
func TestLimiter_key(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2, 3, testTimeout)
		if err := l.enter(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		again := make(chan error, 5)
		for range 3 {
			go func() { again <- l.enter(t.Context(), "a") }()
		}
		synctest.Wait()
		if err := l.enter(t.Context(), "b"); err != nil || len(again) > 0 {
			t.Fatalf("a call with another key: %v; %d of the same key run", err, len(again))
		}
		l.exit("b")
		for range 3 {
			l.exit("a")
			synctest.Wait()
			if len(again) != 1 {
				t.Fatalf("%d calls of the key run, want 1", len(again))
			}
			if err := <-again; err != nil {
				t.Error(err)
			}
		}
		// A call that leaves without its turn does not keep the key, whether it has waited for the
		// key or for a place.
		ctx, cancel := context.WithCancel(t.Context())
		go func() { again <- l.enter(ctx, "a") }()
		synctest.Wait()
		cancel()
		if err := <-again; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		l.exit("a")
		for range 2 {
			if err := l.enter(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel = context.WithCancel(t.Context())
		go func() { again <- l.enter(ctx, "b") }()
		synctest.Wait()
		cancel()
		if err := <-again; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := l.enter(t.Context(), "c"); !errors.Is(err, ErrOverloaded) {
			t.Errorf("a call that waits for its place in vain: %v, want ErrOverloaded", err)
		}
		l.exit("")
		l.exit("")
		if len(l.keys) > 0 || len(l.slots) > 0 || l.waiting.Load() != 0 {
			t.Errorf("%d keys, %d slots, %d waiting; want none", len(l.keys), len(l.slots), l.waiting.Load())
		}
	})
}
