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

// newLogger returns a logger that writes to out, also when out has dropped lines. config has been
// checked by load; if its format is not set, newLogger sets it to the one that fits out.
func newLogger(out *output, config *logConfig) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(config.Level)
	if err != nil {
		return zerolog.Logger{}, err
	}
	terminal := isTerminal(out.dest)
	if config.Format == "" {
		config.Format = "json"
		if terminal {
			config.Format = "console"
		}
	}
	w := io.Writer(out)
	if config.Format == "console" {
		w = zerolog.ConsoleWriter{Out: out, NoColor: !terminal, TimeFormat: time.TimeOnly}
	}
	log := zerolog.New(w).Level(level).With().Timestamp().Logger()
	out.onDrop(func(lines int64) {
		log.Warn().Int64("lines", lines).Msg(droppedMessage)
	})
	return log, nil
}

// droppedMessage is logged after lines were dropped.
const droppedMessage = "lines of this log were dropped, because they were not read or could not be written"

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && isatty.IsTerminal(file.Fd())
}
