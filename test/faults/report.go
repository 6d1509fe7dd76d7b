package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/internal/procmem"
)

func thousands(n int) string { return humanize.Comma(int64(n)) }

// report returns the report of a run, in Markdown.
func (t *faultTest) report() string {
	f := t.count.figures()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	summary := "no violations"
	if !t.violations.none() {
		summary = "VIOLATIONS"
	}
	line("# Fault test: %s\n", summary)
	line("Written by `make faults DURATION=%s SEED=%d` on %s. Two instances of coupond, their clients, PostgreSQL %s and the proxy in",
		t.options.duration, t.options.seed, t.started.UTC().Format(time.DateOnly), t.env.postgresVersion())
	line("front of it shared one machine with %d CPUs, %s/%s.\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)

	line("| | |\n|---|---:|")
	line("| operations | %s |", thousands(f.total))
	line("| time | %s |", t.took.Round(time.Second))
	line("| conclusive answers | %s |", thousands(f.conclusive))
	line("| not executed: UNAVAILABLE, OVERLOADED, or no instance to connect to | %s |", thousands(f.notExecuted))
	line("| unknown: OUTCOME_UNKNOWN, or no answer | %s |", thousands(f.unknown))
	line("| faults | %d |", f.faults)
	line("| histories of small coupons checked for linearizability | %s, with %s operations |", thousands(f.histories), thousands(f.inHistories))
	line("| sales with thousands of users, answers checked against each other | %d |", f.sales)
	line("| coupons compared with the tables at the end, and their claims | %s, %s |", thousands(t.checked), thousands(t.claims))
	line("| longest wait for an answer (CLAIM_TIMEOUT is %s) | %s |", claimTimeout, f.longest.Round(time.Millisecond))
	line("| most memory of an instance, with its send buffers (the limit is %d MiB) | %d MiB |", procmem.Limit>>20, f.largest>>20)
	line("")
	line("| violation | found |\n|---|---:|")
	for _, v := range t.violations.all() {
		line("| %s | %d |", v.what, v.count())
	}
	for _, v := range t.violations.all() {
		if len(v.examples) == 0 {
			continue
		}
		line("\nThe first examples of %s:\n", v.what)
		for _, example := range v.examples {
			line("    %s", strings.ReplaceAll(example, "\n", "\n    "))
		}
	}

	line("\n## Answers\n\n| answer | times |\n|---|---:|")
	for _, c := range f.answers {
		line("| %v | %s |", c.Answer, thousands(c.Times))
	}
	line("\n%s answers UNAVAILABLE or OVERLOADED came without an active fault that explains them: nothing was executed, the client knew it, and the machine was busy.",
		thousands(f.unexplained))
	line("%s times a client could not connect to an instance and used the other one; %s times a shutdown closed a connection that was idle for too long.",
		thousands(f.dialFailed), thousands(f.late))

	line("\n## Faults\n\nThe seed determines the faults and their order; every third time there are two at once. The code is in\n[test/faults](../test/faults/faults.go).\n")
	line("| fault | times | action | answers it may cause | reason |\n|---|---:|---|---|---|")
	for _, kind := range allFaults() {
		names := make([]string, len(kind.allowed))
		for i, a := range kind.allowed {
			names[i] = a.String()
		}
		allowed := strings.Join(names, ", ")
		if allowed == "" {
			allowed = "none"
		}
		line("| %s | %d | %s | %s | %s |", kind.name, f.byFault[kind.name], kind.action, allowed, kind.reason)
	}
	if len(f.comparisons) > 0 {
		line("\n## Claims of other clients\n\n%d clients claim coupons of their own, one claim after another, before and during the faults of other clients.\n", bystanders)
		line("| fault | claims a second before | during | a claim took | at most |\n|---|---:|---:|---:|---:|")
		for _, c := range f.comparisons {
			line("| %s | %.0f | %.0f | %.1f × | %.0f × |", c.fault.name, c.before, c.during, c.slowdown(), c.fault.slowdown)
		}
	}
	for _, what := range t.leftOut {
		line("\nNOT TESTED: %s", what)
	}
	return b.String()
}
