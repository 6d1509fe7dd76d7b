package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// misbehavingClients claims with 16 clients while others misbehave. All claims of the 16 must
// succeed.
func (b *bounds) misbehavingClients(t *testing.T) {
	b.table("Misbehaving clients", "16 connections claim, each as soon as it has its answer. All answers are 201.",
		"other clients | claims a second without them | with them | p99 | slowest")
	const slow = 500
	sendSlowly := func(head, body string) func(context.Context, string) error {
		return func(ctx context.Context, address string) error { return slowClient(ctx, address, head, body) }
	}
	for _, c := range []struct {
		others string
		count  int
		client func(ctx context.Context, address string) error
	}{
		{fmt.Sprintf("%d connections that send headers slowly, a byte every 100 ms", slow), slow,
			sendSlowly("", "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nX-Long: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n")},
		{fmt.Sprintf("%d connections that send bodies slowly, a byte every 100 ms", slow), slow,
			sendSlowly("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n", claimBody("slow", saleCoupon))},
		{fmt.Sprintf("%d idle connections", b.idle), b.idle, idleClient},
		{"50 clients that keep disconnecting in the middle of a request", 50, leavingClient},
	} {
		t.Run(c.others, func(t *testing.T) {
			database := pgtest.New(t)
			_, address := b.serve(t, b.binary, database.URL, 0)
			b.createSale(t, address)
			b.claimBeside(t, database, address, c.others, c.count, c.client, nil)
		})
	}

	// However many clients connect, enough file descriptors remain for PostgreSQL, even if it is
	// unreachable for a while at the same time. Connections that are open are served, and others
	// are accepted once those are closed.
	t.Run("out of file descriptors", func(t *testing.T) {
		const limit, toPostgreSQL = 100, 4
		database := pgtest.New(t)
		proxy, err := faultproxy.New(database.URL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
		p, address := b.serve(t, b.binary, proxy.URL(database.URL), limit, fmt.Sprint("DB_MAX_CONNS=", toPostgreSQL))
		b.createSale(t, address)
		others := fmt.Sprintf("%d idle connections to a service with %d file descriptors; then PostgreSQL is unreachable for 2 s", 3*limit, limit)
		b.claimBeside(t, database, address, others, 3*limit, idleClient, func(run *loadgen.Run) []loadgen.Report {
			const maxConns = limit - toPostgreSQL - drain.ReservedFDs
			if open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid)); err == nil && len(open) < maxConns { // Linux only
				t.Errorf("%d descriptors are open, want at least the %d of the connections: the limit was not reached", len(open), maxConns)
			}
			proxy.SetDown(true)
			time.Sleep(2 * time.Second) // net/http retries a failed Accept within a second
			proxy.SetDown(false)
			time.Sleep(boundTimeout + time.Second) // claims sent before may fail until then
			during := run.Take()
			after := b.takeAnswers(run)
			expectOnlyClaimed(t, after)
			return []loadgen.Report{during, after}
		})
		wait.For(t, "a new connection to be accepted", func() bool {
			status, _ := getOnce(p.url + "/health")
			return status == http.StatusOK
		})
	})
}

// claimBeside measures the claims of 16 clients without others, then beside count others, each of
// which calls client until the measurement ends. If then is not nil, it is called while the others
// are still connected, and returns the reports of the 16 from that time.
func (b *bounds) claimBeside(t *testing.T, database *pgtest.Database, address, others string, count int,
	client func(context.Context, string) error, then func(*loadgen.Run) []loadgen.Report,
) {
	t.Helper()
	warmUp := runClaims(t, address, 16, b.baseline)
	alone := runClaims(t, address, 16, b.baseline)
	expectOnlyClaimed(t, alone)

	// The 16 connect before the others.
	measured, stop := context.WithCancel(t.Context())
	defer stop()
	run, err := loadgen.Start(measured, loadgen.Plan{Address: address, Connections: 16, Timeout: time.Minute, Request: newUserClaim})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for range count {
		running.Go(func() {
			for ctx.Err() == nil {
				_ = client(ctx, address) // an error is expected: the connection is refused or cut off
			}
		})
	}
	connecting := b.takeAnswers(run) // while the others connect
	time.Sleep(b.duration)
	meanwhile := run.Take()
	reports := []loadgen.Report{warmUp, alone, connecting, meanwhile}
	if then != nil {
		reports = append(reports, then(run)...)
	}
	stop()
	<-run.Done()
	reports = append(reports, run.Take())
	cancel()
	running.Wait()

	expectOnlyClaimed(t, connecting)
	expectOnlyClaimed(t, meanwhile)
	slowest := time.Duration(meanwhile.Claims.Latency.Max())
	b.row(t, others, perSecond(alone), perSecond(meanwhile), meanwhile.Claims.Quantile(99), slowest)
	if slowest > boundTimeout+b.tolerance {
		t.Errorf("a claim took %s", slowest)
	}
	// No other client ever sends a whole claim.
	checkStored(t, database, reports...)
}

// takeAnswers takes the answers of the run after a moment, or later if there are none yet, which
// happens on a busy machine.
func (b *bounds) takeAnswers(run *loadgen.Run) loadgen.Report {
	for range 20 {
		time.Sleep(b.baseline)
		if report := run.Take(); report.Claims.Answered() > 0 {
			return report
		}
	}
	return run.Take()
}

// dial connects a misbehaving client. It pauses after an error.
func dial(ctx context.Context, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		pause(ctx, 100*time.Millisecond)
	}
	return conn, err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// slowClient sends head at once, then text byte by byte until the connection is cut off.
func slowClient(ctx context.Context, address, head, text string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, head); err != nil {
		return err
	}
	for i := range text {
		if _, err := conn.Write([]byte{text[i]}); err != nil {
			return err
		}
		pause(ctx, 100*time.Millisecond)
	}
	return nil
}

// idleClient sends one request, then nothing until the connection is cut off.
func idleClient(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn) // the response, then the end of the connection
	return err
}

// leavingClient sends a part of a claim and resets the connection.
func leavingClient(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	body := claimBody("leaving", saleCoupon)
	_, err = fmt.Fprintf(conn, "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2])
	pause(ctx, 5*time.Millisecond)
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return errors.Join(err, conn.Close())
}
