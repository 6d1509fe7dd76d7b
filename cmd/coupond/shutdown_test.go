package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// After SIGTERM during a sale, every request on a connection that was made before gets an answer,
// and the database has exactly the claims that were answered with 201.
func TestShutdown_losesNoRequest(t *testing.T) {
	t.Parallel()
	const amount = 1_000_000 // more than the number of claims
	database := pgtest.New(t)
	p := startProcess(t, environ(database.URL), "serve").ready(t)
	newClient(t, p.url, 1).create(t, "SALE", amount)

	var clients sync.WaitGroup
	var claimed, lost, late atomic.Int64
	var stopping atomic.Bool
	var signalled time.Time // valid when stopping
	address := strings.TrimPrefix(p.url, "http://")
	for i := range 64 {
		clients.Go(func() {
			for n := 0; !stopping.Load(); {
				conn, err := net.Dial("tcp", address)
				if stopping.Load() { // a connection made now may be accepted or not
					if err == nil {
						_ = conn.Close()
					}
					return
				}
				if err != nil {
					t.Errorf("before the signal: %v", err)
					return
				}
				for c, closes := rawhttp.New(conn), false; !closes; n++ {
					body := claimBody(fmt.Sprintf("user %d.%d", i, n), "SALE")
					sent := time.Now()
					_, err := fmt.Fprintf(c, "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
					if err == nil {
						closes, err = c.Response(http.StatusCreated)
					}
					if err != nil && stopping.Load() && sent.Sub(signalled) > drain.IdleGrace/2 {
						late.Add(1) // on a busy machine a client may be too slow for drain.IdleGrace
						break
					}
					if err != nil {
						lost.Add(1)
						t.Logf("lost: %v", err)
						break
					}
					claimed.Add(1)
				}
				_ = conn.Close()
			}
		})
	}
	wait.For(t, "a busy service", func() bool { return claimed.Load() > 1000 })
	signalled = time.Now()
	stopping.Store(true)
	p.signal(syscall.SIGTERM)
	clients.Wait()
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	t.Logf("%d claims, %d clients too late", claimed.Load(), late.Load())
	if lost.Load() != 0 {
		t.Errorf("%d requests unanswered", lost.Load())
	}

	var stored, remaining int64
	err := database.Connect(t).QueryRow(t.Context(), `
		select (select count(*) from coupond.claims), remaining_amount from coupond.coupons`).Scan(&stored, &remaining)
	if err != nil || stored != claimed.Load() || remaining != amount-stored {
		t.Errorf("%d claims were answered with 201, %d are stored, %d of %d remain, %v", claimed.Load(), stored, remaining, amount, err)
	}
	stopped := p.logged(t, "stopped")
	if counted := stopped["claims"].(map[string]any)["claimed"]; counted != float64(claimed.Load()) || stopped["requests_cut_off"] != 0.0 {
		t.Errorf("log line \"stopped\": %v; %d claims were answered with 201", stopped, claimed.Load())
	}
	if n := sessions(t, database); n != 0 {
		t.Errorf("%d database sessions of the service are left", n)
	}
}

// blockedClaim starts a service with an idle connection and a connection with a claim that is
// blocked until unlock is called.
func blockedClaim(t *testing.T, settings ...string) (p *program, idle, blocked *rawhttp.Conn, unlock func()) {
	t.Helper()
	database := pgtest.New(t)
	// The lock_timeout of a claim is 0.15 × CLAIM_TIMEOUT.
	p = startProcess(t, environ(database.URL, append(settings, "CLAIM_TIMEOUT=5m")...), "serve").ready(t)
	newClient(t, p.url, 1).create(t, "SALE", 5)
	tx, err := database.Connect(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from coupond.coupons for update`); err != nil {
		t.Fatal(err)
	}

	idle, blocked = p.dial(t), p.dial(t)
	body := claimBody("ann", "SALE")
	blocked.Send(t, fmt.Sprintf("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	watcher := database.Connect(t)
	wait.For(t, "the claim to wait for the lock", func() bool {
		var waiting bool
		err := watcher.QueryRow(t.Context(), `select exists (select from pg_locks where not granted and
			pid in (select pid from pg_stat_activity where datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
		return waiting
	})
	return p, idle, blocked, func() {
		t.Helper()
		if err := tx.Rollback(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestShutdown_order(t *testing.T) {
	t.Parallel()
	p, idle, blocked, unlock := blockedClaim(t)
	// The idle connection gets a response first, so it is a keep-alive connection like those of a
	// load balancer.
	idle.Send(t, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	if closes, err := idle.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("before the signal: closes %t, %v", closes, err)
	}

	p.signal(syscall.SIGTERM)
	p.logged(t, stoppingMessage)
	idle.Send(t, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	if closes, err := idle.Response(http.StatusServiceUnavailable); err != nil || !closes {
		t.Errorf("/health after the signal: closes %t, %v", closes, err)
	}
	stopped := time.Now()
	wait.For(t, "new connections to be refused", func() bool {
		conn, err := net.Dial("tcp", blocked.RemoteAddr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	if took := time.Since(stopped); took > 2*time.Second {
		t.Errorf("new connections were accepted for %s", took)
	}
	select {
	case <-p.exited:
		t.Fatal("the service ended before the claim was answered")
	case <-time.After(500 * time.Millisecond):
	}

	unlock()
	if closes, err := blocked.Response(http.StatusCreated); err != nil || !closes {
		t.Errorf("blocked claim: closes %t, %v", closes, err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestShutdown_timeout(t *testing.T) {
	t.Parallel()
	p, _, blocked, unlock := blockedClaim(t, "SHUTDOWN_TIMEOUT=1s")
	defer unlock()
	started := time.Now()
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	if took := time.Since(started); took < time.Second || took > 10*time.Second {
		t.Errorf("the shutdown took %s", took)
	}
	if _, err := blocked.Response(http.StatusCreated); err == nil {
		t.Error("the claim was answered while its coupon was locked")
	}
	if want := "coupond: SHUTDOWN_TIMEOUT (1s) exceeded: 1 request cut off\n"; !strings.HasSuffix(p.stderr.String(), want) {
		t.Errorf("stderr does not end with %s", want)
	}
	if cutOff := p.logged(t, "stopped")["requests_cut_off"]; cutOff != 1.0 {
		t.Errorf("requests_cut_off is %v, want 1", cutOff)
	}
}

func TestShutdown_secondSignal(t *testing.T) {
	t.Parallel()
	for _, second := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p, _, _, unlock := blockedClaim(t)
		p.signal(syscall.SIGTERM)
		p.logged(t, stoppingMessage)
		started := time.Now()
		p.signal(second)
		<-p.exited
		if took := time.Since(started); took > 5*time.Second || p.code != -1 {
			t.Errorf("%s as the second signal: ended after %s with exit code %d", second, took, p.code)
		}
		unlock()
	}
}

// The service ends with an error if its listener fails.
func TestShutdown_failedListener(t *testing.T) {
	t.Parallel()
	var config serveConfig
	if err := load(environment{"DATABASE_URL": "postgres://me@host/db"}, &config); err != nil {
		t.Fatal(err)
	}
	listener, err := listenAt(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var text syncBuffer
	out := newOutput(&text)
	defer out.close()
	log, err := newLogger(out, &config.Log)
	if err != nil {
		t.Fatal(err)
	}
	s := service{config: config.Service, database: "postgres://127.0.0.1:1/db", listener: listener, log: log, output: out}
	ended := make(chan error)
	go func() { ended <- s.run(t.Context()) }()
	wait.For(t, "the service to listen", func() bool { return strings.Contains(text.String(), "listening") })
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "no longer listening on "+listener.Addr().String()) {
			t.Errorf("the service ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the service did not end")
	}
}

// A database that does not answer does not delay the shutdown.
func TestShutdown_unresponsiveDatabase(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections wait in its accept queue and get no response
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	p := startProcess(t, environ("postgres://me:"+testPassword+"@"+silent.Addr().String()+"/db", "SHUTDOWN_TIMEOUT=10s"), "serve").listening(t)
	c := newClient(t, p.url, 1)
	waitUnhealthy(t, c, "the database does not answer")
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
}

// Not parallel, because goroutines of other tests would count as leaks.
func TestShutdown_leavesNoGoroutine(t *testing.T) {
	database := pgtest.New(t)
	before := goleak.IgnoreCurrent()
	p := start(t, environ(database.URL), "serve").ready(t)
	c := newClient(t, p.url, 4)
	c.create(t, "SALE", 5)
	claimAll(t, slices.Repeat([]claimRequest{{user: "ann", coupon: "SALE"}}, 20), 4, c)
	c.get(t, "SALE")
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// sessions returns the number of database sessions of the service. It waits up to 2 s for sessions
// that are ending.
func sessions(t *testing.T, database *pgtest.Database) int {
	t.Helper()
	conn := database.Connect(t)
	n := 0
	for range 100 {
		err := conn.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and application_name = 'coupond'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return n
}
