package api

import (
	"strings"
	"sync"
	"testing"

	"scalable-coupon-system/pgstore"
)

// The budget counts what is larger than freeSize, up to its limit and not beyond.
func TestBudget(t *testing.T) {
	b := budget{limit: 10_000}
	for _, step := range []struct {
		from, to int
		fits     bool
		used     int64
	}{
		{0, freeSize, true, 0},
		{0, freeSize + 1, true, freeSize + 1},
		{freeSize + 1, 9_000, true, 9_000},
		{0, 10_000, false, 9_000},
		{0, freeSize, true, 9_000}, // free, also if nothing is left
		{9_000, 10_000, true, 10_000},
		{10_000, 10_001, false, 10_000},
		{10_000, 100, true, 0},
		{100, 0, true, 0},
	} {
		err := b.resize(step.from, step.to)
		if used := b.used.Load(); (err == nil) != step.fits || used != step.used {
			t.Fatalf("from %d to %d: %v, %d bytes used; want success: %t, and %d", step.from, step.to, err, used, step.fits, step.used)
		}
	}
}

// Concurrent requests never use more than the limit, and return all of it.
func TestBudget_concurrent(t *testing.T) {
	const size = freeSize + 1
	b := budget{limit: 3 * size}
	var requests sync.WaitGroup
	for range 16 {
		requests.Go(func() {
			for range 1_000 {
				if b.take(size) == nil {
					if used := b.used.Load(); used > b.limit {
						t.Errorf("%d bytes used, the limit is %d", used, b.limit)
					}
					b.give(size)
				}
			}
		})
	}
	requests.Wait()
	if used := b.used.Load(); used != 0 {
		t.Errorf("%d bytes are still used", used)
	}
}

// Holders of the same *Coupon share one encoding and one part of the budget, until the last one
// releases it.
func TestSharedBodies(t *testing.T) {
	b := budget{limit: 1 << 20}
	bodies := sharedBodies{budget: &b, held: make(map[*pgstore.Coupon]*sharedBody)}
	coupon := pgstore.NewCoupon("sale", 100, []string{strings.Repeat("a", 255), strings.Repeat("\x01", 255), strings.Repeat("🎟", 255)})
	var holders sync.WaitGroup
	first, err := bodies.hold(coupon)
	if err != nil {
		t.Fatal(err)
	}
	used := b.used.Load()
	if used < int64(len(first)) {
		t.Errorf("%d bytes of the budget are used, the body has %d", used, len(first))
	}
	for range 8 {
		holders.Go(func() {
			defer bodies.release(coupon)
			again, err := bodies.hold(coupon)
			if err != nil || &again[0] != &first[0] || b.used.Load() != used {
				t.Errorf("another holder gets %.100s, %v; %d bytes used, want %d", again, err, b.used.Load(), used)
			}
		})
	}
	holders.Wait()

	other := pgstore.NewCoupon("sale", 100, []string{"a"})
	if body, err := bodies.hold(other); err != nil || &body[0] == &first[0] {
		t.Errorf("another coupon of the same name gets %.100s, %v", body, err)
	}
	bodies.release(other)
	bodies.release(coupon)
	if b.used.Load() != 0 || len(bodies.held) != 0 {
		t.Errorf("%d bytes and %d bodies are still held", b.used.Load(), len(bodies.held))
	}
}
