package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"
)

// The smallest terminal that is redrawn, in characters.
const minColumns, minRows = 40, 18

// terminalWidth returns the number of columns of a terminal that can be redrawn, or 0 if out is
// none. CI systems give their jobs a terminal but keep every frame in their log.
func terminalWidth(out io.Writer) int {
	file, ok := out.(*os.File)
	if ci := os.Getenv("CI"); !ok || ci != "" && ci != "false" || os.Getenv("TERM") == "dumb" {
		return 0
	}
	columns, rows, err := term.GetSize(int(file.Fd()))
	if err != nil || columns < minColumns || rows < minRows {
		return 0
	}
	return columns
}

// showProgress shows the progress until the sale is over: it redraws a terminal of this width in
// columns, or prints a line per second if width returns 0. ctx is that of the sale.
func (s *sale) showProgress(ctx context.Context, out io.Writer, width func() int) {
	erase, nextLine := "", time.Second
	for over := false; !over; {
		select {
		case <-s.run.Done():
			over = true
		case <-time.After(tick):
		}
		s.series.add(s.run.Take())
		columns, elapsed := width(), s.series.all.Elapsed
		switch {
		case columns > 0 && !over:
			frame := s.view(columns) + "\n"
			if ctx.Err() != nil {
				frame += "\n  " + faint("waiting for the last answers; press Ctrl-C to leave at once") + "\n"
			}
			_, _ = fmt.Fprint(out, erase+strings.ReplaceAll(frame, "\n", ansi.EraseLineRight+"\n")+ansi.EraseScreenBelow)
			erase = "\r" + ansi.CursorUp(strings.Count(frame, "\n"))
		case columns > 0: // the summary follows
			_, _ = fmt.Fprint(out, erase+ansi.EraseScreenBelow)
		case over || elapsed >= nextLine:
			_, _ = fmt.Fprintln(out, s.line())
			nextLine = elapsed.Truncate(time.Second) + time.Second
		}
	}
}

// line returns the progress in one line.
func (s *sale) line() string {
	second, all := s.series.lastSecond(), s.series.all
	return fmt.Sprintf("%6.1f s %4d %%  %7s/s   %s   %v", all.Elapsed.Seconds(),
		100*s.finished.Load()/int64(len(s.order)), comma(int(rate(second))), formatLatencies(second), all.Answers)
}

// view returns the progress for a terminal of this width in columns, at least minColumns.
func (s *sale) view(columns int) string {
	columns = min(columns, 100)
	width := columns - 4
	second, all, requests := s.series.lastSecond(), s.series.all, len(s.order)
	finished := int(s.finished.Load())
	text := fmt.Sprintf(" %3d %%  %s of %s  %.1f s", 100*finished/requests, comma(finished), comma(requests), all.Elapsed.Seconds())
	room := max(0, width-len(text))
	lines := []string{
		bold(s.options.describe()), "",
		paint(green, strings.Repeat("█", room*finished/requests)) + faint(strings.Repeat("░", room-room*finished/requests)) + text, "",
		fmt.Sprintf("%s %s  %s", faint("claims/s"), bold(fmt.Sprintf("%8s", comma(int(rate(second))))), paint(green, sparkline(s.series.rates(width-20)))),
		fmt.Sprintf("%s  %s", faint("latency "), formatLatencies(second)), "",
	}
	for _, r := range rows(all.Answers) {
		n := all.Answers[r.answer]
		bar := math.Ceil(float64(n) / float64(max(1, all.Total())) * float64(max(0, width-33)))
		lines = append(lines, paint(r.colour, fmt.Sprintf("%-21s", r.name))+fmt.Sprintf("%10s  ", comma(n))+paint(r.colour, strings.Repeat("▇", int(bar))))
	}
	return lipgloss.NewStyle().Padding(1, 2, 0).MaxWidth(columns).Render(strings.Join(lines, "\n"))
}

// sparkline draws values on a scale from 0 to the largest one.
func sparkline(values []float64) string {
	steps, highest, line := []rune("▁▂▃▄▅▆▇█"), slices.Max(append([]float64{1e-9}, values...)), ""
	for _, v := range values {
		line += string(steps[int(math.Round(v/highest*7))])
	}
	return line
}
