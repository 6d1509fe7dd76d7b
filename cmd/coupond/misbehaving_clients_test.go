package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/procmem"
	"scalable-coupon-system/internal/wait"
)

// badClients are clients that misbehave in one way.
type badClients struct {
	name   string
	count  int
	client func(context.Context, *net.TCPConn) // called again, with a new connection, whenever it returns
	begun  func() bool                         // reports whether all of them misbehave; nil: soon enough
}

// misbehavingClients claims with 16 clients while others misbehave. All claims of the 16 must
// succeed, and the service must not use more memory than a container of 512 MiB has.
func (b *bounds) misbehavingClients(t *testing.T) {
	const slow, readers = 500, 60
	longest := strings.Repeat(`\ud83c\udf9f`, 255) // a character that is two escapes
	unread := &slowReaders{}
	for _, c := range []badClients{
		{name: fmt.Sprintf("%d connections that send headers slowly, a byte every 100 ms", slow), count: slow, client: slowClient("",
			"POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nX-Long: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n")},
		{name: fmt.Sprintf("%d connections that send bodies slowly, a byte every 100 ms", slow), count: slow,
			client: slowClient(claimHead(10000), claimBody("slow", saleCoupon))},
		{name: fmt.Sprintf("%d connections that send 64 KiB of a claim, but not its last byte", b.writers), count: b.writers,
			client: almostClient(strings.Repeat(" ", 64<<10))},
		{name: fmt.Sprintf("%d connections that send a claim of two longest names, but not its last byte", b.writers), count: b.writers,
			client: almostClient(`{"user_id":"` + longest + `","coupon_name":"` + longest + `"}`)},
		{name: fmt.Sprintf("%d connections that do not read a coupon with 10,000 users of the longest ids", readers), count: readers,
			client: unread.read, begun: func() bool { return unread.begun.Load() >= readers }},
		{name: fmt.Sprintf("%d idle connections", b.idle), count: b.idle, client: idleClient},
		{name: "50 clients that keep disconnecting in the middle of a request", count: 50, client: leavingClient},
	} {
		b.run(t, c.name, func(t *testing.T) {
			database := pgtest.New(t)
			// The longest ids, also in JSON. The answer has 15 MB.
			insertCoupon(t, database, unreadCoupon, 10_000, 10_000, `rpad(n::text, 255, E'\u0001')`)
			b.claimBeside(t, b.serveSale(t, database.URL, procmem.GoLimit, longTimeout), c)
		})
	}
}

// claimBeside measures the claims of 16 clients, first without others and then beside others, and
// the memory of the service.
func (b *bounds) claimBeside(t *testing.T, p *program, others badClients) {
	t.Helper()
	warmUp := runClaims(t, p, 16, b.baseline)
	alone := runClaims(t, p, 16, b.baseline)
	expectOnly(t, alone, loadgen.Claimed)
	_, highest := watchMemory(t, p)

	// The 16 connect before the others.
	measured, stop := context.WithCancel(t.Context())
	defer stop()
	run := startClaims(measured, t, p, 16)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for range others.count {
		running.Go(func() {
			for ctx.Err() == nil {
				misbehave(ctx, p, others.client)
			}
		})
	}
	connecting := b.takeAnswers(run) // while the others connect
	if others.begun != nil {
		wait.For(t, others.name, others.begun)
		beginning := b.takeAnswers(run)
		expectOnly(t, beginning, loadgen.Claimed)
		connecting.Add(beginning)
	}
	time.Sleep(b.duration)
	meanwhile := b.takeAnswers(run)
	most := highest() + sendBuffers(t, p.address)
	stop()
	<-run.Done()
	cancel()
	running.Wait()

	expectOnly(t, connecting, loadgen.Claimed)
	expectOnly(t, meanwhile, loadgen.Claimed)
	slowest := meanwhile.Quantile(100)
	t.Logf("%.0f claims a second alone, %.0f beside the others; p99 %s, slowest %s; at most %.0f MiB",
		perSecond(alone), perSecond(meanwhile), meanwhile.Quantile(99), slowest, mib(most))
	if slowest > boundTimeout+b.tolerance {
		t.Errorf("a claim took %s", slowest)
	}
	if most > procmem.Limit {
		t.Errorf("the service used %.0f MiB, want at most %.0f", mib(most), mib(procmem.Limit))
	}
	// No other client ever sends a whole claim.
	checkReports(t, p, warmUp, alone, connecting, meanwhile, run.Take())
}

