package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// After SIGTERM during a sale, every request on a connection that was made before gets an answer,
// and the database has exactly the claims that were answered with 201.
func TestShutdown_losesNoRequest(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	p := startProcess(t, environ(database.URL), "serve").ready(t)
	p.client(t).create(t, saleCoupon, 1<<30)
	l := startLoad(t, 64, p)
	for range 10 {
		l.progress(t)
	}
	l.balance(nil)
	p.stop(t, syscall.SIGTERM)
	conn := database.Connect(t)
	wait.For(t, "the end of the database sessions", func() bool {
		var n int
		err := conn.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and application_name = 'coupond'`).Scan(&n)
		return err == nil && n == 0
	})
	claimed := l.end(t, start(t, environ(database.URL), "serve").ready(t))
	stopped := p.logged(t, "stopped")
	if counted := stopped["claims"].(map[string]any)["claimed"]; counted != float64(claimed) || stopped["requests_cut_off"] != 0.0 {
		t.Errorf("log line \"stopped\": %v; %d claims were answered with 201", stopped, claimed)
	}
}

// blockClaim creates a coupon and sends a claim of it, which waits for the coupon's lock until
// unlock is called.
func blockClaim(t *testing.T, p *program, connString string) (blocked *rawhttp.Conn, unlock func()) {
	t.Helper()
	p.client(t).create(t, "SALE", 5)
	holder, watcher := connectTo(t, connString), connectTo(t, connString)
	mustExec(t, holder, `begin; select from coupond.coupons for update`)
	blocked = p.dial(t)
	blocked.Send(t, rawClaim("ann"))
	wait.For(t, "the claim to wait for the lock", func() bool {
		var waiting bool
		err := watcher.QueryRow(t.Context(), `select exists (select from pg_locks where not granted and
			pid in (select pid from pg_stat_activity where datname = current_database()))`).Scan(&waiting)
		must(t, err)
		return waiting
	})
	return blocked, func() {
		t.Helper()
		if _, err := holder.Exec(context.Background(), `rollback`); err != nil {
			t.Error(err)
		}
	}
}

// blockedService starts a service in a process of its own, with a claim as by blockClaim.
func blockedService(t *testing.T, settings ...string) (p *program, blocked *rawhttp.Conn, unlock func()) {
	t.Helper()
	database := pgtest.New(t)
	// The lock_timeout of a claim is 0.15 × CLAIM_TIMEOUT.
	p = startProcess(t, environ(database.URL, append(settings, "CLAIM_TIMEOUT=5m")...), "serve").ready(t)
	blocked, unlock = blockClaim(t, p, database.URL)
	return p, blocked, unlock
}

// rawClaim returns the bytes of a claim of coupon SALE.
func rawClaim(user string) string {
	body := claimBody(user, saleCoupon)
	return claimHead(len(body)) + body
}

const rawHealth = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

// answered reads a response, and expects this status and whether the service closes the connection
// afterwards.
func answered(t *testing.T, conn *rawhttp.Conn, status int, closes bool) {
	t.Helper()
	if got, err := conn.Response(status); err != nil || got != closes {
		t.Fatalf("closes %t, want %t; %v", got, closes, err)
	}
}

// waitRefused waits until the service accepts no new connections.
func (p *program) waitRefused(t *testing.T) {
	t.Helper()
	wait.For(t, "new connections to be refused", func() bool {
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

// Closing a terminal sends SIGHUP twice. The first starts a graceful shutdown, the second does
// nothing.
func TestShutdown_order(t *testing.T) {
	t.Parallel()
	// Under nohup, a process that this test starts would ignore SIGHUP, unless the test catches it.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	p, blocked, unlock := blockedService(t)
	// The idle connection gets a response first, so it is a keep-alive connection like those of a
	// load balancer.
	idle := p.dial(t)
	idle.Send(t, rawHealth)
	answered(t, idle, http.StatusOK, false)

	p.signal(syscall.SIGHUP)
	if cause := p.logged(t, stoppingMessage)["cause"]; cause != "hangup signal received" {
		t.Errorf("cause: %v", cause)
	}
	p.signal(syscall.SIGHUP)
	idle.Send(t, rawHealth)
	answered(t, idle, http.StatusServiceUnavailable, true)
	p.waitRefused(t)
	if p.hasEnded() {
		t.Fatal("the service ended before the claim was answered")
	}

	unlock()
	answered(t, blocked, http.StatusCreated, true)
	p.exits(t, 0)
}

func TestShutdown_timeout(t *testing.T) {
	t.Parallel()
	p, blocked, unlock := blockedService(t, "SHUTDOWN_TIMEOUT=1s")
	defer unlock()
	started := time.Now()
	p.signal(syscall.SIGTERM)
	p.exits(t, exitFailure)
	if took := time.Since(started); took < time.Second {
		t.Errorf("the shutdown took %s", took)
	}
	if _, err := blocked.Response(http.StatusCreated); err == nil {
		t.Error("the claim was answered while its coupon was locked")
	}
	if want := "coupond: SHUTDOWN_TIMEOUT (1s) exceeded: 1 request(s) cut off\n"; !strings.HasSuffix(p.stderr.String(), want) {
		t.Errorf("stderr does not end with %s", want)
	}
	if cutOff := p.logged(t, "stopped")["requests_cut_off"]; cutOff != 1.0 {
		t.Errorf("requests_cut_off is %v, want 1", cutOff)
	}
}

func TestShutdown_secondSignal(t *testing.T) {
	t.Parallel()
	for _, second := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p, _, unlock := blockedService(t)
		p.signal(syscall.SIGTERM)
		p.logged(t, stoppingMessage)
		p.signal(second)
		p.exits(t, -1)
		unlock()
	}
}

// Under nohup, SIGHUP does nothing.
func TestServe_nohup(t *testing.T) {
	t.Parallel()
	p := startCommand(t, environ(pgtest.New(t).URL), fromShell(thisBinary(t, "serve"), `trap "" HUP`)).ready(t)
	c := p.client(t)
	p.signal(syscall.SIGHUP)
	for i := range 20 {
		c.create(t, fmt.Sprint("SALE ", i), 5)
	}
	p.stop(t, syscall.SIGTERM)
	if cause := p.logged(t, stoppingMessage)["cause"]; cause != "terminated signal received" {
		t.Errorf("cause: %v", cause)
	}
}

// The service ends with an error if its listener fails.
func TestShutdown_failedListener(t *testing.T) {
	t.Parallel()
	var text syncBuffer
	out := newOutput(&text)
	defer out.close()
	settings := serviceSettings{DBMaxConns: 1, ClaimConcurrency: 1, ClaimQueue: 1, ClaimTimeout: time.Second, ShutdownTimeout: time.Second, LogLevel: "info", LogFormat: "json"}
	s, err := newService(t.Context(), "127.0.0.1:0", &settings, out)
	must(t, err)
	s.database = "postgres://127.0.0.1:1/db"
	ended := make(chan error, 1)
	go func() { ended <- s.run(t.Context()) }()
	wait.For(t, "the service to listen", func() bool { return strings.Contains(text.String(), "listening") })
	must(t, s.listener.Close())
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "no longer listening on "+s.listener.Addr().String()) {
		t.Errorf("the service ended with %v", err)
	}
}

// A database that does not answer does not delay the shutdown.
func TestShutdown_unresponsiveDatabase(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections wait in its accept queue and get no response
	must(t, err)
	defer func() { _ = silent.Close() }()
	p := start(t, environ("postgres://me:"+testPassword+"@"+silent.Addr().String()+"/db", "SHUTDOWN_TIMEOUT=10s"), "serve").listening(t)
	waitUnhealthy(t, p.client(t), "the database does not answer")
	p.stop(t, syscall.SIGTERM)
}

// Not parallel, because goroutines of other tests would count as leaks.
func TestShutdown_leavesNoGoroutine(t *testing.T) {
	database := pgtest.New(t)
	before := goleak.IgnoreCurrent()
	p := start(t, environ(database.URL), "serve").ready(t)
	sell(t, 5, 20, 4, claimsOf(rangeOf(20)), p)
	p.stop(t, syscall.SIGTERM)
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// An idle connection is closed after IDLE_TIMEOUT, not before.
func TestServe_idleTimeout(t *testing.T) {
	t.Parallel()
	const idle = time.Second // the shortest allowed; the default is 2m
	p, _ := serve(t, "IDLE_TIMEOUT="+idle.String())
	conn := p.dial(t)
	sent := time.Now()
	conn.Send(t, rawHealth)
	answered(t, conn, http.StatusOK, false)
	must(t, conn.SetReadDeadline(sent.Add(time.Minute)))
	if _, err := conn.R.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want the end of the connection", err)
	}
	if took := time.Since(sent); took < idle {
		t.Errorf("closed after %s", took)
	}
}

// connectTo opens a connection to a database that is closed when the test ends.
func connectTo(t *testing.T, connString string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), connString)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}
