package main

import (
	"fmt"
	"slices"
	"sync"
)

// violation is one kind of violation: how often it was found, with the first few examples.
type violation struct {
	what     string
	mu       sync.Mutex
	found    int
	examples []string
}

// violations are all kinds.
type violations struct {
	lost, duplicate, oversold *violation
	unrequested               *violation // stored, although every answer says that it is not
	contradiction             *violation // between answers, or between tables
	notLinearizable           *violation
	undecided                 *violation // histories that porcupine could not decide in time
	notAllowed                *violation // answers that no active fault may cause
	slow                      *violation // clients that a fault of other clients slowed down too much
	memory                    *violation // an instance that used more than procmem.Limit
	notRecovered              *violation // the service did not recover from a fault, or the test itself failed
}

func newViolations() *violations {
	return &violations{
		lost:            &violation{what: "lost: confirmed to a client, but not stored"},
		duplicate:       &violation{what: "duplicate: a user has a coupon twice, or was granted it twice"},
		oversold:        &violation{what: "oversold: more claims than the amount"},
		unrequested:     &violation{what: "stored without a request, or although it was answered as not executed"},
		contradiction:   &violation{what: "answers or tables that contradict each other"},
		notLinearizable: &violation{what: "histories that are not linearizable"},
		undecided:       &violation{what: "histories that could not be decided in time"},
		notAllowed:      &violation{what: "answers that no active fault may cause"},
		slow:            &violation{what: "other clients slowed down more than a fault may do"},
		memory:          &violation{what: "instances that used more memory than they may"},
		notRecovered:    &violation{what: "failures to recover, or of the test itself"},
	}
}

func (v *violations) all() []*violation {
	return []*violation{
		v.lost, v.duplicate, v.oversold, v.unrequested, v.contradiction, v.notLinearizable, v.undecided, v.notAllowed, v.slow,
		v.memory, v.notRecovered,
	}
}

// none reports whether no violation was found.
func (v *violations) none() bool {
	return !slices.ContainsFunc(v.all(), func(one *violation) bool { return one.count() > 0 })
}

const maxExamples = 5 // of each kind

func (v *violation) add(format string, args ...any) { v.addN(1, format, args...) }

// addN adds n violations with one example; n may be 0.
func (v *violation) addN(n int, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.found += n
	if n > 0 && len(v.examples) < maxExamples {
		v.examples = append(v.examples, fmt.Sprintf(format, args...))
	}
}

func (v *violation) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.found
}
