package drain

import (
	"context"
	"io"
	"net"
	"net/http"
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
// once the drain has begun. It reads the body of a request, then waits for hold if the request has
// the header Hold.
type testListener struct {
	*Listener

	t       *testing.T
	server  *http.Server
	served  chan struct{}
	hold    chan struct{}
	handled atomic.Int64 // requests that have reached the handler
}

func newTestListener(t *testing.T, idleGrace time.Duration) *testListener {
	t.Helper()
	listener, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.idleGrace = idleGrace
	l := &testListener{Listener: listener, t: t, served: make(chan struct{}), hold: make(chan struct{})}
	l.server = &http.Server{
		ReadHeaderTimeout: time.Hour, // only the listener ends a request here
		IdleTimeout:       time.Hour,
		ConnState:         l.ConnState,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l.handled.Add(1)
			if l.idleDeadline.Load() != nil {
				w.Header().Set("Connection", "close")
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
			if r.Header.Get("Hold") != "" {
				<-l.hold
			}
			if err := r.Context().Err(); err != nil {
				t.Errorf("the context of a request ended: %v", err)
			}
		}),
	}
	t.Cleanup(func() { _ = l.server.Close() })
	return l
}

func (l *testListener) serve() {
	go func() {
		defer close(l.served)
		_ = l.server.Serve(l.Listener)
	}()
}

const wholeRequest = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

var heldRequest = strings.Replace(wholeRequest, "Host", "Hold: 1\r\nHost", 1)

// dial opens a connection, waits until it is accepted, and sends text on it.
func (l *testListener) dial(text string) *rawhttp.Conn {
	l.t.Helper()
	c := rawhttp.Dial(l.t, l.Addr())
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	wait.For(l.t, "the connection to be accepted", func() bool { return l.accepted(c) != nil })
	l.send(c, text)
	return c
}

// accepted returns the server's end of a connection, or nil if it is not open.
func (l *testListener) accepted(c *rawhttp.Conn) *conn {
	for _, accepted := range l.connections() {
		if accepted.RemoteAddr().String() == c.LocalAddr().String() {
			return accepted
		}
	}
	return nil
}

// send sends text and waits until the server has read it.
func (l *testListener) send(c *rawhttp.Conn, text string) {
	l.t.Helper()
	c.Send(l.t, text)
	wait.For(l.t, "the server to read what was sent", func() bool {
		accepted := l.accepted(c)
		return accepted == nil || !hasUnread(accepted.TCPConn)
	})
}

// waitHandled waits until n requests have reached the handler.
func (l *testListener) waitHandled(n int64) {
	l.t.Helper()
	wait.For(l.t, "requests to reach the handler", func() bool { return l.handled.Load() == n })
}

// hasUnread reports whether the kernel has bytes of a connection that were not read yet.
func hasUnread(tcp *net.TCPConn) bool {
	n := -1
	if raw, err := tcp.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			n, _, _ = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		})
	}
	return n > 0
}

// answered wants a response with status 200 that does or does not announce the end.
func (l *testListener) answered(name string, c *rawhttp.Conn, wantClose bool) {
	l.t.Helper()
	if closes, err := c.Response(http.StatusOK); err != nil || closes != wantClose {
		l.t.Fatalf("%s connection: response closes %v, %v; want %v", name, closes, err, wantClose)
	}
}

// ended wants the connection to end without a response.
func (l *testListener) ended(name string, c *rawhttp.Conn) {
	l.t.Helper()
	if rest, err := io.ReadAll(c.R); len(rest) > 0 || err != nil {
		l.t.Errorf("%s connection: got %q, %v; want its end", name, rest, err)
	}
}

// drain begins the drain. The function that it returns waits for its end, and wants no request to
// be unanswered.
func (l *testListener) drain() (finish func()) {
	drained := make(chan int)
	go func() { drained <- l.Drain(l.t.Context(), l.served) }()
	wait.For(l.t, "the drain to begin", func() bool { return l.idleDeadline.Load() != nil })
	return func() {
		l.t.Helper()
		if unanswered := <-drained; unanswered != 0 {
			l.t.Errorf("%d requests unanswered", unanswered)
		}
	}
}

