package main

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/procmem"
)

// The kinds of violations besides those of bench/check.
const (
	notLinearizable check.Kind = "a history that is not linearizable, or could not be decided in time"
	notAllowed      check.Kind = "an answer that no active fault may cause"
	tooSlow         check.Kind = "clients that a fault of other clients slowed down too much"
	tooLarge        check.Kind = "an instance that used more memory than it may"
	notRecovered    check.Kind = "a failure to recover from a fault, or of the test itself"
)

// results are what happens in a run.
type results struct {
	mu          sync.Mutex
	counts      map[string]int // by what they count
	answers     map[load.Answer]int
	faults      map[string]int // by name
	longest     time.Duration  // wait for an answer
	memory      int64          // the largest of an instance, in bytes
	comparisons []comparison
	violations  []check.Violation
}

func newResults() *results {
	return &results{counts: map[string]int{}, answers: map[load.Answer]int{}, faults: map[string]int{}}
}

func (r *results) count(what string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what] += n
}

func (r *results) violated(kind check.Kind, format string, args ...any) {
	r.addViolation(check.Violation{Kind: kind, Count: 1, Examples: []string{fmt.Sprintf(format, args...)}})
}

func (r *results) addViolation(v check.Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.violations, func(other check.Violation) bool { return other.Kind == v.Kind })
	if i < 0 {
		r.violations = append(r.violations, v)
		return
	}
	const maxExamples = 5
	r.violations[i].Count += v.Count
	r.violations[i].Examples = append(r.violations[i].Examples, v.Examples...)
	r.violations[i].Examples = r.violations[i].Examples[:min(maxExamples, len(r.violations[i].Examples))]
}

// add adds what bench/check found. Clients give up during faults, so it does not matter which
// users have no definite answer, nor how many users won.
func (r *results) add(found check.Result) {
	for _, v := range found.Violations {
		if v.Kind != check.WrongCount && v.Kind != check.Undecided {
			r.addViolation(v)
		}
	}
}

func (r *results) clean() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.violations) == 0
}

// summary describes the results so far in a line.
func (r *results) summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var definite, notExecuted, ambiguous, faults, violations int
	for answer, n := range r.answers {
		switch {
		case answer.Definite():
			definite += n
		case answer.NotExecuted():
			notExecuted += n
		default:
			ambiguous += n
		}
	}
	for _, n := range r.faults {
		faults += n
	}
	for _, v := range r.violations {
		violations += v.Count
	}
	return fmt.Sprintf("%s answers (definite %s, not executed %s, ambiguous %s), %d faults, %d violations",
		comma(definite+notExecuted+ambiguous), comma(definite), comma(notExecuted), comma(ambiguous), faults, violations)
}

func comma(n int) string { return humanize.Comma(int64(n)) }

// report returns the report of a run, in Markdown.
func (t *faultTest) report() string {
	summary := t.results.summary()
	r := t.results
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	heading := "no violations"
	if len(r.violations) > 0 {
		heading = "VIOLATIONS"
	}
	line("# Fault test: %s\n", heading)
	line("`make faults DURATION=%s SEED=%d` on %s: two instances of coupond, their clients, PostgreSQL %s and the proxy in front of it",
		t.options.Duration, t.options.Seed, t.began.UTC().Format(time.DateOnly), t.env.version)
	line("on one machine with %d CPUs.\n\n%s in %s.\n", runtime.NumCPU(), summary, t.took.Round(time.Second))
	for _, v := range r.violations {
		line("## %d × %s\n", v.Count, v.Kind)
		for _, example := range v.Examples {
			line("    %s", strings.ReplaceAll(example, "\n", "\n    "))
		}
		line("")
	}

	line("| | |\n|---|---:|")
	for _, what := range slices.Sorted(maps.Keys(r.counts)) {
		line("| %s | %s |", what, comma(r.counts[what]))
	}
	line("| longest wait for an answer (CLAIM_TIMEOUT is %s) | %s |", claimTimeout, r.longest.Round(time.Millisecond))
	line("| most memory of an instance, with its send buffers (the limit is %d MiB) | %d MiB |", procmem.Limit>>20, r.memory>>20)

	line("\n| answer | times |\n|---|---:|")
	var answers []load.Count
	for answer, n := range r.answers {
		answers = append(answers, load.Count{Answer: answer, Times: n})
	}
	slices.SortFunc(answers, func(a, b load.Count) int {
		return cmp.Or(cmp.Compare(b.Times, a.Times), cmp.Compare(a.Answer.String(), b.Answer.String()))
	})
	for _, c := range answers {
		line("| %v | %s |", c.Answer, comma(c.Times))
	}

	line("\n| fault | times | answers that it may cause |\n|---|---:|---|")
	for _, f := range allFaults() {
		allowed := make([]string, len(f.allowed))
		for i, answer := range f.allowed {
			allowed[i] = answer.String()
		}
		line("| %s | %d | %s |", f.name, r.faults[f.name], strings.Join(allowed, ", "))
	}
	if len(r.comparisons) > 0 {
		line("\n| fault | claims of others per second before | during | a claim took | at most |\n|---|---:|---:|---:|---:|")
		for _, c := range r.comparisons {
			line("| %s | %.0f | %.0f | %.1f × | %.0f × |", c.fault.name, c.before, c.during, c.slowdown(), c.fault.slowdown)
		}
	}
	if t.env.noWALDisk != "" {
		line("\nNOT TESTED: %s (%s)", walDiskFull, t.env.noWALDisk)
	}
	return b.String()
}
