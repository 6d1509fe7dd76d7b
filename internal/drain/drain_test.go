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

	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/internal/wait"
)

// testListener is a door with a server behind it whose handler says Connection: close once the door closes, as api.Handler does.
type testListener struct {
	*Listener

	server  *http.Server
	served  chan struct{}
	handled atomic.Int64 // requests that the handler has begun
}

func newTestListener(t *testing.T, idleGrace time.Duration, handler http.HandlerFunc) *testListener {
	t.Helper()
	d, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.idleGrace = idleGrace
	td := &testListener{Listener: d, served: make(chan struct{})}
	td.server = &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		ConnState:         d.ConnState,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			td.handled.Add(1)
			if d.idleDeadline.Load() != nil {
				w.Header().Set("Connection", "close")
			}
			handler(w, r)
		}),
	}
	t.Cleanup(func() { _ = td.server.Close() })
	return td
}

func (d *testListener) serve() {
	go func() {
		defer close(d.served)
		_ = d.server.Serve(d.Listener)
	}()
}

const wholeRequest = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"

// freshAndUsed are two connections that the door has let in: one that has never sent a byte, and one that has had an answer and
// was not told to close.
func (d *testListener) freshAndUsed(t *testing.T) (fresh, used *rawhttp.Conn) {
	t.Helper()
	fresh, used = rawhttp.Dial(t, d.Addr()), rawhttp.Dial(t, d.Addr())
	used.Send(t, wholeRequest)
	if closes, err := used.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("the first answer: closes %v, %v", closes, err)
	}
	wait.For(t, "both connections", func() bool { return len(d.connections()) == 2 })
	return fresh, used
}

