package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

func thousands(n int) string { return humanize.Comma(int64(n)) }

// report is the whole of the run, for people.
func (r *run) report() string {
	f := r.count.figures()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	verdict := "CLEAN"
	if !r.found.clean() {
		verdict = "NOT CLEAN"
	}
	line("# Proof: %s\n", verdict)
	line("What `make prove DURATION=%s SEED=%d` wrote at the end of a run on %s. Two instances of coupond and their clients, a PostgreSQL %s and",
		r.options.duration, r.options.seed, r.started.UTC().Format(time.DateOnly), r.world.version())
	line("the proxy before it shared one machine of %d CPUs, %s/%s.\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)

	line("| | |\n|---|---:|")
	line("| operations | %s |", thousands(f.total))
	line("| in | %s |", r.took.Round(time.Second))
	line("| acknowledged: answered with how it is | %s |", thousands(f.acknowledged))
	line("| surely not done: UNAVAILABLE, OVERLOADED, nobody reached | %s |", thousands(f.refused))
	line("| unknown: OUTCOME_UNKNOWN, or no answer | %s |", thousands(f.unknown))
	line("| faults | %d |", f.faults)
	line("| histories of small coupons, each explained by an order of the model's answers | %s, of %s operations |", thousands(f.histories), thousands(f.inThem))
	line("| sales of thousands, each without a contradiction | %d |", f.sales)
	line("| coupons held against the tables at the end, with their claims | %s, %s |", thousands(r.checked), thousands(r.claims))
	line("| longest wait for an answer (CLAIM_TIMEOUT is %s) | %s |", claimTimeout, f.longest.Round(time.Millisecond))
	line("")
	line("| what must never be | found |\n|---|---:|")
	for _, one := range r.found.all() {
		line("| %s | %d |", one.what, one.times())
	}
	for _, one := range r.found.all() {
		if len(one.examples) == 0 {
			continue
		}
		line("\nThe first few %s:\n", one.what)
		for _, example := range one.examples {
			line("    %s", strings.ReplaceAll(example, "\n", "\n    "))
		}
	}

	line("\n## Answers\n\n| answer | times |\n|---|---:|")
	for _, c := range f.answers {
		line("| %v | %s |", c.Answer, thousands(c.Times))
	}
	line("\nOf UNAVAILABLE and OVERLOADED %s came while no fault explained them: nothing was done, the client was told so, and the machine was busy.",
		thousands(f.unforced))
	line("%s times a client found an instance away and went to the other; %s times it had been silent for so long that a closing door did not wait.",
		thousands(f.dialled), thousands(f.late))

	line("\n## Faults\n\nDealt by the seed, every third time two at once. The code is in [test/faults](../test/faults/faults.go).\n")
	line("| fault | times | what is done | answers it may bring | why these and no others |\n|---|---:|---|---|---|")
	for _, kind := range allFaults() {
		may := make([]string, len(kind.may))
		for i, a := range kind.may {
			may[i] = a.String()
		}
		allowed := strings.Join(may, ", ")
		if allowed == "" {
			allowed = "none"
		}
		line("| %s | %d | %s | %s | %s |", kind.name, f.byFault[kind.name], kind.does, allowed, kind.because)
	}
	for _, what := range r.leftOut {
		line("\nNOT TRIED: %s", what)
	}
	return b.String()
}
