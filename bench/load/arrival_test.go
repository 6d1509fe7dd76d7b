package load

import (
	"math"
	"testing"
	"time"
)

func TestArrivals_closedLoop(t *testing.T) {
	a := newArrivals(3, 0, 1)
	expect := func(wants ...arrival) {
		t.Helper()
		for _, want := range wants {
			if got, ok := a.take(); !ok || got != want {
				t.Fatalf("%+v (%v), want %+v", got, ok, want)
			}
		}
	}
	expect(arrival{request: 0, attempt: 1}, arrival{request: 1, attempt: 1})
	now := time.Now()
	later, earlier := arrival{0, 2, now.Add(time.Hour)}, arrival{1, 2, now.Add(-time.Second)}
	a.retry(later)
	a.retry(earlier)
	// First a retry that is due, then a new request, last a retry that is not due yet.
	expect(earlier, arrival{request: 2, attempt: 1}, later)
	if got, ok := a.take(); ok {
		t.Errorf("%+v after the last request", got)
	}
}

func TestArrivals_rate(t *testing.T) {
	const n, rate = 100_000, 5000
	began := time.Now()
	a, b, other := newArrivals(n, rate, 1), newArrivals(n, rate, 1), newArrivals(n, rate, 2)
	var last time.Time
	var squares float64
	take := func(a *arrivals) time.Time {
		next, ok := a.take()
		if !ok {
			t.Fatal("too few requests")
		}
		return next.due
	}
	first, firstB, firstOther := take(a), take(b), take(other)
	previous, differ := first, false
	for range n - 1 {
		due := take(a)
		if due.Before(previous) {
			t.Fatalf("due %v after %v: not in order", due, previous)
		}
		if due.Sub(first) != take(b).Sub(firstB) {
			t.Fatal("the same seed gave different gaps")
		}
		differ = differ || due.Sub(first) != take(other).Sub(firstOther)
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
	if _, ok := a.take(); ok {
		t.Error("a request after the last one")
	}
}

func TestArrivals_retriesAtRate(t *testing.T) {
	a := newArrivals(2, 1, 1)
	a.retry(arrival{7, 2, a.due.Add(-time.Millisecond)})
	a.retry(arrival{8, 2, a.due.Add(time.Hour)})
	for _, want := range []int{7, 0, 1, 8} {
		if next, ok := a.take(); !ok || next.request != want {
			t.Errorf("%+v (%v), want request %d", next, ok, want)
		}
	}
}
