package main

import (
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// summary returns the answers of a sale and the result of the check. Apart from the numbers the
// text of a sale that passes is always the same. stopped says why the sale ended early, if it did;
// result is nil if the answers could not be checked.
func (s *sale) summary(stopped error, result *check.Result) string {
	var b strings.Builder
	all := s.series.all
	line := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }

	b.WriteByte('\n')
	line("%s", bold(s.options.describe()))
	line("%s", faint("coupon "+s.coupon))
	b.WriteByte('\n')
	for _, r := range rows(all.Answers) {
		line("%10s  %s", comma(all.Answers[r.answer]), paint(r.colour, r.name))
	}
	line("%10s  claims answered in %.2f s: %s  %s", comma(all.Answered()), all.Elapsed.Seconds(),
		bold(comma(int(rate(all)))+" per second"), paint(green, sparkline(s.series.rates(20))))
	b.WriteByte('\n')
	line("latency  %s   longest %s", formatLatencies(all), formatQuantile(all, 100))
	if stopped != nil {
		line("%s", paint(red, "stopped: "+stopped.Error()))
	}
	for _, e := range all.Errors {
		line("%s", faint("error: "+e))
	}
	if result == nil {
		return b.String()
	}

	b.WriteByte('\n')
	for _, g := range result.Guarantees() {
		if g.Violations == 0 {
			line("%s %s", paint(green, "✓"), g.Text)
			continue
		}
		line("%s %s", paint(red, "✗"), g.Text)
		for _, e := range g.Examples {
			line("    %s", e)
		}
		if more := g.Violations - len(g.Examples); more > 0 {
			line("    and %s more", comma(more))
		}
	}
	if result.Ambiguous > 0 {
		line("  %s got an ambiguous answer: %s had won, %s had not, %s are unresolved",
			formatCount(result.Ambiguous, "user"), comma(result.AmbiguousWon),
			comma(result.Ambiguous-result.AmbiguousWon-result.Unresolved), comma(result.Unresolved))
	}
	b.WriteByte('\n')
	if result.OK() {
		line("%s", paint(green, bold("PASS")))
	} else {
		line("%s", paint(red, bold("FAIL")))
	}
	return b.String()
}

func paint(colour, s string) string {
	return lipgloss.NewStyle().Foreground(lipgloss.Color(colour)).Render(s)
}

func faint(s string) string { return lipgloss.NewStyle().Faint(true).Render(s) }

func bold(s string) string { return lipgloss.NewStyle().Bold(true).Render(s) }

// comma returns "50,000".
func comma(n int) string { return humanize.Comma(int64(n)) }

// formatCount returns "1 user", "2,000 users".
func formatCount(n int, noun string) string { return comma(n) + " " + english.PluralWord(n, noun, "") }

// formatLatencies returns the usual quantiles.
func formatLatencies(r load.Report) string {
	return fmt.Sprintf("p50 %s   p99 %s   p99.9 %s", formatQuantile(r, 50), formatQuantile(r, 99), formatQuantile(r, 99.9))
}

func formatQuantile(r load.Report, percent float64) string {
	if d := r.Quantile(percent); d > 0 {
		return humanize.SIWithDigits(float64(d)/float64(time.Second), 2, "s")
	}
	return "–"
}