func TestDoorAnswersEveryRequestWhileItCloses(t *testing.T) {
	// Long enough for every client to get a turn on a busy machine; nobody waits for it.
	d := newTestListener(t, 30*time.Second, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(time.Millisecond)
	})
	d.serve()

	var clients sync.WaitGroup
	var answered, lost atomic.Int64
	var closing atomic.Bool
	for i := range 128 {
		request := wholeRequest
		if i%4 == 0 { // the accept queue must have something in it
			request = strings.Replace(request, "Host", "Connection: close\r\nHost", 1)
		}
		clients.Go(func() {
			for {
				conn, err := net.Dial("tcp", d.Addr().String())
				if closing.Load() { // who comes now may be let in or not
					if err == nil {
						_ = conn.Close()
					}
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				for g, closes := rawhttp.New(conn), false; !closes; {
					if _, err = io.WriteString(g, request); err == nil {
						closes, err = g.Response(http.StatusOK)
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
	closing.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if unanswered := d.Drain(ctx, d.served); unanswered != 0 || ctx.Err() != nil {
		t.Errorf("the door did not close in time, %d requests have no answer", unanswered)
	}
	clients.Wait()
	t.Logf("%d requests answered", answered.Load())
	if lost.Load() != 0 {
		t.Errorf("%d requests were not answered", lost.Load())
	}
	if handled := d.handled.Load(); handled != answered.Load() {
		t.Errorf("the handler saw %d requests, %d were answered", handled, answered.Load())
	}
}

// A door that is opened before anybody serves has its guests waiting in the kernel's queue.
func TestDoorAnswersThoseInTheQueue(t *testing.T) {
	d := newTestListener(t, time.Second, func(http.ResponseWriter, *http.Request) {})
	guests := make([]*rawhttp.Conn, 100)
	for i := range guests {
		guests[i] = rawhttp.Dial(t, d.Addr())
		guests[i].Send(t, wholeRequest)
	}
	closed := make(chan int)
	go func() { closed <- d.Drain(t.Context(), d.served) }()
	for d.idleDeadline.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	d.serve()
	for i, g := range guests {
		if _, err := g.Response(http.StatusOK); err != nil {
			t.Fatalf("guest %d: %v", i, err)
		}
	}
	if unanswered := <-closed; unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
	if conn, err := net.Dial("tcp", d.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the door has closed and lets somebody in")
	}
}

// People who keep coming do not keep the door open.
func TestDoorClosesInTheFaceOfNewcomers(t *testing.T) {
	d := newTestListener(t, time.Millisecond, func(http.ResponseWriter, *http.Request) {})
	d.serve()
	closed := make(chan int)
	go func() { closed <- d.Drain(t.Context(), d.served) }()
	started := time.Now()
	letIn := 0
	for ; ; letIn++ {
		conn, err := net.Dial("tcp", d.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Since(started) > 10*time.Second {
			t.Fatalf("the door is still open, %d newcomers later", letIn)
		}
	}
	t.Logf("%d newcomers were let in within %s", letIn, time.Since(started))
	if letIn > acceptQueue {
		t.Errorf("%d newcomers were let in", letIn)
	}
	if unanswered := <-closed; unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
}

func TestDoorClosesOnThoseWhoWait(t *testing.T) {
	const grace = 200 * time.Millisecond
	d := newTestListener(t, grace, func(http.ResponseWriter, *http.Request) {})
	d.serve()
	fresh, used := d.freshAndUsed(t)

	started := time.Now()
	if unanswered := d.Drain(t.Context(), d.served); unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
	if took := time.Since(started); took < grace {
		t.Errorf("closed after %s: those who wait have %s for a request that is under way", took, grace)
	}
	for name, g := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if _, err := g.R.ReadByte(); err != io.EOF {
			t.Errorf("the %s guest got %v, want the end of the connection", name, err)
		}
	}
}

// The first byte decides: a request that has begun when the grace ends is read to its end, however slowly it comes.
func TestDoorWaitsForARequestThatHasBegun(t *testing.T) {
	d := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	d.serve()
	fresh, used := d.freshAndUsed(t)
	for _, g := range []*rawhttp.Conn{fresh, used} {
		g.Send(t, wholeRequest[:1])
	}
	wait.For(t, "the first bytes", func() bool {
		conns := d.connections()
		return len(conns) == 2 && !slices.ContainsFunc(conns, (*conn).isWaiting)
	})

	closed := make(chan int)
	go func() { closed <- d.Drain(t.Context(), d.served) }()
	for sent := 1; sent < len(wholeRequest); sent += 10 {
		time.Sleep(50 * time.Millisecond)
		for _, g := range []*rawhttp.Conn{fresh, used} {
			g.Send(t, wholeRequest[sent:min(sent+10, len(wholeRequest))])
		}
	}
	for name, g := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if closes, err := g.Response(http.StatusOK); err != nil || !closes {
			t.Errorf("%s connection: closes %v, %v", name, closes, err)
		}
	}
	if unanswered := <-closed; unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
}

// So is one that begins in the grace, and goes on after it.
func TestDoorReadsARequestThatBeginsWhileItCloses(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Second
	d := newTestListener(t, grace, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})
	d.serve()
	fresh, used := d.freshAndUsed(t)

	closed := make(chan int)
	go func() { closed <- d.Drain(t.Context(), d.served) }()
	wait.For(t, "the door to close", func() bool { return d.idleDeadline.Load() != nil })
	for _, g := range []*rawhttp.Conn{fresh, used} {
		g.Send(t, wholeRequest[:1])
	}
	time.Sleep(grace + grace/4)
	for name, g := range map[string]*rawhttp.Conn{"fresh": fresh, "used": used} {
		if _, err := io.WriteString(g, wholeRequest[1:]); err != nil {
			t.Errorf("%s connection: %v", name, err)
		}
		if closes, err := g.Response(http.StatusOK); err != nil || !closes {
			t.Errorf("%s connection: closes %v, %v", name, closes, err)
		}
	}
	if unanswered := <-closed; unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
}

// One whose first byte is read while the request before it is still being answered has begun, too.
func TestDoorWaitsForARequestThatBeganBeforeTheLastAnswer(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	d := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-release
	})
	d.serve()
	g := rawhttp.Dial(t, d.Addr())
	g.Send(t, wholeRequest)
	wait.For(t, "the request", func() bool { return d.handled.Load() == 1 })
	g.Send(t, wholeRequest[:1])
	wait.For(t, "the byte that is read ahead", func() bool {
		conns := d.connections()
		return len(conns) == 1 && conns[0].hasReadAhead()
	})
	release <- struct{}{}
	if closes, err := g.Response(http.StatusOK); err != nil || closes {
		t.Fatalf("the first answer: closes %v, %v", closes, err)
	}

	closed := make(chan int)
	go func() { closed <- d.Drain(t.Context(), d.served) }()
	time.Sleep(4 * d.idleGrace)
	g.Send(t, wholeRequest[1:])
	close(release)
	if closes, err := g.Response(http.StatusOK); err != nil || !closes {
		t.Errorf("the second answer: closes %v, %v", closes, err)
	}
	if unanswered := <-closed; unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
}

func (c *conn) hasReadAhead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ahead
}

// A pipelined request that was read together with the one before it is no connection that waits: it is not cut off in the
// handler, and counts when the time is up.
func TestDoorKnowsAPipelinedRequest(t *testing.T) {
	t.Parallel()
	const pipelined = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	release := make(chan struct{})
	left := make(chan error, 2)
	d := newTestListener(t, 50*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		<-release
		left <- r.Context().Err()
	})
	d.serve()
	g := rawhttp.Dial(t, d.Addr())
	g.Send(t, pipelined+pipelined)
	release <- struct{}{}
	if closes, err := g.Response(http.StatusOK); err != nil || closes || <-left != nil {
		t.Fatalf("the first answer: closes %v, %v", closes, err)
	}
	wait.For(t, "the second request", func() bool { return d.handled.Load() == 2 })

	deadline, cancel := context.WithTimeout(t.Context(), 4*d.idleGrace)
	defer cancel()
	if unanswered := d.Drain(deadline, d.served); unanswered != 1 {
		t.Errorf("%d requests have no answer, want 1", unanswered)
	}
	close(release)
	if err := <-left; err != nil {
		t.Errorf("the handler was told that its client had left: %v", err)
	}
	// It began before the door closed, so its answer does not say that it is the last.
	if _, err := g.Response(http.StatusOK); err != nil {
		t.Errorf("the second answer: %v", err)
	}
}

