package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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
	log, err := newLogger(out, &logConfig{Level: "info"})
	if err != nil {
		t.Fatal(err)
	}
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

// The service goes on while its log cannot be written. Dropped lines are counted in a metric, and
// in the log as soon as it can be written.
func TestServe_logCannotBeWritten(t *testing.T) {
	t.Parallel()
	p := start(t, environ(pgtest.New(t).URL), "serve").ready(t)
	c := newClient(t, p.url, 1)
	const name = "coupond_log_lines_dropped_total"
	if _, samples := c.scrape(t); samples[name] != "0" {
		t.Errorf("%s is %s at the start", name, samples[name])
	}
	p.stderr.fail(syscall.ENOSPC)
	c.create(t, "SALE", 5)
	wait.For(t, "dropped lines", func() bool { _, samples := c.scrape(t); return samples[name] != "0" })
	p.stderr.fail(nil)
	if a, err := c.claim("ann", "SALE"); err != nil || a.status != http.StatusCreated {
		t.Errorf("claim: %+v %v", a, err)
	}
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
	p.ready(t)
	c := newClient(t, p.url, 1)
	release()
	_ = reader.Close()
	c.create(t, "SALE", 5)
	if a, err := c.claim("ann", "SALE"); err != nil || a.status != http.StatusCreated {
		t.Errorf("claim: %+v %v", a, err)
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A reader of the log that is suspended holds up neither requests nor the shutdown.
func TestServe_logReaderSuspended(t *testing.T) {
	t.Parallel()
	p, _, release := startPiped(t, false, environ(pgtest.New(t).URL), "serve")
	p.ready(t)
	c := newClient(t, p.url, 1)
	c.create(t, "SALE", 5)
	release()
	for range 1000 { // a line each, of 200 bytes; the pipe holds 64 KiB
		c.get(t, "SALE")
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// blockedClaimOf sends a claim of coupon SALE while another session holds its lock. The channel
// gets the answer after a call of the function, which releases the lock.
func blockedClaimOf(t *testing.T, p *program, connString string) (<-chan answer, func()) {
	t.Helper()
	conn := connectTo(t, connString)
	if _, err := conn.Exec(t.Context(), `begin; select from coupond.coupons for update`); err != nil {
		t.Fatal(err)
	}
	answered := make(chan answer, 1)
	c := newClient(t, p.url, 1)
	go func() {
		a, err := c.claim("ann", "SALE")
		if err != nil {
			a.body = err.Error()
		}
		answered <- a
	}()
	watcher := connectTo(t, connString)
	wait.For(t, "the claim to wait for the lock", func() bool {
		var waiting bool
		if err := watcher.QueryRow(t.Context(), `select exists (select from pg_locks where not granted)`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		return waiting
	})
	return answered, func() {
		if _, err := conn.Exec(context.Background(), `rollback`); err != nil {
			t.Error(err)
		}
	}
}

// Ctrl-C in `coupond dev 2>&1 | tee log` ends the reader first. The claim under way is answered all
// the same, and PostgreSQL is stopped.
func TestDev_outputReaderGone(t *testing.T) {
	t.Parallel()
	dir := pgtest.ClusterDir(t)
	p, reader, release := startPiped(t, true, append([]string{"CLAIM_TIMEOUT=5m"}, devEnviron...), "dev", "--dir", dir)
	p.ready(t)
	newClient(t, p.url, 1).create(t, "SALE", 5)
	answered, unlock := blockedClaimOf(t, p, runningPG(t, dir).URL(devDatabase))
	postmaster := runningPG(t, dir).Pid()

	release()
	_ = reader.Close()
	p.signal(syscall.SIGINT)
	time.Sleep(300 * time.Millisecond)
	unlock()
	if a := <-answered; a.status != http.StatusCreated {
		t.Errorf("claim: %+v", a)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	waitGone(t, dir, postmaster, 0)
}

// SIGHUP starts a graceful shutdown, and does not end it when it comes again: closing a terminal
// sends it twice.
func TestServe_hangup(t *testing.T) {
	t.Parallel()
	p, _, blocked, unlock := blockedClaim(t)
	p.signal(syscall.SIGHUP)
	if cause := p.logged(t, stoppingMessage)["cause"]; cause != "hangup signal received" {
		t.Errorf("cause: %v", cause)
	}
	p.signal(syscall.SIGHUP)
	time.Sleep(300 * time.Millisecond)
	unlock()
	if _, err := blocked.Response(http.StatusCreated); err != nil {
		t.Errorf("claim: %v", err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Under nohup, SIGHUP does nothing.
func TestServe_nohup(t *testing.T) {
	t.Parallel()
	cmd := thisBinary(t, "serve")
	cmd.Args = append([]string{"/bin/sh", "-c", `trap "" HUP; exec "$0" "$@"`}, cmd.Args...)
	cmd.Path = cmd.Args[0]
	p := startCommand(t, environ(pgtest.New(t).URL), cmd).ready(t)
	c := newClient(t, p.url, 1)
	p.signal(syscall.SIGHUP)
	time.Sleep(300 * time.Millisecond)
	c.create(t, "SALE", 5)
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 || strings.Contains(p.stderr.String(), "hangup") {
		t.Errorf("exit code %d, %s", code, p.stderr.String())
	}
}

// A migration goes on when nothing reads what it says.
func TestMigrate_outputReaderGone(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	p, reader, release := startPiped(t, true, []string{"DATABASE_URL=" + database.URL}, "migrate")
	release()
	_ = reader.Close()
	p.wait(t)
	if p.code == -1 {
		t.Error("the migration was ended by a signal")
	}
	var exists bool
	err := database.Connect(t).QueryRow(t.Context(), `select to_regclass('coupond.coupons') is not null`).Scan(&exists)
	if err != nil || !exists {
		t.Errorf("migrated: %t, %v", exists, err)
	}
}

// An idle connection is closed after IDLE_TIMEOUT, not before.
func TestServe_idleTimeout(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	const idle = time.Second // the shortest allowed
	short := start(t, environ(database.URL, "IDLE_TIMEOUT="+idle.String()), "serve").ready(t)
	long := start(t, environ(database.URL, "IDLE_TIMEOUT=1h"), "serve").ready(t)
	for _, p := range []*program{short, long} {
		conn := p.dial(t)
		sent := time.Now()
		conn.Send(t, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
		if closes, err := conn.Response(http.StatusOK); err != nil || closes {
			t.Fatalf("closes %t, %v", closes, err)
		}
		if p == short {
			if err := conn.SetReadDeadline(sent.Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.R.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want the end of the connection", err)
			}
			if took := time.Since(sent); took < idle {
				t.Errorf("closed after %s", took)
			}
			continue
		}
		time.Sleep(2 * idle)
		conn.Send(t, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Response(http.StatusOK); err != nil {
			t.Errorf("after %s: %v", 2*idle, err)
		}
	}
}

// connectTo opens a connection to a database that is closed when the test ends.
func connectTo(t *testing.T, connString string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), connString)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
