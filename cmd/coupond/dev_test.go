package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/internal/localpg"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// devEnviron is the environment of a dev on a free port. DATABASE_URL is there to be ignored.
var devEnviron = []string{"LISTEN_ADDR=127.0.0.1:0", "DATABASE_URL=postgres://me:" + marker + "@nowhere.invalid/db"}

// sh runs a line as a person types it.
func sh(t *testing.T, line string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command("sh", "-c", line)
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v: %s%s", line, err, output, stderr.String())
	}
	return string(output)
}

// typed returns the lines that dev tells people to type, with the commands of the session in psql as its input.
func typed(t *testing.T, p *program) (curl []string, psql string) {
	t.Helper()
	const last = "select claim_number, user_id, claimed_at from claims;"
	wait.For(t, "what to type", func() bool { return strings.Contains(p.stdout.String(), last) })
	var input []string
	for line := range strings.Lines(p.stdout.String()) {
		line, indented := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "  ")
		switch {
		case !indented:
		case strings.HasPrefix(line, "curl "):
			curl = append(curl, line)
		case psql == "":
			psql = line
		default:
			input = append(input, line)
		}
	}
	return curl, fmt.Sprintf("%s -At <<'.'\n%s\n.", psql, strings.Join(input, "\n"))
}

// Start, do what it says, stop, start again, and find it as it was. The second one of two says where the first one is.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev's own")
	p := startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	curl, psql := typed(t, p)
	if len(curl) != 3 {
		t.Fatalf("it says to type %d curl lines: %s", len(curl), p.stdout.String())
	}
	for i, want := range []string{"HTTP/1.1 201 Created\r\n", "HTTP/1.1 201 Created\r\n", `{"name":"SALE","amount":5,"remaining_amount":4,"claimed_by":["ann"]}`} {
		if got := sh(t, curl[i]); !strings.Contains(got, want) {
			t.Errorf("%s\ngot %s\nwant %s", curl[i], got, want)
		}
	}
	if got := sh(t, psql); !regexp.MustCompile(`(?s)^claimed\n1\|ann\|.*\n2\|bob\|.*\n$`).MatchString(got) {
		t.Errorf("%s\ngot %s", psql, got)
	}

	second := startProcess(t, devEnviron, "dev", "--dir", dir)
	code := second.wait(t)
	want := fmt.Sprintf("coupond: coupond dev runs in %s already: process %d, %s\n", dir, p.pid, p.url)
	if code != exitFailure || second.stderr.String() != want || second.stdout.String() != "" {
		t.Errorf("the second one: exit code %d, %s\nwant %s", code, second.stderr.String(), want)
	}

	// make psql
	program := filepath.Join(dir, "psql")
	if got := sh(t, shellQuote(program)+` -Atc 'select count(*) from claims'`); got != "2\n" {
		t.Errorf("%s says %q", program, got)
	}
	if mode := fileMode(t, program); mode != 0o700 {
		t.Errorf("%s has the mode %o", program, mode)
	}
	postmaster := runningPG(t, dir).Pid()

	p.signal(syscall.SIGINT)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
	gone(t, dir, postmaster, 0)
	if _, err := os.Stat(program); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s has stayed: %v", program, err)
	}

	p = startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	if s := newClient(t, p.url, 1).get(t, "SALE"); s.RemainingAmount != 3 || strings.Join(s.ClaimedBy, " ") != "ann bob" {
		t.Errorf("after a restart, the coupon is %+v", s)
	}
	if strings.Contains(p.stderr.String(), "making a PostgreSQL") {
		t.Error("a restart made a new cluster")
	}
}

// Whatever ends dev, no process of PostgreSQL is left, and the next start finds all that was answered.
func TestDevLeavesNoProcessBehind(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	for claims, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		p := startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
		c := newClient(t, p.url, 1)
		if claims == 0 {
			c.create(t, "SALE", 5)
		}
		if s := c.get(t, "SALE"); len(s.ClaimedBy) != claims {
			t.Errorf("before %s: %d claims, want %d", signal, len(s.ClaimedBy), claims)
		}
		if a, err := c.claim(fmt.Sprint("user ", claims), "SALE"); err != nil || a.status != 201 {
			t.Errorf("a claim: %+v %v", a, err)
		}
		postmaster := runningPG(t, dir).Pid()
		p.signal(signal)
		p.wait(t)
		if signal == syscall.SIGKILL {
			gone(t, dir, postmaster, 20*time.Second) // PostgreSQL notices, and shuts down
		} else {
			gone(t, dir, postmaster, 0)
		}
	}
}

// When PostgreSQL is ended by somebody else, dev ends too, and says why.
func TestDevEndsWithItsPostgreSQL(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	p := startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	if err := syscall.Kill(runningPG(t, dir).Pid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	if cause := p.logged(t, stoppingMessage)["cause"]; cause != "the private PostgreSQL has ended" {
		t.Errorf("the log gives the cause %q", cause)
	}
	if last := p.stderr.String(); !strings.Contains(last[strings.LastIndex(last, `"message":"stopped"`):], "coupond: localpg: ") {
		t.Errorf("it ends with %s", shortened(last))
	}
}

// Ctrl-C before the service runs ends what has been begun.
func TestDevStopsWhileItStarts(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		dir := filepath.Join(pgtest.ClusterDir(t), "dev")
		p := startProcess(t, devEnviron, "dev", "--dir", dir)
		time.Sleep(wait)
		p.signal(syscall.SIGINT)
		p.wait(t)
		if _, err := localpg.Running(dir); !errors.Is(err, localpg.ErrNotRunning) {
			t.Errorf("PostgreSQL was left after %s: %v", wait, err)
		}
		// The next start is none the worse for it.
		p = startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
		p.signal(syscall.SIGINT)
		if code := p.wait(t); code != 0 {
			t.Errorf("the next start, after %s: exit code %d, %s", wait, code, p.stderr.String())
		}
	}
}

// A taken port is found out before PostgreSQL is started.
func TestDevOnATakenPort(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	address := listener.Addr().String()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	expect(t, exitFailure, "cannot listen on "+address+": another program does already", []string{"LISTEN_ADDR=" + address}, "dev", "--dir", dir)
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a cluster was made: %v", err)
	}
}

func runningPG(t *testing.T, dir string) *localpg.Address {
	t.Helper()
	running, err := localpg.Running(dir)
	if err != nil {
		t.Fatal(err)
	}
	return running
}

// gone fails unless no process of the cluster in dir lives any more, at the latest after patience.
func gone(t *testing.T, dir string, postmaster int, patience time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, running := localpg.Running(dir)
		alive := syscall.Kill(postmaster, 0)
		if errors.Is(running, localpg.ErrNotRunning) && errors.Is(alive, syscall.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL is still there after %s: %v, %v", patience, running, alive)
		}
	}
}

func fileMode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}
