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
func isInteractive(out io.Writer) bool {
	file, ok := out.(*os.File)
	ci := os.Getenv("CI")
	return ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb" && (ci == "" || ci == "false")
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
			if s.series.add(s.run.Take()); s.series.all.Elapsed >= due {
				_, _ = fmt.Fprintln(out, s.line())
				due = s.series.all.Elapsed.Truncate(time.Second) + time.Second
			}
		}
	}
}

// line returns the progress in one line.
func (s *sale) line() string {
	second, all, times := s.series.lastSecond(), s.series.all, map[int]int{} // by status; 0: no answer
	for _, c := range all.Claims.Answers {
		times[c.Answer.Status] += c.Times
	}
	return fmt.Sprintf("%6.1f s %4d %%  %7s/s   201 %s   409 %s   400 %s   503 %s   none %s   %s",
		all.Elapsed.Seconds(), 100*s.finished.Load()/int64(len(s.order)), comma(int(rate(second))),
		comma(times[201]), comma(times[409]), comma(times[400]), comma(times[503]), comma(times[0]), formatLatencies(second.Claims))
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
	second, claims, all := s.series.lastSecond(), s.series.all.Claims, len(s.order)
	finished := int(s.finished.Load())
	text := fmt.Sprintf(" %3d %%  %s of %s  %.1f s", 100*finished/all, comma(finished), comma(all), s.series.all.Elapsed.Seconds())
	room := max(0, width-len(text))
	lines := []string{
		bold(s.options.describe()), "",
		paint(green, strings.Repeat("█", room*finished/all)) + faint(strings.Repeat("░", room-room*finished/all)) + text, "",
		fmt.Sprintf("%s %s  %s", faint("claims/s"), bold(fmt.Sprintf("%8s", comma(int(rate(second))))), paint(green, sparkline(s.series.rates(width-20)))),
		fmt.Sprintf("%s  %s", faint("latency "), formatLatencies(second.Claims)), "",
	}
	for _, r := range rows(claims) {
		bar := math.Ceil(float64(r.times) / float64(max(1, claims.Total())) * float64(max(0, width-33)))
		lines = append(lines, paint(r.colour, fmt.Sprintf("%-21s", r.name))+fmt.Sprintf("%10s  ", comma(r.times))+paint(r.colour, strings.Repeat("▇", int(bar))))
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
