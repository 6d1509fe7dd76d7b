package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/internal/localpg"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// devEnviron is the environment of a coupond dev on a free port. dev ignores DATABASE_URL.
var devEnviron = []string{"LISTEN_ADDR=127.0.0.1:0", "DATABASE_URL=postgres://me:" + testPassword + "@nowhere.invalid/db"}

// sh runs a shell command and returns its stdout.
func sh(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Stderr = t.Output()
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v: %s", line, err, output)
	}
	return string(output)
}

// suggested returns the commands that dev prints: the curl commands, and a psql command with its
// statements as input.
func suggested(t *testing.T, p *program) (curl []string, psql string) {
	t.Helper()
	const last = "select coupon_name, claim_number, user_id from claims;"
	wait.For(t, "the suggested commands", func() bool { return strings.Contains(p.stdout.String(), last) })
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

// libpqVariables would lead dev, or psql, to another server, or change what it does there.
var libpqVariables = []string{
	"PGAPPNAME=other", "PGCHANNELBINDING=require", "PGCLIENTENCODING=LATIN1", "PGCONNECT_TIMEOUT=soon", "PGDATABASE=nowhere",
	"PGDATESTYLE=German", "PGGSSENCMODE=require", "PGHOST=nowhere.invalid", "PGHOSTADDR=192.0.2.1", "PGMAXPROTOCOLVERSION=2",
	"PGMINPROTOCOLVERSION=9", "PGOPTIONS=-c search_path=pg_catalog -c default_transaction_read_only=on", "PGPASSFILE=/nowhere",
	"PGPASSWORD=wrong", "PGPORT=1", "PGREQUIREAUTH=none", "PGREQUIREPEER=another", "PGSERVICE=nowhere", "PGSERVICEFILE=/nowhere",
	"PGSSLCERT=/nowhere", "PGSSLCERTMODE=require", "PGSSLKEY=/nowhere", "PGSSLMODE=verify-full", "PGSSLNEGOTIATION=direct",
	"PGSSLROOTCERT=/nowhere", "PGTARGETSESSIONATTRS=standby", "PGTZ=Mars/Phobos", "PGUSER=another",
}

// The suggested commands work, a second dev in the same directory names the first one, and the data
// survive restarts. However dev ends, no process of PostgreSQL is left.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev's own")
	start := func(environ ...string) *program {
		t.Helper()
		return startProcess(t, append(environ, devEnviron...), "dev", "--dir", dir)
	}
	// dev and its psql script reach their own database whatever the shell says.
	p := start(libpqVariables...).ready(t)
	postmaster, _ := runningPG(t, dir)
	curl, psql := suggested(t, p)
	if len(curl) != 3 {
		t.Fatalf("%d curl commands, want 3: %s", len(curl), p.stdout.String())
	}
	const coupon = `{"name":"night owl","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`
	for i, want := range []string{"HTTP/1.1 201 Created\r\n", "201\n", coupon} {
		if got := sh(t, curl[i]); !strings.Contains(got, want) {
			t.Errorf("%s\ngot %s\nwant %s", curl[i], got, want)
		}
	}
	if got := sh(t, psql); got != "already_claimed\nnight owl|1|ada\n" {
		t.Errorf("%s\ngot %s", psql, got)
	}

	second := start()
	second.exits(t, exitFailure)
	want := fmt.Sprintf("PostgreSQL is already running in %s\n", dir)
	if !strings.HasSuffix(second.stderr.String(), want) || second.stdout.String() != "" {
		t.Errorf("second dev: %s\nwant %s", second.stderr.String(), want)
	}

	// The script that `make psql` runs.
	script := filepath.Join(dir, "psql")
	if info, err := os.Stat(script); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", script, info, err)
	}
	line := "env"
	for _, variable := range libpqVariables {
		line += " " + shellQuote(variable)
	}
	line += " " + shellQuote(script) + ` -XAt -c "select count(*) from claims" -c "select current_user, current_database(),
		current_setting('transaction_read_only'), current_setting('client_encoding'), current_setting('DateStyle')"`
	if got := sh(t, line); got != "1\npostgres|coupond|off|UTF8|ISO, MDY\n" {
		t.Errorf("psql prints %q", got)
	}

	// After SIGKILL, the watchdog shuts PostgreSQL down.
	p.signal(syscall.SIGKILL)
	p.wait(t)
	waitGone(t, dir, postmaster, time.Minute)

	// In the format of a terminal, the log has no lines for requests that were answered.
	p = start("LOG_FORMAT=console")
	curl, _ = suggested(t, p)
	if got := sh(t, curl[2]); !strings.Contains(got, coupon) {
		t.Errorf("after the restart: %s", got)
	}
	postmaster, _ = runningPG(t, dir)
	p.stop(t, syscall.SIGINT)
	waitGone(t, dir, postmaster, 0)
	if log := p.stderr.String(); !strings.Contains(log, "ready for claims") || strings.Contains(log, "/api/coupons") {
		t.Errorf("the log is\n%s", log)
	}
	if _, err := os.Stat(script); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was not removed: %v", script, err)
	}

	// If PostgreSQL is stopped from outside, dev ends and names the cause.
	p = start().ready(t)
	checkSCRAM(t, p, dir)
	postmaster, _ = runningPG(t, dir)
	must(t, syscall.Kill(postmaster, syscall.SIGINT))
	p.exits(t, exitFailure)
	if cause := p.logged(t, stoppingMessage)["cause"]; cause != "the private PostgreSQL has ended" {
		t.Errorf("the log names the cause %q", cause)
	}
	if last := p.stderr.String(); !strings.Contains(last[strings.LastIndex(last, `"message":"stopped"`):], "coupond: localpg: ") {
		t.Errorf("stderr ends with %s", shortened(last))
	}
}

