package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"charm.land/lipgloss/v2"
)

// The colours are the terminal's own sixteen, so that they fit whatever theme it has.
var colours = [kinds]color.Color{
	won: lipgloss.Green, already: lipgloss.Yellow, soldOut: lipgloss.BrightBlack, refused: lipgloss.Red, lost: lipgloss.Red, odd: lipgloss.Magenta,
}

func paint(k kind, s string) string { return lipgloss.NewStyle().Foreground(colours[k]).Render(s) }
func faint(s string) string         { return lipgloss.NewStyle().Faint(true).Render(s) }
func bold(s string) string          { return lipgloss.NewStyle().Bold(true).Render(s) }

// view draws the sale as it stands, for a terminal so many columns wide.
func (p progress) view(o *options, width int) string {
	columns := max(40, min(width, 100))
	width = columns - 4
	lines := []string{bold(o.describe()), "", p.bar(width), ""}

	second := p.series.second()
	now := rate(second.Claims.Answered(), second.Elapsed)
	lines = append(lines,
		fmt.Sprintf("%s %s  %s", faint("claims/s"), bold(fmt.Sprintf("%8s", number(int(now)))), paint(won, sparkline(p.series.rates(width-20)))),
		fmt.Sprintf("%s  %s", faint("latency "), latencies(second.Claims)),
		"")

	total := 0
	for _, n := range p.series.total {
		total += n
	}
	for k, n := range p.series.total {
		if k := kind(k); n > 0 || k < lost {
			lines = append(lines, paint(k, fmt.Sprintf("%-19s", k.name()))+fmt.Sprintf("%10s  ", number(n))+paint(k, strings.Repeat("▇", share(n, total, width-31))))
		}
	}
	return lipgloss.NewStyle().Padding(1, 2, 0).MaxWidth(columns).Render(strings.Join(lines, "\n"))
}

// bar is the progress bar.
func (p progress) bar(width int) string {
	text := fmt.Sprintf(" %3d %%  %s of %s  %.1f s", 100*p.settled/p.requests, number(p.settled), number(p.requests), p.series.elapsed.Seconds())
	room := max(0, width-len(text))
	full := room * p.settled / p.requests
	return paint(won, strings.Repeat("█", full)) + faint(strings.Repeat("░", room-full)) + text
}

// share is how much of width n of total is; something is never nothing.
func share(n, total, width int) int {
	if n == 0 || width <= 0 {
		return 0
	}
	return max(1, int(math.Round(float64(n)/float64(total)*float64(width))))
}

// sparkline draws values from 0 to their largest.
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

// line is the sale as it stands in one line, for where there is no terminal.
func (p progress) line() string {
	second := p.series.second()
	t := p.series.total
	return fmt.Sprintf("%6.1f s %4d %%  %7s/s   201 %s   409 %s   400 %s   503 %s   none %s   %s",
		p.series.elapsed.Seconds(), 100*p.settled/p.requests, number(int(rate(second.Claims.Answered(), second.Elapsed))),
		number(t[won]), number(t[already]), number(t[soldOut]), number(t[refused]), number(t[lost]+t[odd]), latencies(second.Claims))
}
