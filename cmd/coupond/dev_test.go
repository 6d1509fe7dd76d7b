package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// devEnviron is the environment of a coupond dev on a free port. dev ignores DATABASE_URL.
var devEnviron = []string{"LISTEN_ADDR=127.0.0.1:0", "DATABASE_URL=postgres://me:" + testPassword + "@nowhere.invalid/db"}

// sh runs a shell command and returns its stdout.
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

// The suggested commands work, the data survive a restart, and a second dev in the same directory
// names the first one.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev's own")
	p := startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	curl, psql := suggested(t, p)
	if len(curl) != 3 {
		t.Fatalf("%d curl commands, want 3: %s", len(curl), p.stdout.String())
	}
	for i, want := range []string{"HTTP/1.1 201 Created\r\n", "201\n", `{"name":"early bird","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`} {
		if got := sh(t, curl[i]); !strings.Contains(got, want) {
			t.Errorf("%s\ngot %s\nwant %s", curl[i], got, want)
		}
	}
	if got := sh(t, psql); got != "already_claimed\nearly bird|1|ada\n" {
		t.Errorf("%s\ngot %s", psql, got)
	}

	second := startProcess(t, devEnviron, "dev", "--dir", dir)
	code := second.wait(t)
	want := fmt.Sprintf("coupond: coupond dev is already running in %s: process %d, %s\n", dir, p.pid, p.url)
	if code != exitFailure || second.stderr.String() != want || second.stdout.String() != "" {
		t.Errorf("second dev: exit code %d, %s\nwant %s", code, second.stderr.String(), want)
	}

	// The script that `make psql` runs.
	script := filepath.Join(dir, "psql")
	if got := sh(t, shellQuote(script)+` -Atc 'select count(*) from claims'`); got != "1\n" {
		t.Errorf("%s prints %q", script, got)
	}
	if mode := fileMode(t, script); mode != 0o700 {
		t.Errorf("%s has mode %o", script, mode)
	}
	postmaster := runningPG(t, dir).Pid()

	p.signal(syscall.SIGINT)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
	waitGone(t, dir, postmaster, 0)
	if _, err := os.Stat(script); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was not removed: %v", script, err)
	}

	p = startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	if s := newClient(t, p.url, 1).get(t, "early bird"); s.RemainingAmount != 1 || strings.Join(s.ClaimedBy, " ") != "ada" {
		t.Errorf("coupon after the restart: %+v", s)
	}
	if strings.Contains(p.stderr.String(), "creating a PostgreSQL") {
		t.Error("the restart created a new cluster")
	}
}

// The suggested commands are in the README's session.
func TestFirstSteps_areTheReadmes(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	session := strings.ReplaceAll(string(readme), "\\\n    ", "")
	commands := 0
	for line := range strings.Lines(firstSteps("http://127.0.0.1:8080", ".coupond", ".coupond/psql")) {
		command := strings.TrimSuffix(strings.TrimSpace(line), ";")
		if !strings.HasPrefix(line, "  ") || command == ".coupond/psql" {
			continue
		}
		commands++
		if !strings.Contains(session, command) {
			t.Errorf("not in README.md: %s", command)
		}
	}
	if commands != 5 {
		t.Errorf("%d commands", commands)
	}
}

// dev and its psql script reach their own database whatever the shell says.
func TestDev_ignoresLibpqEnvironment(t *testing.T) {
	t.Parallel()
	variables := []string{
		"PGAPPNAME=other", "PGCHANNELBINDING=require", "PGCLIENTENCODING=LATIN1", "PGCONNECT_TIMEOUT=soon", "PGDATABASE=nowhere",
		"PGDATESTYLE=German", "PGGSSENCMODE=require", "PGHOST=nowhere.invalid", "PGHOSTADDR=192.0.2.1", "PGMAXPROTOCOLVERSION=2",
		"PGMINPROTOCOLVERSION=9", "PGOPTIONS=-c search_path=pg_catalog -c default_transaction_read_only=on", "PGPASSFILE=/nowhere",
		"PGPASSWORD=wrong", "PGPORT=1", "PGREQUIREAUTH=none", "PGREQUIREPEER=another", "PGSERVICE=nowhere", "PGSERVICEFILE=/nowhere",
		"PGSSLCERT=/nowhere", "PGSSLCERTMODE=require", "PGSSLKEY=/nowhere", "PGSSLMODE=verify-full", "PGSSLNEGOTIATION=direct",
		"PGSSLROOTCERT=/nowhere", "PGTARGETSESSIONATTRS=standby", "PGTZ=Mars/Phobos", "PGUSER=another",
	}
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	p := startProcess(t, append(slices.Clone(devEnviron), variables...), "dev", "--dir", dir).ready(t)
	c := newClient(t, p.url, 1)
	c.create(t, "early bird", 100)
	if a, err := c.claim("ada", "early bird"); err != nil || a.status != 201 {
		t.Errorf("claim: %+v %v", a, err)
	}

	wait.For(t, "the psql script", func() bool { return strings.Contains(p.stdout.String(), "/psql\n") })
	script := shellQuote(filepath.Join(dir, "psql")) + ` -XAt -c "select claim_coupon('ada', 'early bird')"` +
		` -c "select current_user, current_database(), current_setting('transaction_read_only'), current_setting('client_encoding'), current_setting('DateStyle')"`
	const want = "already_claimed\ncoupond|coupond|off|UTF8|ISO, MDY\n"
	for _, environment := range append(slices.Clone(variables), strings.Join(variables, "\n")) {
		words := "env"
		for variable := range strings.SplitSeq(environment, "\n") {
			words += " " + shellQuote(variable)
		}
		if got := sh(t, words+" "+script); got != want {
			t.Errorf("%s: psql prints %q, want %q", environment, got, want)
		}
	}
}

