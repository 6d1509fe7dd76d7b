package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// gate is a writer that blocks until it is opened.
type gate struct {
	syncBuffer

	open chan struct{}
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.syncBuffer.Write(p)
}

// A reader that does not read costs lines, not time.
func TestOutput_blockedReader(t *testing.T) {
	t.Parallel()
	g := &gate{open: make(chan struct{})}
	out := newOutput(g)
	log := newLogger(out, &serviceSettings{LogLevel: "info", LogFormat: "json"})
	const written = 30_000
	for i := range written {
		log.Info().Msg(fmt.Sprintf("%0100d", i))
	}
	out.close() // ends although nothing is written
	dropped := int(out.droppedLines())
	if dropped == 0 || dropped == written {
		t.Fatalf("%d of %d lines dropped", dropped, written)
	}

	close(g.open)
	<-out.done
	kept := written - dropped
	if n := strings.Count(g.String(), "\n"); n != kept || len(g.String()) > 2*maxOutput {
		t.Errorf("%d lines with %d bytes were written, want %d", n, len(g.String()), kept)
	}
}

// The format auto fits the output, and levels below that of the log are not written.
func TestNewLogger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		level, format, effective string
		lines                    int
	}{
		{"info", "auto", "json", 1}, // a buffer is not a terminal
		{"debug", "json", "json", 2},
		{"info", "console", "console", 1},
		{"error", "console", "console", 0},
	} {
		var text syncBuffer
		out := newOutput(&text)
		settings := serviceSettings{LogLevel: c.level, LogFormat: c.format}
		log := newLogger(out, &settings)
		log.Info().Str("key", "value").Msg("hello")
		log.Debug().Msg("details")
		out.close()
		if lines := strings.Count(text.String(), "\n"); lines != c.lines || settings.LogFormat != c.effective {
			t.Errorf("%+v: %d lines, format %s:\n%s", c, lines, settings.LogFormat, text.String())
		}
		for line := range strings.Lines(text.String()) {
			if json.Valid([]byte(line)) != (c.effective == "json") || strings.Contains(line, "\x1b") {
				t.Errorf("%+v: line %q", c, line)
			}
		}
	}
}

// A line after a write that failed in the middle of another one is whole.
func TestOutput_tornLine(t *testing.T) {
	t.Parallel()
	var written bytes.Buffer
	out := newOutput(tornWriter{&written})
	for _, line := range []string{"torn, and lost\n", "whole\n"} {
		_, err := out.Write([]byte(line))
		must(t, err)
		wait.For(t, "the write of "+line, func() bool {
			out.mu.Lock()
			defer out.mu.Unlock()
			return len(out.pending) == 0
		})
	}
	out.close()
	if got, want := written.String(), "torn\nwhole\n"; got != want || out.droppedLines() != 1 {
		t.Errorf("%q was written and %v lines were dropped, want %q and 1", got, out.droppedLines(), want)
	}
}

// tornWriter writes only the first four bytes of a text that begins with "torn".
type tornWriter struct{ io.Writer }

func (w tornWriter) Write(text []byte) (int, error) {
	if !bytes.HasPrefix(text, []byte("torn")) {
		return w.Writer.Write(text)
	}
	n, _ := w.Writer.Write(text[:4])
	return n, syscall.ENOSPC
}

// The service goes on while its log cannot be written. Dropped lines are counted in a metric. The
// log continues as soon as it can be written.
func TestServe_logCannotBeWritten(t *testing.T) {
	t.Parallel()
	p, c := serve(t)
	const name = "coupond_log_lines_dropped_total"
	p.stderr.fail(syscall.ENOSPC)
	c.create(t, "SALE", 5)
	wait.For(t, "dropped lines", func() bool { _, samples := c.scrape(t); return samples[name] != "0" })
	p.stderr.fail(nil)
	c.claimed(t, "ann", "SALE")
	wait.For(t, "the claim in the log", func() bool { return strings.Contains(p.stderr.String(), "/api/coupons/claim") })
}

// startPiped starts coupond with its stderr, and with both its stdout if both is true, on a pipe.
// The pipe is read into p.stderr until release is called, which leaves it to the caller.
func startPiped(t *testing.T, both bool, environ []string, args ...string) (_ *program, _ *os.File, release func()) {
	t.Helper()
	reader, writer, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { _ = reader.Close() })
	cmd := thisBinary(t, args...)
	cmd.Stderr = writer
	if both {
		cmd.Stdout = writer
	}
	p := startCommand(t, environ, cmd)
	_ = writer.Close()
	released := make(chan struct{})
	go func() {
		defer close(released)
		_, _ = io.Copy(&p.stderr, reader)
	}()
	return p, reader, func() {
		_ = reader.SetReadDeadline(time.Now())
		<-released
		_ = reader.SetReadDeadline(time.Time{})
	}
}

// A reader of the log that is suspended holds up neither requests nor the shutdown.
func TestServe_logReaderSuspended(t *testing.T) {
	t.Parallel()
	p, _, release := startPiped(t, false, environ(pgtest.New(t).URL), "serve")
	p.ready(t)
	release()
	sell(t, 5, 500, 16, claimsOf(rangeOf(500)), p) // a line each, of 200 bytes; the pipe holds 64 KiB
	p.stop(t, syscall.SIGTERM)
}

// A migration goes on when nothing reads what it says.
func TestMigrate_outputReaderGone(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	p, reader, release := startPiped(t, true, []string{"DATABASE_URL=" + database.URL}, "migrate")
	release()
	_ = reader.Close()
	p.wait(t)
	if p.code == -1 || relations(t, database.Connect(t)) == 0 {
		t.Errorf("exit code %d (-1: ended by a signal), migrated: %t", p.code, relations(t, database.Connect(t)) > 0)
	}
}
