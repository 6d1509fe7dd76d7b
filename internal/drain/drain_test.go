package drain

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// testListener is a Listener with a server. Like api.Handler, its handler sends Connection: close
// once the drain has begun.
type testListener struct {
	*Listener

	server  *http.Server
	served  chan struct{}
	handled atomic.Int64 // requests that have reached the handler
}

func newTestListener(t *testing.T, idleGrace time.Duration, handler http.HandlerFunc) *testListener {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.idleGrace = idleGrace
	tl := &testListener{Listener: l, served: make(chan struct{})}
	tl.server = &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		ConnState:         l.ConnState,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			tl.handled.Add(1)
			if l.idleDeadline.Load() != nil {
				w.Header().Set("Connection", "close")
			}
			handler(w, r)
		}),
	}
	t.Cleanup(func() { _ = tl.server.Close() })
	return tl
}

func (l *testListener) serve() {
	go func() {
		defer close(l.served)
		_ = l.server.Serve(l.Listener)
	}()
}

const wholeRequest = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

// freshAndUsed returns two idle connections that the listener has accepted: one that has never sent
// a byte, and one that has got a response without Connection: close.
func (l *testListener) freshAndUsed(t *testing.T) (fresh, used *rawhttp.Conn) {
	t.Helper()
	fresh, used = rawhttp.Dial(t, l.Addr()), rawhttp.Dial(t, l.Addr())
	used.Send(t, wholeRequest)
	if closes, err := used.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("first response: closes %v, %v", closes, err)
	}
	wait.For(t, "both connections to be accepted", func() bool { return len(l.connections()) == 2 })
	return fresh, used
}

