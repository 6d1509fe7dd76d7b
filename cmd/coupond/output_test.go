package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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

// A reader that does not read costs lines, not time. When it reads on, it gets a line that counts
// those that were dropped.
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
	lines := strings.Split(strings.TrimSuffix(g.String(), "\n"), "\n")
	if len(lines) != kept+1 || len(g.String()) > 2*maxOutput+1000 {
		t.Errorf("%d lines with %d bytes were written, want %d and the line that reports the others", len(lines), len(g.String()), kept)
	}
	want := fmt.Sprintf(`"lines":%d,`, dropped)
	if last := lines[len(lines)-1]; !strings.Contains(last, want) || !strings.Contains(last, `"level":"warn"`) {
		t.Errorf("the last line is %s, want one with %s", last, want)
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

// The service goes on while its log cannot be written. Dropped lines are counted in a metric, and
// in the log as soon as it can be written.
func TestServe_logCannotBeWritten(t *testing.T) {
	t.Parallel()
	p, c := serve(t)
	const name = "coupond_log_lines_dropped_total"
	p.stderr.fail(syscall.ENOSPC)
	c.create(t, "SALE", 5)
	wait.For(t, "dropped lines", func() bool { _, samples := c.scrape(t); return samples[name] != "0" })
	p.stderr.fail(nil)
	c.claimed(t, "ann", "SALE")
	reported := p.logged(t, droppedMessage)
	if _, samples := c.scrape(t); reported["level"] != "warn" || fmt.Sprint(reported["lines"]) != samples[name] {
		t.Errorf("reported %v; %s is %s", reported, name, samples[name])
	}
}

// startPiped starts coupond with its stderr, and with both its stdout if both is true, on a pipe.
// The pipe is read into p.stderr until release is called, which leaves it to the caller.
func startPiped(t *testing.T, both bool, environ []string, args ...string) (_ *program, _ *os.File, release func()) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
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

// The service goes on when the reader of its log is gone, as in `coupond serve 2> >(head)`.
func TestServe_logReaderGone(t *testing.T) {
	t.Parallel()
	p, reader, release := startPiped(t, false, environ(pgtest.New(t).URL), "serve")
	c := p.ready(t).client(t)
	release()
	_ = reader.Close()
	c.create(t, "SALE", 5)
	c.claimed(t, "ann", "SALE")
	p.stop(t, syscall.SIGTERM)
}

// A reader of the log that is suspended holds up neither requests nor the shutdown.
func TestServe_logReaderSuspended(t *testing.T) {
	t.Parallel()
	p, _, release := startPiped(t, false, environ(pgtest.New(t).URL), "serve")
	c := p.ready(t).client(t)
	c.create(t, "SALE", 5)
	release()
	for range 500 { // a line each, of 200 bytes; the pipe holds 64 KiB
		c.must(t, http.MethodGet, "/api/coupons/SALE", "")
	}
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