// sendBuffers returns the bytes in the send buffers of the service; 0 on systems other than Linux.
func sendBuffers(t *testing.T, address string) int64 {
	t.Helper()
	n, err := procmem.SendBuffers(address)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	return n
}

// takeAnswers takes the answers of the run after a moment, or later if there are none yet, which
// happens on a busy machine.
func (b *bounds) takeAnswers(run *loadgen.Run) loadgen.Report {
	for range 20 {
		time.Sleep(b.baseline)
		if report := run.Take(); report.Answered() > 0 {
			return report
		}
	}
	return run.Take()
}

// misbehave calls client with a connection. When ctx ends, the connection is cut off.
func misbehave(ctx context.Context, p *program, client func(context.Context, *net.TCPConn)) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		pause(ctx, 100*time.Millisecond) // it is refused
		return
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	client(ctx, conn.(*net.TCPConn))
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// slowClient returns a client that sends head at once, then text byte by byte until the connection
// is cut off.
func slowClient(head, text string) func(context.Context, *net.TCPConn) {
	return func(ctx context.Context, conn *net.TCPConn) {
		_, err := io.WriteString(conn, head)
		for i := 0; err == nil && i < len(text); i++ {
			_, err = conn.Write([]byte{text[i]})
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// claimHead is the head of a claim.
func claimHead(length int) string {
	return fmt.Sprintf("POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", length)
}

// almostClient returns a client that sends a claim but its last byte, then nothing until the
// connection is cut off. It pauses if the claim is refused, as clients do.
func almostClient(body string) func(context.Context, *net.TCPConn) {
	return func(ctx context.Context, conn *net.TCPConn) {
		if _, err := io.WriteString(conn, claimHead(len(body))+body[:len(body)-1]); err == nil {
			_, _ = io.Copy(io.Discard, conn) // a refusal, then the end of the connection
		}
		pause(ctx, 5*time.Second)
	}
}

const unreadCoupon = "UNREAD"

// slowReaders are clients that do not read their answers.
type slowReaders struct {
	mu    sync.Mutex
	begun atomic.Int64 // answers
}

// read reads the head of a big answer, then nothing until ctx ends. The clients begin one after
// another, because concurrent reads would share an answer.
func (r *slowReaders) read(ctx context.Context, conn *net.TCPConn) {
	r.mu.Lock()
	_ = conn.SetReadBuffer(4 << 10) // so that the answer stays with the service
	_, err := io.WriteString(conn, "GET /api/coupons/"+unreadCoupon+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if err == nil {
		_, err = http.ReadResponse(bufio.NewReader(conn), nil)
	}
	r.mu.Unlock()
	if err == nil {
		r.begun.Add(1)
		<-ctx.Done()
	}
}

// idleClient sends one request, then nothing until the connection is cut off.
func idleClient(_ context.Context, conn *net.TCPConn) {
	if _, err := io.WriteString(conn, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, conn) // the response, then the end of the connection
	}
}

// leavingClient sends a part of a claim and resets the connection.
func leavingClient(ctx context.Context, conn *net.TCPConn) {
	body := claimBody("leaving", saleCoupon)
	_, _ = io.WriteString(conn, claimHead(len(body))+body[:len(body)/2])
	pause(ctx, 5*time.Millisecond)
	_ = conn.SetLinger(0)
}
