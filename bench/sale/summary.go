package main

import (
	"fmt"
	"strings"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// summary returns the answers of a sale and the result of the check. Apart from the numbers the
// text of a sale that passes is always the same. stopped says why the sale ended early, if it did;
// result is nil if the answers could not be checked.
func summary(o *options, r load.Report, s *series, stopped string, result *check.Result) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }

	b.WriteByte('\n')
	line("%s", bold(o.describe()))
	line("%s", faint(fmt.Sprintf("coupon %s · seed %d", o.coupon, o.seed)))
	b.WriteByte('\n')
	n := countByKind(r.Claims)
	for k := range kinds {
		if k <= unavailable || n[k] > 0 {
			line("%10s  %s%s", formatInt(n[k]), paint(k, k.name()), faint(answersOf(r.Claims, k)))
		}
	}
	line("%10s  claims answered in %.2f s: %s  %s", formatInt(r.Claims.Answered()), r.Elapsed.Seconds(),
		bold(formatInt(int(rate(r.Claims.Answered(), r.Elapsed)))+" per second"), paint(claimed, sparkline(s.rates(24))))
	b.WriteByte('\n')
	line("latency  %s   longest %s", formatLatencies(r.Claims), formatQuantile(r.Claims, 100))
	if stopped != "" {
		line("%s", paint(unavailable, stopped))
	}
	for _, e := range r.Errors {
		line("%s", faint("error: "+e))
	}
	if result == nil {
		return b.String()
	}

	b.WriteByte('\n')
	for _, g := range result.Guarantees {
		if g.Violations == 0 {
			line("%s %s", paint(claimed, "✓"), g.Text)
			continue
		}
		line("%s %s", paint(unavailable, "✗"), g.Text)
		for _, e := range g.Examples {
			line("    %s", e)
		}
		if more := g.Violations - len(g.Examples); more > 0 {
			line("    and %s more", formatInt(more))
		}
	}
	if result.Ambiguous > 0 {
		line("  %s got an ambiguous answer: %s had won, %s had not, %s are unresolved",
			formatCount(result.Ambiguous, "user"), formatInt(result.AmbiguousWon),
			formatInt(result.Ambiguous-result.AmbiguousWon-result.Unresolved), formatInt(result.Unresolved))
	}
	b.WriteByte('\n')
	if result.OK() {
		line("%s", paint(claimed, bold("PASS")))
	} else {
		line("%s", paint(unavailable, bold("FAIL")))
	}
	return b.String()
}

// answersOf lists the answers of a kind, for the kinds that have several.
func answersOf(t load.Tally, k kind) string {
	if k < unavailable {
		return ""
	}
	var all []string
	for _, c := range t.Answers {
		if kindOf(c.Answer) == k {
			name := c.Answer.Code
			if k == unexpected {
				name = c.Answer.String()
			}
			all = append(all, fmt.Sprintf("%s %s", formatInt(c.Times), name))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}
