package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"charm.land/lipgloss/v2"
)

// colours are from the terminal's own sixteen, so that they fit its theme.
var colours = [kinds]color.Color{
	claimed: lipgloss.Green, alreadyClaimed: lipgloss.Yellow, outOfStock: lipgloss.BrightBlack,
	unavailable: lipgloss.Red, noAnswer: lipgloss.Red, unexpected: lipgloss.Magenta,
}

func paint(k kind, s string) string { return lipgloss.NewStyle().Foreground(colours[k]).Render(s) }
func faint(s string) string         { return lipgloss.NewStyle().Faint(true).Render(s) }
func bold(s string) string          { return lipgloss.NewStyle().Bold(true).Render(s) }

// view returns the progress for a terminal of this width in columns.
func (p progress) view(o *options, width int) string {
	columns := max(40, min(width, 100))
	width = columns - 4
	lines := []string{bold(o.describe()), "", p.bar(width), ""}

	second := p.series.lastSecond()
	now := rate(second.Claims.Answered(), second.Elapsed)
	lines = append(lines,
		fmt.Sprintf("%s %s  %s", faint("claims/s"), bold(fmt.Sprintf("%8s", formatInt(int(now)))), paint(claimed, sparkline(p.series.rates(width-20)))),
		fmt.Sprintf("%s  %s", faint("latency "), formatLatencies(second.Claims)),
		"")

	total := 0
	for _, n := range p.series.total {
		total += n
	}
	for k, n := range p.series.total {
		if k := kind(k); n > 0 || k < noAnswer {
			lines = append(lines, paint(k, fmt.Sprintf("%-19s", k.name()))+fmt.Sprintf("%10s  ", formatInt(n))+
				paint(k, strings.Repeat("▇", share(n, total, width-31))))
		}
	}
	return lipgloss.NewStyle().Padding(1, 2, 0).MaxWidth(columns).Render(strings.Join(lines, "\n"))
}

// bar returns the progress bar.
func (p progress) bar(width int) string {
	text := fmt.Sprintf(" %3d %%  %s of %s  %.1f s", 100*p.finished/p.requests, formatInt(p.finished), formatInt(p.requests), p.series.elapsed.Seconds())
	room := max(0, width-len(text))
	full := room * p.finished / p.requests
	return paint(claimed, strings.Repeat("█", full)) + faint(strings.Repeat("░", room-full)) + text
}

// share returns the part of width that n is of total, at least 1 if n is not 0.
func share(n, total, width int) int {
	if n == 0 || width <= 0 {
		return 0
	}
	return max(1, int(math.Round(float64(n)/float64(total)*float64(width))))
}

// sparkline draws values on a scale from 0 to the largest one.
func sparkline(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	const steps = "▁▂▃▄▅▆▇█"
	highest := slices.Max(values)
	var b strings.Builder
	for _, v := range values {
		i := 0
		if highest > 0 {
			i = int(math.Round(v / highest * 7))
		}
		b.WriteRune([]rune(steps)[i])
	}
	return b.String()
}

// line returns the progress in one line, for output that is not a terminal.
func (p progress) line() string {
	second := p.series.lastSecond()
	t := p.series.total
	return fmt.Sprintf("%6.1f s %4d %%  %7s/s   201 %s   409 %s   400 %s   503 %s   none %s   %s",
		p.series.elapsed.Seconds(), 100*p.finished/p.requests, formatInt(int(rate(second.Claims.Answered(), second.Elapsed))),
		formatInt(t[claimed]), formatInt(t[alreadyClaimed]), formatInt(t[outOfStock]), formatInt(t[unavailable]),
		formatInt(t[noAnswer]+t[unexpected]), formatLatencies(second.Claims))
}
