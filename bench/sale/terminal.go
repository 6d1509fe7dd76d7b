package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"
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
		return v == "TERM=dumb" || len(v) > 3 && v[:3] == "CI=" && v != "CI=false"
	})
}

// printProgress prints a line per second until the sale is over.
func (s *sale) printProgress(out io.Writer) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for due := time.Second; ; {
		select {
		case <-s.run.Done():
			_, _ = fmt.Fprintln(out, s.update().line())
			return
		case <-ticker.C:
			if p := s.update(); p.series.elapsed >= due {
				_, _ = fmt.Fprintln(out, p.line())
				due = p.series.elapsed.Truncate(time.Second) + time.Second
			}
		}
	}
}

// drawProgress redraws the progress until the sale is over. Ctrl-C calls stop; a second Ctrl-C does
// not wait for the last answers. A signal ends the sale but not the drawing, which shows the last
// answers.
func (s *sale) drawProgress(in io.Reader, out io.Writer, profile colorprofile.Profile, stop func()) error {
	program := tea.NewProgram(&screen{sale: s, stop: stop, width: 80, progress: s.update()}, tea.WithInput(in), tea.WithOutput(out),
		tea.WithColorProfile(profile), tea.WithoutSignalHandler(), tea.WithFPS(int(time.Second/tick)),
		tea.WithWindowSize(80, 24)) // until the terminal reports its size
	m, err := program.Run()
	if err != nil {
		return err
	}
	if m.(*screen).killed {
		return errKilled
	}
	return nil
}

// screen implements tea.Model.
type screen struct {
	sale     *sale
	stop     func()
	width    int
	progress progress
	stopped  bool
	killed   bool
	done     bool
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
		m.progress = m.sale.update()
		return m, nextTick()
	case doneMsg:
		m.progress, m.done = m.sale.update(), true
		return m, tea.Quit
	case tea.WindowSizeMsg:
		m.width = msg.Width
	case tea.KeyPressMsg:
		if k := msg.String(); k != "ctrl+c" && k != "q" {
			return m, nil
		}
		if m.stopped {
			m.killed = true
			return m, tea.Quit
		}
		m.stopped = true
		m.stop()
	}
	return m, nil
}

// View implements tea.Model. The last frame is empty, because the summary follows.
func (m *screen) View() tea.View {
	if m.done {
		return tea.NewView("")
	}
	text := m.progress.view(&m.sale.options, m.width)
	if m.stopped {
		text += "\n  " + faint("stopping: waiting for the last answers; press Ctrl-C again to leave at once") + "\n"
	}
	return tea.NewView(text)
}
