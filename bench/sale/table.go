package main

import (
	"fmt"
	"strings"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// table is what remains of a sale: its answers, and what became of each promise. Apart from the numbers its text is
// always the same while all goes well. stopped says why the sale did not go on to its end, if so; v is nil when there is
// no verdict.
func table(o *options, r load.Report, seen *series, stopped string, v *check.Result) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }

	b.WriteByte('\n')
	line("%s", bold(o.describe()))
	line("%s", faint(fmt.Sprintf("coupon %s · seed %d", o.coupon, o.seed)))
	b.WriteByte('\n')
	n := byKind(r.Claims)
	for k := range kinds {
		if k <= refused || n[k] > 0 {
			line("%10s  %s%s", number(n[k]), paint(k, k.name()), faint(parts(r.Claims, k)))
		}
	}
	line("%10s  claims answered in %.2f s: %s  %s", number(r.Claims.Answered()), r.Elapsed.Seconds(),
		bold(number(int(rate(r.Claims.Answered(), r.Elapsed)))+" a second"), paint(won, sparkline(seen.rates(24))))
	b.WriteByte('\n')
	line("latency  %s   longest %s", latencies(r.Claims), quantile(r.Claims, 100))
	if stopped != "" {
		line("%s", paint(refused, stopped))
	}
	for _, f := range r.Faults {
		line("%s", faint("fault: "+f))
	}
	if v == nil {
		return b.String()
	}

	b.WriteByte('\n')
	for _, p := range v.Guarantees {
		if p.Violations == 0 {
			line("%s %s", paint(won, "✓"), p.Text)
			continue
		}
		line("%s %s", paint(refused, "✗"), p.Text)
		for _, e := range p.Examples {
			line("    %s", e)
		}
		if more := p.Violations - len(p.Examples); more > 0 {
			line("    and %s more", number(more))
		}
	}
	if v.Ambiguous > 0 {
		line("  %s left without knowing at first: %s had won, %s had not, %s never found out",
			times(v.Ambiguous, "user"), number(v.AmbiguousWon), number(v.Ambiguous-v.AmbiguousWon-v.Unresolved), number(v.Unresolved))
	}
	b.WriteByte('\n')
	if v.OK() {
		line("%s", paint(won, bold("EXACT")))
	} else {
		line("%s", paint(refused, bold("NOT EXACT")))
	}
	return b.String()
}

// parts tells apart what a kind is made of, where it may be more than one answer.
func parts(t load.Tally, k kind) string {
	if k < refused {
		return ""
	}
	var all []string
	for _, c := range t.Answers {
		if kindOf(c.Answer) == k {
			name := c.Answer.Code
			if k == odd {
				name = c.Answer.String()
			}
			all = append(all, fmt.Sprintf("%s %s", number(c.Times), name))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}