func TestListener_answersEveryRequestWhileDraining(t *testing.T) {
	// Long enough for every client to send its next request on a busy machine; the drain does not
	// take that long.
	l := newTestListener(t, 30*time.Second, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(time.Millisecond)
	})
	l.serve()

	var clients sync.WaitGroup
	var answered, lost atomic.Int64
	var draining atomic.Bool
	for i := range 128 {
		request := wholeRequest
		if i%4 == 0 { // new connections keep the accept queue from being empty
			request = strings.Replace(request, "Host", "Connection: close\r\nHost", 1)
		}
		clients.Go(func() {
			for {
				conn, err := net.Dial("tcp", l.Addr().String())
				if draining.Load() { // a connection made now may be accepted or not
					if err == nil {
						_ = conn.Close()
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				for c, closes := rawhttp.New(conn), false; !closes; {
					if _, err = io.WriteString(c, request); err == nil {
						closes, err = c.Response(http.StatusOK)
					}
					if err != nil {
						lost.Add(1)
						t.Logf("lost: %v", err)
						break
					}
					answered.Add(1)
				}
				_ = conn.Close()
			}
		})
	}
	for answered.Load() < 2000 {
		time.Sleep(time.Millisecond)
	}
	draining.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if unanswered := l.Drain(ctx, l.served); unanswered != 0 || ctx.Err() != nil {
		t.Errorf("the drain did not end in time; %d requests unanswered", unanswered)
	}
	clients.Wait()
	t.Logf("%d requests answered", answered.Load())
	if lost.Load() != 0 {
		t.Errorf("%d requests were not answered", lost.Load())
	}
	if handled := l.handled.Load(); handled != answered.Load() {
		t.Errorf("the handler got %d requests, clients got %d responses", handled, answered.Load())
	}
}

// Connections made before the server starts to accept wait in the kernel's accept queue.
func TestListener_acceptsQueuedConnections(t *testing.T) {
	l := newTestListener(t, time.Second, func(http.ResponseWriter, *http.Request) {})
	conns := make([]*rawhttp.Conn, 100)
	for i := range conns {
		conns[i] = rawhttp.Dial(t, l.Addr())
		conns[i].Send(t, wholeRequest)
	}
	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	for l.idleDeadline.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	l.serve()
	for i, c := range conns {
		if _, err := c.Response(http.StatusOK); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the listener still accepts a connection after the drain")
	}
}

// The drain ends although clients keep connecting.
func TestListener_endsDespiteNewConnections(t *testing.T) {
	l := newTestListener(t, time.Millisecond, func(http.ResponseWriter, *http.Request) {})
	l.serve()
	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	started := time.Now()
	accepted := 0
	for ; ; accepted++ {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Since(started) > 10*time.Second {
			t.Fatalf("the listener still accepts after %d connections", accepted)
		}
	}
	t.Logf("%d new connections accepted within %s", accepted, time.Since(started))
	if accepted > maxQueued {
		t.Errorf("%d new connections accepted, want at most %d", accepted, maxQueued)
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

func TestListener_closesIdleConnectionsAfterTheGrace(t *testing.T) {
	const grace = 200 * time.Millisecond
	l := newTestListener(t, grace, func(http.ResponseWriter, *http.Request) {})
	l.serve()
	fresh, used := l.freshAndUsed(t)

	started := time.Now()
	if unanswered := l.Drain(t.Context(), l.served); unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
	if took := time.Since(started); took < grace {
		t.Errorf("drained after %s; idle connections have %s for a request that is on its way", took, grace)
	}
	for name, c := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if _, err := c.R.ReadByte(); err != io.EOF {
			t.Errorf("%s connection: got %v, want EOF", name, err)
		}
	}
}

// If the first byte of a request has been read when the grace ends, the request is read to its end,
// however slowly it arrives.
func TestListener_waitsForAStartedRequest(t *testing.T) {
	l := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	l.serve()
	fresh, used := l.freshAndUsed(t)
	for _, c := range []*rawhttp.Conn{fresh, used} {
		c.Send(t, wholeRequest[:1])
	}
	wait.For(t, "the first bytes to be read", func() bool {
		conns := l.connections()
		return len(conns) == 2 && !slices.ContainsFunc(conns, func(c *conn) bool { return c.currentPhase() == idle })
	})

	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	for sent := 1; sent < len(wholeRequest); sent += 10 {
		time.Sleep(50 * time.Millisecond)
		for _, c := range []*rawhttp.Conn{fresh, used} {
			c.Send(t, wholeRequest[sent:min(sent+10, len(wholeRequest))])
		}
	}
	for name, c := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if closes, err := c.Response(http.StatusOK); err != nil || !closes {
			t.Errorf("%s connection: closes %v, %v", name, closes, err)
		}
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

// Once the header of a request has been read, its body may take longer than startGrace.
func TestListener_waitsForASlowBody(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	l.startGrace = 50 * time.Millisecond
	l.serve()
	fresh, used := l.freshAndUsed(t)
	const header = len(wholeRequest) - 2
	for _, c := range []*rawhttp.Conn{fresh, used} {
		c.Send(t, wholeRequest[:header])
	}
	wait.For(t, "both requests to reach the handler", func() bool { return l.handled.Load() == 3 })
	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	time.Sleep(4 * l.startGrace)
	for name, c := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		c.Send(t, wholeRequest[header:])
		if _, err := c.Response(http.StatusOK); err != nil {
			t.Errorf("%s connection: %v", name, err)
		}
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

// A request that starts within the grace and continues after it is answered.
func TestListener_waitsForARequestThatStartsWhileDraining(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	l := newTestListener(t, grace, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	l.serve()
	fresh, used := l.freshAndUsed(t)

	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	wait.For(t, "the drain to begin", func() bool { return l.idleDeadline.Load() != nil })
	for _, c := range []*rawhttp.Conn{fresh, used} {
		c.Send(t, wholeRequest[:1])
	}
	time.Sleep(grace + grace/4)
	for name, c := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if _, err := io.WriteString(c, wholeRequest[1:]); err != nil {
			t.Errorf("%s connection: %v", name, err)
		}
		if closes, err := c.Response(http.StatusOK); err != nil || !closes {
			t.Errorf("%s connection: closes %v, %v", name, closes, err)
		}
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

// If the first byte of a request is read while the previous request is being answered, the request
// has started as well.
func TestListener_waitsForARequestReadAhead(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	l := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
	})
	l.serve()
	c := rawhttp.Dial(t, l.Addr())
	c.Send(t, wholeRequest)
	wait.For(t, "the request to reach the handler", func() bool { return l.handled.Load() == 1 })
	c.Send(t, wholeRequest[:1])
	wait.For(t, "the first byte to be read ahead", func() bool {
		conns := l.connections()
		return len(conns) == 1 && !hasUnread(t, conns[0].TCPConn)
	})
	release <- struct{}{}
	if closes, err := c.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("first response: closes %v, %v", closes, err)
	}

	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	time.Sleep(4 * l.idleGrace)
	c.Send(t, wholeRequest[1:])
	close(release)
	if closes, err := c.Response(http.StatusOK); err != nil || !closes {
		t.Errorf("second response: closes %v, %v", closes, err)
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

// hasUnread reports whether the kernel has received bytes on a connection that were not read yet.
func hasUnread(t *testing.T, tcp *net.TCPConn) bool {
	t.Helper()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = raw.Control(func(fd uintptr) {
		n, _, _ = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT) // -1: nothing
	})
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// A part of a request that was read together with the one before it has started the request.
func TestListener_waitsForAPipelinedPart(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	l.serve()
	conns := map[int]*rawhttp.Conn{}
	for _, part := range []int{1, 3, 10} { // net/http waits for four bytes, then for the header
		c := rawhttp.Dial(t, l.Addr())
		c.Send(t, wholeRequest+wholeRequest[:part])
		if closes, err := c.Response(http.StatusOK); err != nil || closes {
			t.Fatalf("first response: closes %v, %v", closes, err)
		}
		conns[part] = c
	}
	drained := make(chan int)
	go func() { drained <- l.Drain(t.Context(), l.served) }()
	time.Sleep(4 * l.idleGrace)
	for part, c := range conns {
		if _, err := io.WriteString(c, wholeRequest[part:]); err != nil {
			t.Errorf("after %d bytes: %v", part, err)
		}
		if closes, err := c.Response(http.StatusOK); err != nil || !closes {
			t.Errorf("response after %d bytes: closes %v, %v", part, closes, err)
		}
	}
	if unanswered := <-drained; unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
}

// The last byte of a trailer, read alone because net/http's buffer has room for one byte only, does
// not start another request: the connection is idle afterwards, and does not hold up the drain.
func TestListener_trailerReadByteByByte(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	l.serve()
	const buffer = 4096 // of net/http, for a connection
	trailer := "T: " + strings.Repeat("x", buffer-len("T: \r\n\r\n")) + "\r\n\r\n"
	c := rawhttp.Dial(t, l.Addr())
	c.Send(t, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	wait.For(t, "the request to reach the handler", func() bool { return l.handled.Load() == 1 })
	tcp := l.connections()[0].TCPConn
	for _, part := range []string{"0\r\n", trailer[:buffer-1], trailer[buffer-1:]} {
		c.Send(t, part)
		wait.For(t, "the part to be read", func() bool { return !hasUnread(t, tcp) })
	}
	if closes, err := c.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("response: closes %v, %v", closes, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if unanswered := l.Drain(ctx, l.served); unanswered != 0 || ctx.Err() != nil {
		t.Errorf("%d requests unanswered, %v", unanswered, ctx.Err())
	}
}

// A client that has sent the first byte of a request, or an empty line after one, and then nothing
// holds up the drain for startGrace, not for net/http's idle timeout.
func TestListener_endsAStartedRequest(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond, func(http.ResponseWriter, *http.Request) {})
	l.startGrace = 200 * time.Millisecond
	l.serve()
	fresh, used := l.freshAndUsed(t)
	fresh.Send(t, "G")
	used.Send(t, "\r\n")
	wait.For(t, "the bytes to be read", func() bool {
		return !slices.ContainsFunc(l.connections(), func(c *conn) bool { return c.currentPhase() != started })
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if unanswered := l.Drain(ctx, l.served); unanswered != 0 || ctx.Err() != nil {
		t.Errorf("%d requests unanswered, %v", unanswered, ctx.Err())
	}
}

// A connection is not idle while it has a pipelined request that was read together with the one
// before it: the request is not cut off in the handler, and counts as unanswered at the deadline.
func TestListener_countsAPipelinedRequest(t *testing.T) {
	t.Parallel()
	const pipelined = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	release := make(chan struct{})
	handlerErr := make(chan error, 2)
	l := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		<-release
		handlerErr <- r.Context().Err()
	})
	l.serve()
	c := rawhttp.Dial(t, l.Addr())
	c.Send(t, pipelined+pipelined)
	release <- struct{}{}
	if closes, err := c.Response(http.StatusOK); err != nil || closes || <-handlerErr != nil {
		t.Fatalf("first response: closes %v, %v", closes, err)
	}
	wait.For(t, "the second request to reach the handler", func() bool { return l.handled.Load() == 2 })

	deadline, cancel := context.WithTimeout(t.Context(), 4*l.idleGrace)
	defer cancel()
	if unanswered := l.Drain(deadline, l.served); unanswered != 1 {
		t.Errorf("%d requests unanswered, want 1", unanswered)
	}
	close(release)
	if err := <-handlerErr; err != nil {
		t.Errorf("the context of the second request ended: %v", err)
	}
	// It started before the drain, so its response may lack Connection: close.
	if _, err := c.Response(http.StatusOK); err != nil {
		t.Errorf("second response: %v", err)
	}
}

// At the limit, new connections wait until another one is closed, also while the listener drains.
func TestListener_Limit(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond, func(http.ResponseWriter, *http.Request) {})
	l.Limit(2)
	l.serve()
	conns := []*rawhttp.Conn{rawhttp.Dial(t, l.Addr()), rawhttp.Dial(t, l.Addr())}
	for _, c := range conns {
		c.Send(t, wholeRequest)
		if _, err := c.Response(http.StatusOK); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // two more connections, one after the other
		conns = append(conns, rawhttp.Dial(t, l.Addr()))
		conns[len(conns)-1].Send(t, wholeRequest)
	}
	time.Sleep(100 * time.Millisecond)
	if n, handled := len(l.connections()), l.handled.Load(); n != 2 || handled != 2 {
		t.Errorf("%d connections open, %d requests handled; want 2", n, handled)
	}
	_ = conns[0].Close()
	if _, err := conns[2].Response(http.StatusOK); err != nil {
		t.Errorf("connection that waited for a slot: %v", err)
	}
	if unanswered := l.Drain(t.Context(), l.served); unanswered != 0 {
		t.Errorf("%d requests unanswered", unanswered)
	}
	if _, err := conns[3].Response(http.StatusOK); err != nil {
		t.Errorf("connection that waited for a slot while the listener drained: %v", err)
	}
}

// At the deadline, only connections that wait for a response count as unanswered.
func TestListener_endsAtTheDeadline(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	l := newTestListener(t, time.Minute, func(http.ResponseWriter, *http.Request) { <-release })
	l.serve()
	rawhttp.Dial(t, l.Addr()).Send(t, wholeRequest)
	rawhttp.Dial(t, l.Addr())
	wait.For(t, "the request to reach the handler", func() bool { return l.handled.Load() == 1 && len(l.connections()) == 2 })

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if unanswered := l.Drain(ctx, l.served); unanswered != 1 || ctx.Err() == nil {
		t.Errorf("%d requests unanswered, want 1; %v", unanswered, ctx.Err())
	}
}