// checkSCRAM checks that dev gives the password to no server that asks for it in clear: once
// PostgreSQL has ended, another user may listen on its port.
func checkSCRAM(t *testing.T, p *program, dir string) {
	t.Helper()
	_, connString := runningPG(t, dir)
	conn := connectTo(t, connString)
	must(t, os.WriteFile(filepath.Join(dir, "data", "pg_hba.conf"), []byte("host all all 127.0.0.1/32 password\n"), 0o600))
	mustExec(t, conn, "select pg_reload_conf()",
		"select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'coupond'")
	connectTo(t, connString) // a client that does not mind
	c := p.client(t)
	wait.For(t, "the service to be unhealthy", func() bool { return c.must(t, "GET", "/health", "").Status == 503 })
	if a, err := c.claim("ann", "SALE"); err != nil || a.Code != "UNAVAILABLE" {
		t.Errorf("claim: %+v %v", a, err)
	}
}

// Ctrl-C while the cluster is created, or while PostgreSQL starts, stops what has been started. The
// next start succeeds. Ctrl-C in `coupond dev 2>&1 | tee log` ends the reader first: the claim
// under way is answered all the same, and PostgreSQL is stopped.
func TestDev_interrupted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	for what, begun := range map[string]func() bool{
		"the data directory": func() bool { _, err := os.ReadDir(filepath.Join(dir, "data")); return err == nil },
		"PostgreSQL":         func() bool { _, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid")); return err == nil },
	} {
		p := startProcess(t, devEnviron, "dev", "--dir", dir)
		wait.For(t, what, begun)
		p.signal(syscall.SIGINT)
		p.wait(t)
		if localpg.Running(dir) {
			t.Errorf("interrupted at %s: PostgreSQL still runs", what)
		}
	}

	p, reader, release := startPiped(t, true, append([]string{"CLAIM_TIMEOUT=5m"}, devEnviron...), "dev", "--dir", dir)
	p.ready(t)
	postmaster, connString := runningPG(t, dir)
	blocked, unlock := blockClaim(t, p, connString)
	release()
	_ = reader.Close()
	p.signal(syscall.SIGINT)
	p.waitRefused(t)
	unlock()
	answered(t, blocked, http.StatusCreated, true)
	p.exits(t, 0)
	waitGone(t, dir, postmaster, 0)
}

// runningPG returns the process ID of the PostgreSQL of a dev in dir, and the connection string of
// its database.
func runningPG(t *testing.T, dir string) (postmaster int, connString string) {
	t.Helper()
	lines := strings.Split(readText(t, dir, "data", "postmaster.pid"), "\n")
	postmaster, err := strconv.Atoi(lines[0])
	must(t, err)
	return postmaster, "postgres://postgres@127.0.0.1:" + lines[3] + "/" + devDatabase +
		"?sslmode=disable&passfile=" + url.PathEscape(filepath.Join(dir, "pgpass"))
}

// waitGone waits at most timeout until no process of the cluster in dir is left.
func waitGone(t *testing.T, dir string, postmaster int, timeout time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		alive := syscall.Kill(postmaster, 0)
		if !localpg.Running(dir) && errors.Is(alive, syscall.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL still runs after %s: %t, %v", timeout, localpg.Running(dir), alive)
		}
	}
}