func TestListener_answersEveryRequestWhileDraining(t *testing.T) {
	// Long enough for every client to send its next request on a busy machine; the drain does not
	// take that long.
	l := newTestListener(t, 30*time.Second)
	l.serve()

	var clients sync.WaitGroup
	var answered atomic.Int64
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
				for c, closes := rawhttp.New(conn), false; err == nil && !closes; {
					if _, err = io.WriteString(c, request); err == nil {
						closes, err = c.Response(http.StatusOK)
						answered.Add(1)
					}
				}
				if err != nil {
					t.Errorf("not answered: %v", err)
					return
				}
				_ = conn.Close()
			}
		})
	}
	wait.For(t, "the clients to be busy", func() bool { return answered.Load() >= 2000 })
	draining.Store(true)
	l.drain()()
	clients.Wait()
	if handled := l.handled.Load(); handled != answered.Load() {
		t.Errorf("the handler got %d requests, clients got %d responses", handled, answered.Load())
	}
}

// Connections made before the server starts to accept wait in the kernel's accept queue.
func TestListener_acceptsQueuedConnections(t *testing.T) {
	l := newTestListener(t, time.Second)
	conns := make([]*rawhttp.Conn, 100)
	for i := range conns {
		conns[i] = rawhttp.Dial(t, l.Addr())
		conns[i].Send(t, wholeRequest)
	}
	finish := l.drain()
	l.serve()
	for _, c := range conns {
		l.answered("queued", c, true)
	}
	finish()
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the listener still accepts a connection after the drain")
	}
}

// The drain ends although clients keep connecting.
func TestListener_endsDespiteNewConnections(t *testing.T) {
	l := newTestListener(t, time.Millisecond)
	l.serve()
	finish := l.drain()
	for accepted := 0; ; accepted++ {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
		if accepted > maxQueued {
			t.Fatalf("the listener still accepts after %d new connections", accepted)
		}
	}
	finish()
}

func TestListener_closesIdleConnectionsAfterTheGrace(t *testing.T) {
	const grace = 200 * time.Millisecond
	l := newTestListener(t, grace)
	l.serve()
	fresh, used := l.dial(""), l.dial(wholeRequest)
	l.answered("used", used, false)
	began := time.Now()
	l.drain()()
	if took := time.Since(began); took < grace {
		t.Errorf("drained after %s; idle connections have %s for a request that is on its way", took, grace)
	}
	l.ended("fresh", fresh)
	l.ended("used", used)
}

// A request whose first byte has been read when the grace ends is answered, however it came and
// however slowly the rest arrives.
func TestListener_waitsForStartedRequests(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 2*time.Second) // for the two requests that start while the listener drains
	l.startGrace = time.Minute
	l.serve()
	idleAlways := l.dial("")
	parts := map[string]int{"fresh": 1, "used": 1, "read ahead": 1, "pipelined 1": 1, "pipelined 3": 3, "pipelined 10": 10}
	conns := map[string]*rawhttp.Conn{"fresh": l.dial(wholeRequest[:1]), "used": l.dial(wholeRequest)}
	l.answered("used", conns["used"], false)
	l.send(conns["used"], wholeRequest[:1])
	for name, part := range parts { // net/http waits for four bytes, then for the header
		if strings.HasPrefix(name, "pipelined") {
			conns[name] = l.dial(wholeRequest + wholeRequest[:part])
			l.answered(name, conns[name], false)
		}
	}
	conns["read ahead"] = l.dial(heldRequest)
	l.waitHandled(int64(len(parts)) - 1)
	l.send(conns["read ahead"], wholeRequest[:1])
	close(l.hold)
	l.answered("read ahead", conns["read ahead"], false)
	lateFresh, lateUsed := l.dial(""), l.dial(wholeRequest)
	l.answered("late, used", lateUsed, false)

	finish := l.drain()
	for name, c := range map[string]*rawhttp.Conn{"late, fresh": lateFresh, "late, used": lateUsed} {
		l.send(c, wholeRequest[:1])
		parts[name], conns[name] = 1, c
	}
	l.ended("idle", idleAlways) // the grace is over
	for name, c := range conns {
		_, _ = io.WriteString(c, wholeRequest[parts[name]:])
		l.answered(name, c, true)
	}
	finish()
}

// A client that has sent the first byte of a request, or an empty line after one, and then nothing
// holds up the drain for startGrace. The body of a request may take longer than that.
func TestListener_startGrace(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond)
	l.startGrace = 200 * time.Millisecond
	l.serve()
	const header = len(wholeRequest) - 2
	slow := l.dial(wholeRequest[:header])
	fresh, used := l.dial("G"), l.dial(wholeRequest)
	l.answered("used", used, false)
	l.send(used, "\r\n")
	l.waitHandled(2)
	finish := l.drain()
	for _, c := range []*rawhttp.Conn{fresh, used} {
		if _, err := io.Copy(io.Discard, c.R); err != nil { // net/http may answer half a header with 400
			t.Error(err)
		}
	}
	time.Sleep(l.startGrace) // the connections may have had the same deadline
	slow.Send(t, wholeRequest[header:])
	l.answered("slow", slow, false) // its header was read before the drain
	finish()
}

