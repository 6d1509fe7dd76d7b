package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"golang.org/x/term"
)

// errKilled means that Ctrl-C was pressed again while the last answers were awaited.
var errKilled = errors.New("stopped without waiting for the last answers")

// isInteractive reports whether out is a terminal that can be redrawn. CI systems give their jobs a
// terminal but keep every frame in their log.
func isInteractive(out io.Writer, environ []string) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) && !slices.ContainsFunc(environ, func(v string) bool {
		return v == "TERM=dumb" || strings.HasPrefix(v, "CI=") && v != "CI=" && v != "CI=false"
	})
}

// printProgress prints a line per second until the sale is over.
func (s *sale) printProgress(out io.Writer) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for due := time.Second; ; {
		select {
		case <-s.run.Done():
			s.series.add(s.run.Take())
			_, _ = fmt.Fprintln(out, s.line())
			return
		case <-ticker.C:
			if s.series.add(s.run.Take()); s.series.elapsed >= due {
				_, _ = fmt.Fprintln(out, s.line())
				due = s.series.elapsed.Truncate(time.Second) + time.Second
			}
		}
	}
}

// line returns the progress in one line.
func (s *sale) line() string {
	second, t := s.series.lastSecond(), s.series.total
	return fmt.Sprintf("%6.1f s %4d %%  %7s/s   201 %s   409 %s   400 %s   503 %s   none %s   %s",
		s.series.elapsed.Seconds(), 100*s.finished.Load()/int64(len(s.order)), comma(int(rate(second))),
		comma(t[claimed]), comma(t[alreadyClaimed]), comma(t[outOfStock]), comma(t[unavailable]),
		comma(t[noAnswer]+t[unexpected]), formatLatencies(second.Claims))
}

// drawProgress redraws the progress until the sale is over. Ctrl-C calls stop; a second Ctrl-C does
// not wait for the last answers. A signal ends the sale but not the drawing, which shows the last
// answers.
func (s *sale) drawProgress(in io.Reader, out io.Writer, profile colorprofile.Profile, stop func()) error {
	m := &screen{sale: s, stop: stop, width: 80}
	_, err := tea.NewProgram(m, tea.WithInput(in), tea.WithOutput(out), tea.WithColorProfile(profile), tea.WithoutSignalHandler(),
		tea.WithFPS(int(time.Second/tick)), tea.WithWindowSize(80, 24)).Run() // until the terminal reports its size
	if err == nil && m.keys > 1 {
		err = errKilled
	}
	return err
}

// screen implements tea.Model.
type screen struct {
	sale  *sale
	stop  func()
	width int
	keys  int // how often the user asked to stop
	done  bool
}

type tickMsg struct{}
type doneMsg struct{}

func nextTick() tea.Cmd { return tea.Tick(tick, func(time.Time) tea.Msg { return tickMsg{} }) }

// Init implements tea.Model.
func (m *screen) Init() tea.Cmd {
	return tea.Batch(nextTick(), func() tea.Msg { <-m.sale.run.Done(); return doneMsg{} })
}

// Update implements tea.Model.
func (m *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tickMsg:
		m.sale.series.add(m.sale.run.Take())
		return m, nextTick()
	case doneMsg:
		m.sale.series.add(m.sale.run.Take())
		m.done = true
		return m, tea.Quit
	case tea.WindowSizeMsg:
		m.width = msg.Width
	case tea.KeyPressMsg:
		if k := msg.String(); k != "ctrl+c" && k != "q" {
			return m, nil
		}
		if m.keys++; m.keys > 1 {
			return m, tea.Quit
		}
		m.stop()
	}
	return m, nil
}

// View implements tea.Model. The last frame is empty, because the summary follows.
func (m *screen) View() tea.View {
	if m.done {
		return tea.NewView("")
	}
	text := m.sale.view(m.width)
	if m.keys > 0 {
		text += "\n  " + faint("stopping: waiting for the last answers; press Ctrl-C again to leave at once") + "\n"
	}
	return tea.NewView(text)
}

// view returns the progress for a terminal of this width in columns.
func (s *sale) view(width int) string {
	columns := max(40, min(width, 100))
	width = columns - 4
	second, total, all := s.series.lastSecond(), 0, len(s.order)
	for _, n := range s.series.total {
		total += n
	}
	finished := int(s.finished.Load())
	text := fmt.Sprintf(" %3d %%  %s of %s  %.1f s", 100*finished/all, comma(finished), comma(all), s.series.elapsed.Seconds())
	room := max(0, width-len(text))
	lines := []string{
		bold(s.options.describe()), "",
		paint(claimed, strings.Repeat("█", room*finished/all)) + faint(strings.Repeat("░", room-room*finished/all)) + text, "",
		fmt.Sprintf("%s %s  %s", faint("claims/s"), bold(fmt.Sprintf("%8s", comma(int(rate(second))))), paint(claimed, sparkline(s.series.rates(width-20)))),
		fmt.Sprintf("%s  %s", faint("latency "), formatLatencies(second.Claims)), "",
	}
	for k, n := range s.series.total {
		if k := kind(k); n > 0 || k < noAnswer {
			bar := math.Ceil(float64(n) / float64(max(1, total)) * float64(max(0, width-31)))
			lines = append(lines, paint(k, fmt.Sprintf("%-19s", kinds[k].name))+fmt.Sprintf("%10s  ", comma(n))+paint(k, strings.Repeat("▇", int(bar))))
		}
	}
	return lipgloss.NewStyle().Padding(1, 2, 0).MaxWidth(columns).Render(strings.Join(lines, "\n"))
}

// sparkline draws values on a scale from 0 to the largest one.
func sparkline(values []float64) string {
	steps, highest, line := []rune("▁▂▃▄▅▆▇█"), 1e-9, ""
	for _, v := range values {
		highest = max(highest, v)
	}
	for _, v := range values {
		line += string(steps[int(math.Round(v/highest*7))])
	}
	return line
}
