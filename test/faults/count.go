package main

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
)

// counters count what goes on.
type counters struct {
	mu         sync.Mutex
	answers    map[load.Answer]int
	dialled    int // in vain: the instance was away, and the next one was asked
	late       int // cut because a client was silent for longer than a closing door waits
	unforced   int // surely-not answers that no fault explains: a slow machine's
	histories  int
	operations int // in these
	sales      int
	faults     map[string]int
	longest    time.Duration // that anybody waited for an answer
}

func newCounters() *counters {
	return &counters{answers: map[load.Answer]int{}, faults: map[string]int{}}
}

func (c *counters) refused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialled++
}

func (c *counters) history(operations int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.histories++
	c.operations += operations
}

func (c *counters) sale() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sales++
}

func (c *counters) fault(f *fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[f.name]++
}

// figures are the counters at one moment.
type figures struct {
	answers                                    []load.Count // the most frequent first
	total, acknowledged, refused, unknown      int
	dialled, late, unforced, histories, inThem int
	sales, faults                              int
	byFault                                    map[string]int
	longest                                    time.Duration
}

func (c *counters) figures() figures {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := figures{
		dialled: c.dialled, late: c.late, unforced: c.unforced, histories: c.histories, inThem: c.operations, sales: c.sales,
		byFault: make(map[string]int, len(c.faults)), longest: c.longest,
	}
	for a, n := range c.answers {
		f.answers = append(f.answers, load.Count{Answer: a, Times: n})
		f.total += n
		switch {
		case isClear(a):
			f.acknowledged += n
		case isSurelyNot(a):
			f.refused += n
		default:
			f.unknown += n
		}
	}
	slices.SortFunc(f.answers, func(a, b load.Count) int {
		return cmp.Or(cmp.Compare(b.Times, a.Times), cmp.Compare(a.Answer.String(), b.Answer.String()))
	})
	for name, n := range c.faults {
		f.byFault[name] = n
		f.faults += n
	}
	return f
}

// reason is an error for the end of a sentence.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// answered counts an answer, and holds it against the weather. late: the client was silent for so long before that it may have
// found the door closed.
func (r *run) answered(a load.Answer, response load.Response, err error, late bool) {
	unforced := false
	switch {
	case isClear(a) && isOfContract(a), late:
	case r.weather.excuses(a, response.Sent, response.Answered):
	case a == load.Unavailable || a == load.Overloaded:
		// Nothing was done, and the client was told so: on a machine that is busy with other things a statement may take its
		// time-out by itself. It is counted and shown, and breaks no promise.
		unforced = true
	default:
		r.found.unexplained.note("%v at %v (sent %v before)%s", a, response.Answered.Sub(r.began).Round(time.Millisecond),
			response.Answered.Sub(response.Sent).Round(time.Millisecond), reason(err))
	}
	c := r.count
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[a]++
	c.longest = max(c.longest, response.Answered.Sub(response.Sent))
	if late {
		c.late++
	}
	if unforced {
		c.unforced++
	}
}
