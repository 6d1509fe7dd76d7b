package main

import (
	"slices"
	"strings"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
)

// weather knows which faults there were when, and so which answers are excused. A request belongs to a fault when any moment
// between its sending and its answer does.
type weather struct {
	mu      sync.Mutex
	windows []*window
}

// window is the time of one fault, or of several at once.
type window struct {
	faults     []*fault
	begin, end time.Time // end is zero as long as it lasts
}

// aftermath is how long a fault is felt after all instances are healthy again: connections that it has broken and that nobody
// has used since are found out one by one (pgx looks at those that rested for a second).
const aftermath = 1500 * time.Millisecond

// begin opens a window.
func (w *weather) begin(faults []*fault) *window {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := &window{faults: faults, begin: time.Now()}
	w.windows = append(w.windows, one)
	return one
}

// end closes it.
func (w *weather) end(one *window) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one.end = time.Now().Add(aftermath)
}

// excuses says whether a fault of that time may bring the answer.
func (w *weather) excuses(a load.Answer, sent, answered time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range slices.Backward(w.windows) {
		if !one.end.IsZero() && one.end.Before(sent) {
			return false // and so are all before it
		}
		if one.begin.After(answered) {
			continue
		}
		if slices.ContainsFunc(one.faults, func(f *fault) bool { return slices.Contains(f.may, a) }) {
			return true
		}
	}
	return false
}

// now names the faults that are under way.
func (w *weather) now() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.windows) == 0 {
		return ""
	}
	last := w.windows[len(w.windows)-1]
	if !last.end.IsZero() {
		return ""
	}
	return names(last.faults)
}

func names(faults []*fault) string {
	all := make([]string, len(faults))
	for i, f := range faults {
		all[i] = f.name
	}
	return strings.Join(all, " + ")
}
