package main

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
)

// counters count what happens in a run.
type counters struct {
	mu          sync.Mutex
	answers     map[load.Answer]int
	dialFailed  int // connections refused, after which a client used the next instance
	late        int // connections closed by a shutdown because the client was idle for too long
	unexplained int // answers UNAVAILABLE and OVERLOADED without an active fault that allows them: a busy machine's
	histories   int
	operations  int // in these
	sales       int
	faults      map[string]int
	longest     time.Duration // that a client waited for an answer
	largest     int64         // memory of an instance, in bytes
	comparisons []comparison
}

func newCounters() *counters {
	return &counters{answers: map[load.Answer]int{}, faults: map[string]int{}}
}

func (c *counters) refused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dialFailed++
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

func (c *counters) memory(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.largest = max(c.largest, bytes)
}

func (c *counters) compared(one comparison) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.comparisons = append(c.comparisons, one)
}

// figures are the counters at one moment.
type figures struct {
	answers                                               []load.Count // the most frequent first
	total, conclusive, notExecuted, unknown               int
	dialFailed, late, unexplained, histories, inHistories int
	sales, faults                                         int
	byFault                                               map[string]int
	longest                                               time.Duration
	largest                                               int64
	comparisons                                           []comparison
}

func (c *counters) figures() figures {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := figures{
		dialFailed: c.dialFailed, late: c.late, unexplained: c.unexplained, histories: c.histories, inHistories: c.operations,
		sales: c.sales, byFault: make(map[string]int, len(c.faults)), longest: c.longest,
		largest: c.largest, comparisons: slices.Clone(c.comparisons),
	}
	for a, n := range c.answers {
		f.answers = append(f.answers, load.Count{Answer: a, Times: n})
		f.total += n
		switch {
		case isConclusive(a):
			f.conclusive += n
		case isNotExecuted(a):
			f.notExecuted += n
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

// addAnswer counts an answer and checks that it was allowed when it came. late says that the client
// was idle for so long before that a shutdown may have closed its connection.
func (t *faultTest) addAnswer(a load.Answer, response load.Response, err error, late bool) {
	unexplained := false
	switch {
	case isConclusive(a) && isExpected(a), late:
	case t.outages.allow(a, response.Sent, response.Answered):
	case a == load.Unavailable || a == load.Overloaded:
		// Nothing was executed, and the client knows it: on a busy machine a statement may time out
		// without a fault. It is counted and reported, but not a violation.
		unexplained = true
	default:
		cause := ""
		if err != nil {
			cause = ": " + err.Error()
		}
		t.violations.notAllowed.add("%v at %v (sent %v before)%s", a, response.Answered.Sub(t.began).Round(time.Millisecond),
			response.Answered.Sub(response.Sent).Round(time.Millisecond), cause)
	}
	c := t.count
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[a]++
	c.longest = max(c.longest, response.Answered.Sub(response.Sent))
	if late {
		c.late++
	}
	if unexplained {
		c.unexplained++
	}
}
