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

// newLogger returns a logger that writes to out, also when out has dropped lines. It replaces the
// format auto by the one that fits out.
func newLogger(out *output, settings *serviceSettings) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(settings.LogLevel)
	if err != nil {
		return zerolog.Logger{}, err
	}
	file, ok := out.dest.(*os.File)
	terminal := ok && isatty.IsTerminal(file.Fd())
	if settings.LogFormat == "auto" {
		settings.LogFormat = "json"
		if terminal {
			settings.LogFormat = "console"
		}
	}
	w := io.Writer(out)
	if settings.LogFormat == "console" {
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