// dev gives the password to no server that asks for it in clear: once PostgreSQL has ended, another
// user may listen on its port.
func TestDev_asksForSCRAM(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	p := startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
	conn := connectTo(t, runningPG(t, dir).URL(devDatabase))
	hba := filepath.Join(dir, "data", "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("host all all 127.0.0.1/32 password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"select pg_reload_conf()",
		"select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = 'coupond'",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	connectTo(t, runningPG(t, dir).URL(devDatabase)) // a client that does not mind
	c := newClient(t, p.url, 1)
	wait.For(t, "the service to be unhealthy", func() bool { return c.must(t, "GET", "/health", "").status == 503 })
	if a, err := c.claim("ann", "SALE"); err != nil || a.code != "UNAVAILABLE" {
		t.Errorf("claim: %+v %v", a, err)
	}
}

// By default, dev listens on this machine only.
func TestDev_listensOnLoopback(t *testing.T) {
	t.Parallel()
	var config devConfig
	if err := load(environment{}, &config); err != nil {
		t.Fatal(err)
	}
	if config.Listen.Addr != "127.0.0.1:8080" {
		t.Errorf("listens on %s", config.Listen.Addr)
	}
}

// Root may run dev in a directory of another user. It follows no link there.
func TestDev_followsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target := writeFile(t, "content")
	if err := os.Symlink(target, filepath.Join(dir, "dev")); err != nil {
		t.Fatal(err)
	}
	expect(t, exitFailure, "too many levels of symbolic links", devEnviron, "dev", "--dir", dir)
	if content, err := os.ReadFile(target); err != nil || string(content) != "content" {
		t.Errorf("the target of the link has %q, %v", content, err)
	}
}

// The data of an earlier version, with the database coupons, are refused and not changed.
func TestDev_refusesEarlierData(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev's own")
	server, err := localpg.Start(t.Context(), localpg.Options{Dir: dir, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), "create database coupons")
	if err := errors.Join(err, conn.Close(t.Context()), server.Stop()); err != nil {
		t.Fatal(err)
	}
	want := "the data in " + dir + " are those of an earlier version of coupond, which this version cannot use:" +
		" to start with an empty database, remove the directory (rm -r " + shellQuote(dir) + ")"
	for range 2 {
		expect(t, exitFailure, want, devEnviron, "dev", "--dir", dir)
	}
}

// However dev ends, no process of PostgreSQL is left, and the next start has every claim that was
// answered.
func TestDev_leavesNoProcess(t *testing.T) {
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
			t.Errorf("claim: %+v %v", a, err)
		}
		postmaster := runningPG(t, dir).Pid()
		p.signal(signal)
		p.wait(t)
		if signal == syscall.SIGKILL {
			waitGone(t, dir, postmaster, 20*time.Second) // the watchdog shuts PostgreSQL down
		} else {
			waitGone(t, dir, postmaster, 0)
		}
	}
}

// If PostgreSQL is stopped from outside, dev ends and names the cause.
func TestDev_endsWithItsPostgreSQL(t *testing.T) {
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
		t.Errorf("the log names the cause %q", cause)
	}
	if last := p.stderr.String(); !strings.Contains(last[strings.LastIndex(last, `"message":"stopped"`):], "coupond: localpg: ") {
		t.Errorf("stderr ends with %s", shortened(last))
	}
}

// Ctrl-C during startup stops what has been started.
func TestDev_interruptedDuringStartup(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		dir := filepath.Join(pgtest.ClusterDir(t), "dev")
		p := startProcess(t, devEnviron, "dev", "--dir", dir)
		time.Sleep(delay)
		p.signal(syscall.SIGINT)
		p.wait(t)
		if _, err := localpg.Running(dir); !errors.Is(err, localpg.ErrNotRunning) {
			t.Errorf("interrupted after %s: PostgreSQL still runs: %v", delay, err)
		}
		// The next start succeeds.
		p = startProcess(t, devEnviron, "dev", "--dir", dir).ready(t)
		p.signal(syscall.SIGINT)
		if code := p.wait(t); code != 0 {
			t.Errorf("start after an interruption at %s: exit code %d, %s", delay, code, p.stderr.String())
		}
	}
}

// A port in use is detected before PostgreSQL is started.
func TestDev_portInUse(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	address := listener.Addr().String()
	dir := filepath.Join(pgtest.ClusterDir(t), "dev")
	expect(t, exitFailure, "cannot listen on "+address+": address already in use", []string{"LISTEN_ADDR=" + address}, "dev", "--dir", dir)
	if _, err := os.Stat(filepath.Join(dir, "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a cluster was created: %v", err)
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

// waitGone waits at most timeout until no process of the cluster in dir is left.
func waitGone(t *testing.T, dir string, postmaster int, timeout time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		_, running := localpg.Running(dir)
		alive := syscall.Kill(postmaster, 0)
		if errors.Is(running, localpg.ErrNotRunning) && errors.Is(alive, syscall.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("PostgreSQL still runs after %s: %v, %v", timeout, running, alive)
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
