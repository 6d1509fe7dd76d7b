package main

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

const (
	// maxOutput is how much text an output holds for a reader that does not keep up, in bytes. At one
	// line for each of 10,000 requests a second it is about a second.
	maxOutput = 2 << 20
	// flushTimeout limits how long the end of the program waits for such a reader.
	flushTimeout = time.Second
)

// output writes to stdout or stderr. A reader that is slow, suspended or gone never blocks the
// caller of Write: text that cannot be written is dropped, and its lines are counted.
//
// Write adds to a buffer, which a goroutine writes. If the reader is slow, the buffer fills up and
// new text is dropped. If writing fails, because the reader is gone or the disk is full, what it
// could not write is dropped; the next text is tried all the same.
type output struct {
	dest io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	changed sync.Cond // pending or closed
	pending []byte    // not yet written
	closed  bool
	dropped int64 // lines dropped since the start
}

func newOutput(dest io.Writer) *output {
	o := &output{dest: dest, done: make(chan struct{})}
	o.changed.L = &o.mu
	go o.run()
	return o
}

// Write never fails and never blocks. Text is kept or dropped as a whole.
func (o *output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.pending)+len(text) > maxOutput {
		o.dropped += lines(text)
	} else {
		o.pending = append(o.pending, text...)
		o.changed.Signal()
	}
	return len(text), nil
}

// close writes what is pending, within flushTimeout.
func (o *output) close() {
	o.mu.Lock()
	o.closed = true
	o.changed.Signal()
	o.mu.Unlock()
	select {
	case <-o.done:
	case <-time.After(flushTimeout):
	}
}

// run writes what is pending until the output is closed.
func (o *output) run() {
	defer close(o.done)
	o.mu.Lock()
	defer o.mu.Unlock()
	var text []byte
	torn := false // the last write ended in the middle of a line
	for {
		for len(o.pending) == 0 && !o.closed {
			o.changed.Wait()
		}
		text, o.pending = o.pending, text[:0]
		if len(text) == 0 {
			return
		}
		o.mu.Unlock()
		if torn {
			text = append([]byte("\n"), text...)
		}
		n, _ := o.dest.Write(text)
		if n > 0 {
			torn = text[n-1] != '\n'
		}
		o.mu.Lock()
		o.dropped += lines(text[n:])
	}
}

// droppedLines returns the number of lines dropped since the start.
func (o *output) droppedLines() float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return float64(o.dropped)
}

func lines(text []byte) int64 { return int64(bytes.Count(text, []byte("\n"))) }

// surviveBrokenPipes turns a write to stdout or stderr whose reader is gone into an error. Without
// it, Go ends the program (SIGPIPE). Child processes keep the default, unlike with signal.Ignore.
func surviveBrokenPipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

func init() {
	// zerolog has only a global time format. Milliseconds, because seconds are too coarse to follow
	// a sale.
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
}

// newLogger returns a logger that writes to out. It replaces the format auto by the one that fits
// out.
func newLogger(out *output, settings *serviceSettings) zerolog.Logger {
	level, _ := zerolog.ParseLevel(settings.LogLevel) // the setting allows no other words
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
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
