// Package drain provides a listener for a graceful shutdown: every request on a connection that was
// made before the shutdown began is answered.
package drain

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

const (
	// IdleGrace is how long a draining listener waits for the next request on an idle connection:
	// the request may be on its way when the shutdown begins. A busy client sends it within a round
	// trip.
	IdleGrace = 250 * time.Millisecond
	// startGrace is how long a draining listener waits for the header of a request whose first byte
	// has been read. net/http would wait for its idle timeout until it has four bytes.
	startGrace = 5 * time.Second
	// maxQueued is the most connections that the kernel's accept queue holds: Linux's default for
	// net.core.somaxconn.
	maxQueued = 4096
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// Listener is a TCP listener for an http.Server. http.Server.Shutdown closes idle connections at
// once, and drops a request that has been read but not yet passed to the handler. Drain loses
// neither. It tracks the phase of every connection:
//
//	accepted ──▶ idle ──first byte read──▶ started ──header read──▶ active
//	             ▲                         ▲                        │
//	             └─────────────────────────┴─────response sent──────┘
//
// After a response the connection is started, not idle, if a part of the next request has been read
// ahead.
//
// A draining listener ends a connection only by letting its read deadline expire before the
// connection is active. So net/http either has read the first byte of a request, which is answered
// if its header arrives within startGrace, or never reads it.
//
// A connection that is made during the drain may be reset: it is complete for the client's kernel
// before Accept returns it. Only a load balancer that takes the instance out first prevents this.
type Listener struct {
	*net.TCPListener

	idleGrace, startGrace time.Duration

	limit        int64                     // of open connections
	slots        *semaphore.Weighted       // acquired by each open connection
	conns        sync.Map                  // the open connections; its keys are of type *conn
	idleDeadline atomic.Pointer[time.Time] // when idle connections end; nil until the drain begins
	fromQueue    int                       // connections accepted since then; used by Accept only
}

// Listen listens on address, which is host:port or :port.
func Listen(ctx context.Context, address string) (*Listener, error) {
	tcp, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l := &Listener{TCPListener: tcp.(*net.TCPListener), idleGrace: IdleGrace, startGrace: startGrace}
	l.Limit(math.MaxInt)
	return l, nil
}

// Limit sets the number of connections that may be open at once. Call it before the first Accept.
// netutil.LimitListener would hide the TCP connection, on which the drain and the API depend.
func (l *Listener) Limit(n int) { l.limit, l.slots = int64(n), semaphore.NewWeighted(int64(n)) }

// Accept waits for a free slot and for the next connection. Once the drain has begun, it returns
// the connections in the kernel's accept queue, then net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	_ = l.slots.Acquire(context.Background(), 1) // a drain ends the wait: it closes connections
	tcp, err := l.AcceptTCP()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		tcp, err = l.acceptQueued()
	}
	if err != nil {
		l.slots.Release(1)
		return nil, err
	}
	c := &conn{TCPConn: tcp, listener: l, began: time.Now()}
	l.conns.Store(c, nil)
	return c, nil
}

// acceptQueued accepts a connection from the kernel's queue while the listener drains; closing the
// listener resets what is in it. It ends when the queue is empty, or after maxQueued connections if
// clients keep connecting. A fixed time would be too short on a busy machine.
func (l *Listener) acceptQueued() (*net.TCPConn, error) {
	queued := 0
	if raw, err := l.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // fails only if the listener is closed
			queued, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		})
	}
	if l.fromQueue == maxQueued || queued <= 0 {
		return nil, net.ErrClosed
	}
	l.fromQueue++
	_ = l.SetDeadline(time.Now().Add(time.Second)) // in case the client has left meanwhile
	tcp, err := l.AcceptTCP()
	_ = l.SetDeadline(past)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return tcp, err
}

// ConnState is the hook for http.Server.ConnState. It reports when a response has been sent, and
// when the header of a request has been read.
func (l *Listener) ConnState(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*conn)
	switch {
	case ok && state == http.StateIdle:
		c.enter(idle)
	case ok && state == http.StateActive:
		c.enter(active)
	}
}

// Drain stops accepting connections, ends the idle ones after the grace period, and returns when
// all connections are closed or ctx is done. In the latter case unanswered is the number of
// connections in the middle of a request. served is closed when http.Server.Serve has returned.
func (l *Listener) Drain(ctx context.Context, served <-chan struct{}) (unanswered int) {
	until := time.Now().Add(l.idleGrace)
	l.idleDeadline.Store(&until)
	_ = l.SetDeadline(past) // wakes Accept; fails only if the listener is closed already
	for _, c := range l.connections() {
		c.mu.Lock()
		c.applyDeadline()
		c.mu.Unlock()
	}

	select {
	case <-served: // no connection is added afterwards
	case <-ctx.Done():
	}
	if l.slots.Acquire(ctx, l.limit) == nil {
		return 0
	}
	for _, c := range l.connections() {
		c.mu.Lock()
		if c.phase != idle {
			unanswered++
		}
		c.mu.Unlock()
	}
	return unanswered
}

// connections returns the open connections.
func (l *Listener) connections() (open []*conn) {
	for c := range l.conns.Range {
		open = append(open, c.(*conn))
	}
	return open
}