// With as many connections as may be, newcomers wait until one goes, and so they do when the door closes.
func TestDoorLetsInNoMoreThanItsBound(t *testing.T) {
	t.Parallel()
	d := newTestListener(t, 50*time.Millisecond, func(http.ResponseWriter, *http.Request) {})
	d.Limit(2)
	d.serve()
	guests := []*rawhttp.Conn{rawhttp.Dial(t, d.Addr()), rawhttp.Dial(t, d.Addr())}
	for _, g := range guests {
		g.Send(t, wholeRequest)
		if _, err := g.Response(http.StatusOK); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // two newcomers, one after the other
		guests = append(guests, rawhttp.Dial(t, d.Addr()))
		guests[len(guests)-1].Send(t, wholeRequest)
	}
	time.Sleep(100 * time.Millisecond)
	if n, handled := len(d.connections()), d.handled.Load(); n != 2 || handled != 2 {
		t.Errorf("%d connections are open, %d requests were handled; want 2", n, handled)
	}
	_ = guests[0].Close()
	if _, err := guests[2].Response(http.StatusOK); err != nil {
		t.Errorf("who waited while another went: %v", err)
	}
	if unanswered := d.Drain(t.Context(), d.served); unanswered != 0 {
		t.Errorf("%d requests have no answer", unanswered)
	}
	if _, err := guests[3].Response(http.StatusOK); err != nil {
		t.Errorf("who waited while the door closed: %v", err)
	}
}

// At the deadline, only those count as cut off who wait for an answer.
func TestDoorGivesUpAtTheDeadline(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	d := newTestListener(t, time.Minute, func(http.ResponseWriter, *http.Request) { <-release })
	d.serve()
	rawhttp.Dial(t, d.Addr()).Send(t, wholeRequest)
	rawhttp.Dial(t, d.Addr())
	wait.For(t, "the request", func() bool { return d.handled.Load() == 1 && len(d.connections()) == 2 })

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if unanswered := d.Drain(ctx, d.served); unanswered != 1 || ctx.Err() == nil {
		t.Errorf("%d requests have no answer, want 1; %v", unanswered, ctx.Err())
	}
}
