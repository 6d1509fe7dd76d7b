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

// errKilled: the second Ctrl-C, while answers were still waited for.
var errKilled = errors.New("stopped without waiting for the last answers")

// live says whether out is a terminal on which something can be redrawn. CI systems give their jobs one, and keep every
// frame in their log.
func live(out io.Writer, environ []string) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) && !slices.ContainsFunc(environ, func(v string) bool {
		return v == "TERM=dumb" || len(v) > 3 && v[:3] == "CI=" && v != "CI=false"
	})
}

// watchLines prints a line a second until the sale is over.
func (s *sale) watchLines(out io.Writer) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for due := time.Second; ; {
		select {
		case <-s.run.Done():
			_, _ = fmt.Fprintln(out, s.look().line())
			return
		case <-ticker.C:
			if p := s.look(); p.series.elapsed >= due {
				_, _ = fmt.Fprintln(out, p.line())
				due = p.series.elapsed.Truncate(time.Second) + time.Second
			}
		}
	}
}

// watchTerminal redraws the sale in its place until it is over. Ctrl-C calls stop, a second one gives up waiting.
// A signal from outside ends the sale and not the drawing, which then sees the last answers come in.
func (s *sale) watchTerminal(in io.Reader, out io.Writer, profile colorprofile.Profile, stop func()) error {
	program := tea.NewProgram(&screen{sale: s, stop: stop, width: 80, progress: s.look()}, tea.WithInput(in), tea.WithOutput(out),
		tea.WithColorProfile(profile), tea.WithoutSignalHandler(), tea.WithFPS(int(time.Second/tick)), tea.WithWindowSize(80, 24)) // until the terminal tells its own
	m, err := program.Run()
	if err != nil {
		return err
	}
	if m.(*screen).killed {
		return errKilled
	}
	return nil
}

// screen is the sale for bubbletea.
type screen struct {
	sale     *sale
	stop     func()
	width    int
	progress progress
	stopped  bool
	killed   bool
	over     bool
}

type tickMsg struct{}
type overMsg struct{}

func nextTick() tea.Cmd { return tea.Tick(tick, func(time.Time) tea.Msg { return tickMsg{} }) }

// Init starts the clock and waits for the end.
func (m *screen) Init() tea.Cmd {
	return tea.Batch(nextTick(), func() tea.Msg { <-m.sale.run.Done(); return overMsg{} })
}

// Update takes in what happened.
func (m *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tickMsg:
		m.progress = m.sale.look()
		return m, nextTick()
	case overMsg:
		m.progress, m.over = m.sale.look(), true
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

// View draws it. The last frame is empty: the table that follows says the same and more.
func (m *screen) View() tea.View {
	if m.over {
		return tea.NewView("")
	}
	text := m.progress.view(&m.sale.options, m.width)
	if m.stopped {
		text += "\n  " + faint("stopping: waiting for the last answers; once more to leave at once") + "\n"
	}
	return tea.NewView(text)
}
