package load

import (
	"math"
	"slices"
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
	gaps := func(seed uint64) (seconds []float64) {
		a := newArrivals(n+1, rate, seed)
		first, _ := a.take()
		for previous := first.due; ; {
			next, ok := a.take()
			if !ok {
				return seconds
			}
			seconds, previous = append(seconds, next.due.Sub(previous).Seconds()), next.due
		}
	}
	got := gaps(1)
	var sum, squares float64
	for _, gap := range got {
		sum, squares = sum+gap, squares+gap*gap
	}
	if len(got) != n || slices.Min(got) < 0 || math.Abs(sum*rate/n-1) > 0.02 {
		t.Errorf("%d gaps of %v s on average, want %d of %v s", len(got), sum/n, n, 1./rate)
	}
	// Of exponential gaps the mean square is twice the square of the mean; of equal gaps it is
	// once.
	if m := squares * n / (sum * sum); math.Abs(m-2) > 0.1 {
		t.Errorf("mean square of the gaps is %v times the square of the mean, want 2", m)
	}
	if !slices.Equal(got, gaps(1)) || slices.Equal(got, gaps(2)) {
		t.Error("the gaps do not depend on the seed alone")
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
