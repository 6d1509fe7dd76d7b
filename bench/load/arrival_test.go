package load

import (
	"math"
	"testing"
	"time"
)

func TestArrivalsInAClosedLoop(t *testing.T) {
	a := newArrivals(3, 0, 1)
	for want := range 2 {
		if i, due, ok := a.take(); !ok || i != want || !due.IsZero() {
			t.Fatal(i, due, ok)
		}
	}
	now := time.Now()
	later, over := now.Add(time.Hour), now.Add(-time.Second)
	a.repeat(0, later)
	a.repeat(1, over)
	// A repetition whose pause is over, what is fresh, and only then what would have to be waited for.
	for _, want := range []struct {
		i   int
		due time.Time
	}{{1, over}, {2, time.Time{}}, {0, later}} {
		if i, due, ok := a.take(); !ok || i != want.i || !due.Equal(want.due) {
			t.Errorf("got %d at %v (%v), want %+v", i, due, ok, want)
		}
	}
	if i, _, ok := a.take(); ok {
		t.Errorf("%d beyond the end", i)
	}
}

func TestArrivalsAtARate(t *testing.T) {
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
			t.Fatal("not in order", due, ok)
		}
		_, dueB, _ := b.take()
		if due.Sub(first) != dueB.Sub(firstB) {
			t.Fatal("the same seed gave other gaps")
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
		t.Errorf("%v arrivals a second, want %v", got, rate)
	}
	// Exponential gaps: the mean of their squares is twice the square of their mean (even ones would give 1).
	if m := squares / (n - 1); math.Abs(m-2) > 0.1 {
		t.Errorf("second moment %v, want 2", m)
	}
	if _, _, ok := a.take(); ok {
		t.Error("one beyond the end")
	}
}

func TestArrivalsAtARateWithRepetitions(t *testing.T) {
	a := newArrivals(2, 1, 1)
	a.repeat(7, a.due.Add(-time.Millisecond))
	a.repeat(8, a.due.Add(time.Hour))
	for _, want := range []int{7, 0, 1, 8} {
		if i, _, ok := a.take(); !ok || i != want {
			t.Errorf("got %d (%v), want %d", i, ok, want)
		}
	}
}
