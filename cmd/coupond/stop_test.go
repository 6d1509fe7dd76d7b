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

// SIGTERM in the middle of a sale: whoever was in before it gets his answer, and the database has exactly the claims that were
// answered with 201.
func TestStopLosesNoRequest(t *testing.T) {
	t.Parallel()
	const amount = 1_000_000 // nobody is told that it is sold out
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
				if stopping.Load() { // who comes now may be let in or not
					if err == nil {
						_ = conn.Close()
					}
					return
				}
				if err != nil {
					t.Errorf("before the signal: %v", err)
					return
				}
				for g, closes := rawhttp.New(conn), false; !closes; n++ {
					body := claimBody(fmt.Sprintf("user %d.%d", i, n), "SALE")
					sent := time.Now()
					_, err := fmt.Fprintf(g, "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
					if err == nil {
						closes, err = g.Response(http.StatusCreated)
					}
					if err != nil && stopping.Load() && sent.Sub(signalled) > drain.IdleGrace/2 {
						late.Add(1) // on a busy machine a client may be too slow for the grace
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
		t.Errorf("%d requests have no answer", lost.Load())
	}

	var stored, remaining int64
	err := database.Connect(t).QueryRow(t.Context(), `
		select (select count(*) from public.claims), remaining_amount from public.coupons`).Scan(&stored, &remaining)
	if err != nil || stored != claimed.Load() || remaining != amount-stored {
		t.Errorf("%d claims were answered, %d are stored, %d of %d remain, %v", claimed.Load(), stored, remaining, amount, err)
	}
	summary := p.logged(t, "stopped")
	if counted := summary["claims"].(map[string]any)["claimed"]; counted != float64(claimed.Load()) || summary["requests_cut"] != 0.0 {
		t.Errorf("the summary says %v, %d claims were answered", summary, claimed.Load())
	}
	if n := sessions(t, database); n != 0 {
		t.Errorf("%d sessions of the service are left", n)
	}
}

// heldClaim is a service with one claim under way that cannot be answered before release is called, and an idle connection.
func heldClaim(t *testing.T, environs ...string) (p *program, idle, held *rawhttp.Conn, release func()) {
	t.Helper()
	database := pgtest.New(t)
	// The claim waits for the lock on its coupon for a fifth of CLAIM_TIMEOUT.
	p = startProcess(t, environ(database.URL, append(environs, "CLAIM_TIMEOUT=5m")...), "serve").ready(t)
	newClient(t, p.url, 1).create(t, "SALE", 5)
	tx, err := database.Connect(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `select from public.coupons for update`); err != nil {
		t.Fatal(err)
	}

	address, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	idle, held = rawhttp.Dial(t, address), rawhttp.Dial(t, address)
	body := claimBody("ann", "SALE")
	held.Send(t, fmt.Sprintf("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
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
	return p, idle, held, func() {
		t.Helper()
		if err := tx.Rollback(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestStopInItsOrder(t *testing.T) {
	t.Parallel()
	p, idle, held, release := heldClaim(t)
	// The idle connection has had an answer, so that it is a keep-alive connection like those of a load balancer.
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
	wait.For(t, "the door to close", func() bool {
		conn, err := net.Dial("tcp", held.RemoteAddr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	if took := time.Since(stopped); took > 2*time.Second {
		t.Errorf("newcomers were let in for %s", took)
	}
	select {
	case <-p.exited:
		t.Fatal("it ended with a request unanswered")
	case <-time.After(500 * time.Millisecond):
	}

	release()
	if closes, err := held.Response(http.StatusCreated); err != nil || !closes {
		t.Errorf("the claim: closes %t, %v", closes, err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestStopCutsAtShutdownTimeout(t *testing.T) {
	t.Parallel()
	p, _, held, release := heldClaim(t, "SHUTDOWN_TIMEOUT=1s")
	defer release()
	started := time.Now()
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	if took := time.Since(started); took < time.Second || took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := held.Response(http.StatusCreated); err == nil {
		t.Error("the claim was answered, though its coupon is locked")
	}
	if want := "coupond: cut off after SHUTDOWN_TIMEOUT (1s): 1 request without a whole answer\n"; !strings.HasSuffix(p.stderr.String(), want) {
		t.Errorf("it does not say at the end: %s", want)
	}
	if cut := p.logged(t, "stopped")["requests_cut"]; cut != 1.0 {
		t.Errorf("the summary says %v requests were cut", cut)
	}
}

func TestStopAtOnceAtTheSecondSignal(t *testing.T) {
	t.Parallel()
	for _, second := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p, _, _, release := heldClaim(t)
		p.signal(syscall.SIGTERM)
		p.logged(t, stoppingMessage)
		started := time.Now()
		p.signal(second)
		<-p.exited
		if took := time.Since(started); took > 5*time.Second || p.code != -1 {
			t.Errorf("%s after the first signal: it took %s, exit code %d", second, took, p.code)
		}
		release()
	}
}

// A listener that breaks ends the service: nobody could reach it any more.
func TestStopWhenTheListenerBreaks(t *testing.T) {
	t.Parallel()
	var config serveConfig
	if err := load(environment{}, &config); err != nil {
		t.Fatal(err)
	}
	listener, err := listenAt(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var text journal
	log, err := newLogger(&text, &config.Log)
	if err != nil {
		t.Fatal(err)
	}
	s := service{config: config.Service, database: "postgres://127.0.0.1:1/db", listener: listener, log: log}
	ended := make(chan error)
	go func() { ended <- s.run(t.Context()) }()
	wait.For(t, "the service", func() bool { return strings.Contains(text.String(), "listening") })
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "cannot listen on "+listener.Addr().String()+" any more") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it did not end")
	}
}

// A database that has stopped to answer keeps nobody from stopping.
func TestStopWithoutADatabase(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections into its queue, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	p := startProcess(t, environ("postgres://me:"+marker+"@"+silent.Addr().String()+"/db", "SHUTDOWN_TIMEOUT=10s"), "serve").listening(t)
	c := newClient(t, p.url, 1)
	unhealthy(t, c, "the database does not answer")
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.stderr.String())
	}
}

// Not parallel: goroutines belong to nobody, so nobody else's may be running.
func TestStopLeavesNoGoroutine(t *testing.T) {
	database := pgtest.New(t)
	before := goleak.IgnoreCurrent()
	p := start(t, environ(database.URL), "serve").ready(t)
	c := newClient(t, p.url, 4)
	c.create(t, "SALE", 5)
	rush(t, slices.Repeat([]order{{user: "ann", coupon: "SALE"}}, 20), 4, c)
	c.get(t, "SALE")
	p.signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

// sessions counts the service's sessions, once those that are about to end have ended.
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