// At the limit, new connections wait until another one is closed, also while the listener drains.
func TestListener_Limit(t *testing.T) {
	t.Parallel()
	l := newTestListener(t, 50*time.Millisecond)
	l.Limit(2)
	l.serve()
	conns := []*rawhttp.Conn{l.dial(wholeRequest), l.dial(wholeRequest)}
	for _, c := range conns {
		l.answered("first", c, false)
	}
	for range 2 { // two more connections, one after the other
		conns = append(conns, rawhttp.Dial(t, l.Addr()))
		conns[len(conns)-1].Send(t, wholeRequest)
	}
	time.Sleep(100 * time.Millisecond) // nothing happens
	if n, handled := len(l.connections()), l.handled.Load(); n != 2 || handled != 2 {
		t.Errorf("%d connections open, %d requests handled; want 2", n, handled)
	}
	_ = conns[0].Close()
	l.answered("waiting", conns[2], false)
	finish := l.drain()
	l.answered("waiting while the listener drains", conns[3], true)
	finish()
}

// At the deadline, only connections that wait for a response count as unanswered, also for one to a
// request that was read together with the one before it. Its handler is not interrupted.
func TestListener_endsAtTheDeadline(t *testing.T) {
	l := newTestListener(t, time.Minute)
	l.serve()
	pipelined := l.dial(heldRequest + heldRequest)
	l.dial("")
	l.hold <- struct{}{}
	l.answered("pipelined", pipelined, false)
	l.waitHandled(2)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if unanswered := l.Drain(ctx, l.served); unanswered != 1 || ctx.Err() == nil {
		t.Errorf("%d requests unanswered, want 1; %v", unanswered, ctx.Err())
	}
	close(l.hold)
	l.answered("pipelined", pipelined, false)
}

// requestHead returns the header of a request with this number of lines, including the empty one at
// its end.
func requestHead(lines int) string {
	return "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n" + strings.Repeat("a:\r\n", lines-4) + "\r\n"
}

// A header with too many lines is rejected before it is complete, however it is split and whatever
// came before it. The lines of a body do not count.
func TestListener_headerLines(t *testing.T) {
	l := newTestListener(t, time.Second)
	l.serve()
	body := strings.Repeat("\n", 90)
	small, largest, tooLarge := requestHead(10)+body, requestHead(maxHeaderLines), requestHead(maxHeaderLines+1)
	unfinished := strings.TrimSuffix(requestHead(maxHeaderLines+2), "\r\n")
	const response = "" // instead of a part: wait for a response
	for name, c := range map[string]struct {
		parts    []string
		answered int  // with 200
		rejected bool // afterwards
	}{
		"largest":                      {[]string{largest + body, response}, 1, false},
		"one line more":                {[]string{tooLarge + body}, 0, true},
		"unfinished":                   {[]string{unfinished}, 0, true},
		"unfinished, in parts":         {[]string{unfinished[:200], unfinished[200:300], unfinished[300:]}, 0, true},
		"in parts":                     {[]string{largest[:200], largest[200:300], largest[300:], body, response}, 1, false},
		"after another request":        {[]string{largest, body[:89], body[89:], response, small, response}, 2, false},
		"too large after another one":  {[]string{small, response, unfinished}, 1, true},
		"together with another one":    {[]string{small + unfinished[:200], unfinished[200:]}, 1, true},
		"together, at a line's end":    {[]string{small + unfinished[:strings.Index(unfinished, "a:")+40], strings.Repeat("a:\r\n", 20)}, 1, true},
		"together with a complete one": {[]string{small + small, response, response}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			conn, answered := l.dial(""), 0
			awaitAnswer := func() {
				t.Helper()
				l.answered(name, conn, false)
				answered++
			}
			for i, part := range c.parts {
				switch {
				case part == response:
					awaitAnswer()
				case i == len(c.parts)-1 && c.rejected: // the connection may be closed when it is read
					_, _ = io.WriteString(conn, part)
				default:
					l.send(conn, part) // so that the next part is not read together with this one
				}
			}
			for answered < c.answered {
				awaitAnswer()
			}
			if !c.rejected {
				return
			}
			// Closed at once: with a 400, or without if net/http has nothing of the request yet.
			rest, err := io.ReadAll(conn.R)
			if timeout, ok := err.(interface{ Timeout() bool }); ok && timeout.Timeout() || strings.Contains(string(rest), "200") {
				t.Errorf("answered %q, %v", rest, err)
			}
		})
	}
}
