package main

import (
	"fmt"
	"slices"
	"sync"
)

// finding is something that must never be: how often it was, and the first few times.
type finding struct {
	what     string
	mu       sync.Mutex
	count    int
	examples []string
}

// findings are all that must never be.
type findings struct {
	lost, doubled, oversold *finding
	stray                   *finding // stored, and nobody was told
	contradicted            *finding // answers against each other, or the tables against themselves
	illegal, undecided      *finding // histories
	unexplained             *finding // answers that no fault may bring
	broken                  *finding // the service, or the proof itself, did not come back
}

func newFindings() *findings {
	return &findings{
		lost:         &finding{what: "lost: told that it is there, and not in the tables"},
		doubled:      &finding{what: "doubled: a user who has, or was granted, a coupon twice"},
		oversold:     &finding{what: "oversold: more claims than the amount"},
		stray:        &finding{what: "stored, though surely nothing was done or nobody asked"},
		contradicted: &finding{what: "answers or tables that contradict each other"},
		illegal:      &finding{what: "histories that no order explains"},
		undecided:    &finding{what: "histories that could not be decided"},
		unexplained:  &finding{what: "answers that no fault of that moment may bring"},
		broken:       &finding{what: "failures to come back, or of the proof itself"},
	}
}

func (f *findings) all() []*finding {
	return []*finding{f.lost, f.doubled, f.oversold, f.stray, f.contradicted, f.illegal, f.undecided, f.unexplained, f.broken}
}

// clean says whether there is none.
func (f *findings) clean() bool {
	return !slices.ContainsFunc(f.all(), func(one *finding) bool { return one.times() > 0 })
}

const maxExamples = 5

func (f *finding) note(format string, args ...any) { f.noteTimes(1, format, args...) }

// noteTimes notes something that was found n times, none perhaps.
func (f *finding) noteTimes(n int, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count += n
	if n > 0 && len(f.examples) < maxExamples {
		f.examples = append(f.examples, fmt.Sprintf(format, args...))
	}
}

func (f *finding) times() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}
