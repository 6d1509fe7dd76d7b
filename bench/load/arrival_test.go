package load

import (
	"math"
	"testing"
	"time"
)

func TestArrivals_closedLoop(t *testing.T) {
	a := newArrivals(3, 0, 1)
	for want := range 2 {
		if i, due, ok := a.take(); !ok || i != want || !due.IsZero() {
			t.Fatalf("request %d due %v (%v), want %d due now", i, due, ok, want)
		}
	}
	now := time.Now()
	later, earlier := now.Add(time.Hour), now.Add(-time.Second)
	a.retry(0, later)
	a.retry(1, earlier)
	// First a retry that is due, then a new request, last a retry that is not due yet.
	for _, want := range []struct {
		i   int
		due time.Time
	}{{1, earlier}, {2, time.Time{}}, {0, later}} {
		if i, due, ok := a.take(); !ok || i != want.i || !due.Equal(want.due) {
			t.Errorf("request %d due %v (%v), want %+v", i, due, ok, want)
		}
	}
	if i, _, ok := a.take(); ok {
		t.Errorf("request %d after the last one", i)
	}
}

func TestArrivals_rate(t *testing.T) {
	const n, rate = 100_000, 5000
	began := time.Now()
	a, b, other := newArrivals(n, rate, 1), newArrivals(n, rate, 1), newArrivals(n, rate, 2)
	var last time.Time
	var squares float64
	_, first, _ := a.take()
	_, firstB, _ := b.take()
	_, firstOther, _ := other.take()
	previous, differ := first, false
	for range n - 1 {
		_, due, ok := a.take()
		if !ok || due.Before(previous) {
			t.Fatalf("due %v (%v) after %v: not in order", due, ok, previous)
		}
		_, dueB, _ := b.take()
		if due.Sub(first) != dueB.Sub(firstB) {
			t.Fatal("the same seed gave different gaps")
		}
		_, dueOther, _ := other.take()
		differ = differ || due.Sub(first) != dueOther.Sub(firstOther)
		gap := due.Sub(previous).Seconds() * rate
		squares += gap * gap
		previous, last = due, due
	}
	if !differ {
		t.Error("another seed gave the same gaps")
	}
	if got := n / last.Sub(began).Seconds(); math.Abs(got-rate) > rate/50 {
		t.Errorf("%v arrivals per second, want %v", got, rate)
	}
	// Of exponential gaps the mean square is twice the square of the mean; of equal gaps it is
	// once.
	if m := squares / (n - 1); math.Abs(m-2) > 0.1 {
		t.Errorf("mean square of the gaps is %v times the square of the mean, want 2", m)
	}
	if _, _, ok := a.take(); ok {
		t.Error("a request after the last one")
	}
}

func TestArrivals_retriesAtRate(t *testing.T) {
	a := newArrivals(2, 1, 1)
	a.retry(7, a.due.Add(-time.Millisecond))
	a.retry(8, a.due.Add(time.Hour))
	for _, want := range []int{7, 0, 1, 8} {
		if i, _, ok := a.take(); !ok || i != want {
			t.Errorf("request %d (%v), want %d", i, ok, want)
		}
	}
}
