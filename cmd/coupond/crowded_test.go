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
	"sync/atomic"
	"testing"
	"time"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/drain"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// crowded lets 16 clients claim beside others who misbehave: those 16 are all to be served.
func (b *bounds) crowded(t *testing.T) {
	b.table("Beside clients who misbehave", "16 connections claim, each as soon as it has its answer; all were told 201.",
		"the others | claims a second alone | meanwhile | p99 | slowest")
	const slow = 500
	drip := func(head, body string) func(context.Context, string) error {
		return func(ctx context.Context, address string) error { return dripping(ctx, address, head, body) }
	}
	for _, c := range []struct {
		who    string
		many   int
		behave func(ctx context.Context, address string) error
	}{
		{fmt.Sprintf("%d connections whose headers drip, a byte every 100 ms", slow), slow,
			drip("", "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nX-Long: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n")},
		{fmt.Sprintf("%d connections whose bodies drip, a byte every 100 ms", slow), slow,
			drip("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n", claimBody("slow", sold))},
		{fmt.Sprintf("%d idle connections", b.idle), b.idle, idling},
		{"50 clients who leave in the middle of a request, again and again", 50, leaving},
	} {
		t.Run(c.who, func(t *testing.T) {
			database := pgtest.New(t)
			_, address := b.serve(t, b.binary, database.URL, 0)
			b.sell(t, address)
			b.beside(t, database, address, c.who, c.many, c.behave, nil)
		})
	}

	// A crowd gets no more descriptors than leave some for PostgreSQL, which may be away for a while at the worst moment. Who is in
	// already is served, and whoever waits is let in as soon as others go.
	t.Run("out of file descriptors", func(t *testing.T) {
		const limit, toPostgreSQL = 100, 4
		database := pgtest.New(t)
		proxy, err := faultproxy.New(database.URL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proxy.Close)
		p, address := b.serve(t, b.binary, proxy.URL(database.URL), limit, fmt.Sprint("DB_MAX_CONNS=", toPostgreSQL))
		b.sell(t, address)
		who := fmt.Sprintf("%d idle connections to a service that may have %d file descriptors; then PostgreSQL is away for 2 s", 3*limit, limit)
		b.beside(t, database, address, who, 3*limit, idling, func(run *loadgen.Run) []loadgen.Report {
			const taken = limit - toPostgreSQL - drain.ReservedFDs
			if open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid)); err == nil && len(open) < taken { // Linux only
				t.Errorf("it has %d descriptors, and %d connections may be open: this proves nothing", len(open), taken)
			}
			proxy.SetDown(true)
			time.Sleep(2 * time.Second) // net/http tries within a second whether a descriptor is free
			proxy.SetDown(false)
			time.Sleep(boundTimeout + time.Second) // who asked before may be refused until then
			lost := run.Take()
			again := b.answers(run)
			onlyClaimed(t, again)
			return []loadgen.Report{lost, again}
		})
		wait.For(t, "newcomers to be let in", func() bool {
			status, _ := probe(p.url + "/health")
			return status == http.StatusOK
		})
	})
}

// beside measures the claims of the 16 alone, then beside many others. then, if any, is called while these are still there, and
// returns what the 16 were told meanwhile.
func (b *bounds) beside(t *testing.T, database *pgtest.Database, address, who string, many int,
	behave func(context.Context, string) error, then func(*loadgen.Run) []loadgen.Report,
) {
	t.Helper()
	warm := claims(t, address, 16, b.calm)
	alone := claims(t, address, 16, b.calm)
	onlyClaimed(t, alone)

	// The 16 are connected before the others come.
	measured, stop := context.WithCancel(t.Context())
	defer stop()
	run, err := loadgen.Start(measured, loadgen.Plan{Address: address, Connections: 16, Timeout: time.Minute, Request: newcomer})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var others sync.WaitGroup
	var left atomic.Int64
	for range many {
		others.Go(func() {
			for ctx.Err() == nil {
				if err := behave(ctx, address); err != nil && ctx.Err() == nil {
					left.Add(1) // refused, or cut off, as it should be
				}
			}
		})
	}
	arriving := b.answers(run) // while the others come
	time.Sleep(b.duration)
	meanwhile := run.Take()
	reports := []loadgen.Report{warm, alone, arriving, meanwhile}
	if then != nil {
		reports = append(reports, then(run)...)
	}
	stop()
	<-run.Done()
	reports = append(reports, run.Take())
	cancel()
	others.Wait()

	onlyClaimed(t, arriving)
	onlyClaimed(t, meanwhile)
	slowest := time.Duration(meanwhile.Claims.Latency.Max())
	b.row(t, who, perSecond(alone), perSecond(meanwhile), meanwhile.Claims.Quantile(99), slowest)
	if slowest > boundTimeout+b.grace {
		t.Errorf("a claim took %s", slowest)
	}
	// Nobody of the others has ever sent a whole claim.
	stored(t, database, reports...)
}

// answers lets the run go on for a moment, and on a busy machine, where nobody may have had his answer by then, for some more.
func (b *bounds) answers(run *loadgen.Run) loadgen.Report {
	for range 20 {
		time.Sleep(b.calm)
		if report := run.Take(); report.Claims.Answered() > 0 {
			return report
		}
	}
	return run.Take()
}

// arrive makes a connection for one who misbehaves.
func arrive(ctx context.Context, address string) (net.Conn, error) {
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

// dripping sends the head at once, and the text byte by byte until it is cut off.
func dripping(ctx context.Context, address, head, text string) error {
	conn, err := arrive(ctx, address)
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

// idling asks once, keeps the connection and says no more until it is cut off.
func idling(ctx context.Context, address string) error {
	conn, err := arrive(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer unhook()
	if _, err := io.WriteString(conn, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn) // the answer, then silence
	return err
}

// leaving sends a part of a claim and resets the connection.
func leaving(ctx context.Context, address string) error {
	conn, err := arrive(ctx, address)
	if err != nil {
		return err
	}
	body := claimBody("leaving", sold)
	_, err = fmt.Fprintf(conn, "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2])
	pause(ctx, 5*time.Millisecond)
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return errors.Join(err, conn.Close())
}
