package main

import (
	"slices"
	"strings"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
)

// outages records when which faults were active, and so which answers were allowed when. A fault
// applies to a request if it was active at any time between the sending of the request and its
// answer.
type outages struct {
	mu      sync.Mutex
	windows []*outage
}

// outage is the time window of one fault, or of two that were injected together.
type outage struct {
	faults     []*fault
	begin, end time.Time // end is zero while a fault is active
}

// aftermath is how long a fault has an effect after all instances are healthy again: a pooled
// connection that it broke is noticed when the connection is used next (pgx checks only those that
// were idle for a second).
const aftermath = 1500 * time.Millisecond

// start opens a window.
func (o *outages) start(faults []*fault) *outage {
	o.mu.Lock()
	defer o.mu.Unlock()
	window := &outage{faults: faults, begin: time.Now()}
	o.windows = append(o.windows, window)
	return window
}

// finish closes a window, after the aftermath.
func (o *outages) finish(window *outage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	window.end = time.Now().Add(aftermath)
}

// allow reports whether a fault that applies to the request may cause the answer.
func (o *outages) allow(a load.Answer, sent, answered time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, window := range slices.Backward(o.windows) {
		if !window.end.IsZero() && window.end.Before(sent) {
			return false // all earlier windows ended before it, too
		}
		if window.begin.After(answered) {
			continue
		}
		if slices.ContainsFunc(window.faults, func(f *fault) bool { return slices.Contains(f.allowed, a) }) {
			return true
		}
	}
	return false
}

// current returns the names of the faults that are active now, or "".
func (o *outages) current() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.windows) == 0 {
		return ""
	}
	last := o.windows[len(o.windows)-1]
	if !last.end.IsZero() {
		return ""
	}
	return names(last.faults)
}

// names joins the names of faults.
func names(faults []*fault) string {
	all := make([]string, len(faults))
	for i, f := range faults {
		all[i] = f.name
	}
	return strings.Join(all, " + ")
}
