package main

import (
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

func init() {
	// zerolog has only a global time format. Milliseconds, because seconds are too coarse to follow
	// a sale.
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
}

// newLogger returns a logger that writes to w. config has been checked by load; if its format is
// not set, newLogger sets it to the one that fits w.
func newLogger(w io.Writer, config *logConfig) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(config.Level)
	if err != nil {
		return zerolog.Logger{}, err
	}
	terminal := isTerminal(w)
	if config.Format == "" {
		config.Format = "json"
		if terminal {
			config.Format = "console"
		}
	}
	if config.Format == "console" {
		w = zerolog.ConsoleWriter{Out: w, NoColor: !terminal, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger(), nil
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}
