package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/check"
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

// Counts of the summary.
const (
	allAnswers       = "answers"
	ambiguousAnswers = "answers that are ambiguous"
)

// count adds n to a count of the report.
func (t *faultTest) count(what string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what] += n
}

// violated adds a violation to the report.
func (t *faultTest) violated(kind check.Kind, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.violations[kind] = append(t.violations[kind], fmt.Sprintf(format, args...))
}

// summary describes the results so far in a line.
func (t *faultTest) summary() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	violations := 0
	for _, examples := range t.violations {
		violations += len(examples)
	}
	return fmt.Sprintf("%s answers, %s of them ambiguous; %s violations",
		comma(t.counts[allAnswers]), comma(t.counts[ambiguousAnswers]), comma(violations))
}

func comma(n int) string { return humanize.Comma(int64(n)) }

// report returns the report of a run, in Markdown. The run is over.
func (t *faultTest) report() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	heading := "no violations"
	if len(t.violations) > 0 {
		heading = "VIOLATIONS"
	}
	line("# Fault test: %s\n", heading)
	line("`make faults DURATION=%s SEED=%d` on %s, PostgreSQL %s, %d CPUs for everything: %s in %s.\n", t.options.Duration, t.options.Seed,
		t.began.UTC().Format(time.DateOnly), t.env.version, runtime.NumCPU(), t.summary(), time.Since(t.began).Round(time.Second))
	for _, kind := range slices.Sorted(maps.Keys(t.violations)) {
		examples := t.violations[kind]
		line("## %d × %s\n", len(examples), kind)
		for _, example := range examples[:min(len(examples), 5)] {
			line("    %s", strings.ReplaceAll(example, "\n", "\n    "))
		}
		line("")
	}
	line("| | |\n|---|---:|")
	for _, what := range slices.Sorted(maps.Keys(t.counts)) {
		line("| %s | %s |", what, comma(t.counts[what]))
	}
	line("| longest wait for an answer (CLAIM_TIMEOUT is %s) | %s |", claimTimeout, t.longest.Round(time.Millisecond))
	line("| most memory of an instance, with its send buffers (the limit is %d MiB) | %d MiB |\n", procmem.Limit>>20, t.memory>>20)
	for _, comparison := range t.comparisons {
		line("- %s", comparison)
	}
	if t.env.noWALDisk != "" {
		line("\nNOT TESTED: %s (%s)", walDiskFull, t.env.noWALDisk)
	}
	return b.String()
}
