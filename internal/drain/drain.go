// Package drain provides a listener that loses no request on shutdown.
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

	"golang.org/x/sys/unix"
)

const (
	// IdleGrace is how long a draining listener waits for the next request on an idle connection:
	// the request may be on its way when the shutdown begins. A busy client sends it within a round
	// trip.
	IdleGrace = 250 * time.Millisecond
	// maxQueued is the most connections that the kernel's accept queue holds: Linux's default for
	// net.core.somaxconn.
	maxQueued = 4096
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// Listener is a TCP listener for an http.Server. It tracks every connection, so that Drain can end
// the service without losing a request on a connection that was made before the drain began.
//
// http.Server.Shutdown loses such requests. It closes idle connections at once, and drops a request
// that has been read but not yet passed to the handler, so busy keep-alive clients see connections
// end instead of getting answers.
//
// A connection is either idle, which means that no byte of its next request has been read, or
// active:
//
//	accepted ──▶ idle ──first byte read──▶ active ──response sent──▶ idle (or still active, if the
//	                                                                 next request was read ahead)
//
// A draining listener ends only idle connections, and only by letting their read deadline expire.
// So either net/http has read the first byte of a request, which is then answered, or it never
// reads it.
type Listener struct {
	*net.TCPListener

	idleGrace time.Duration

	slots chan struct{} // holds one element per open connection; nil if their number is not limited

	idleDeadline atomic.Pointer[time.Time] // when idle connections end; nil until the drain begins
	open         sync.WaitGroup            // open connections

	fromQueue int // connections accepted since the drain began; used by Accept only

	mu    sync.Mutex
	conns map[*conn]struct{} // open connections
}

// Listen listens on address, which is host:port or :port.
func Listen(ctx context.Context, address string) (*Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp := l.(*net.TCPListener)
	return &Listener{TCPListener: tcp, idleGrace: IdleGrace, conns: map[*conn]struct{}{}}, nil
}

// Limit sets the number of connections that may be open at once. Call it before the first Accept.
func (l *Listener) Limit(n int) { l.slots = make(chan struct{}, n) }

// ReservedFDs is the number of file descriptors kept for the process itself (about ten) and its
// resolver.
const ReservedFDs = 32

// MaxConns returns how many connections a listener may accept so that enough file descriptors
// remain for toPostgreSQL connections to PostgreSQL. Without this limit clients can take all
// descriptors. A lost connection to PostgreSQL then cannot be replaced, and no request succeeds
// until idle clients time out.
func MaxConns(toPostgreSQL int32) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(1, int(limit.Cur)-int(toPostgreSQL)-ReservedFDs)
}

// Accept waits for a free slot and for the next connection. While no slot is free, new connections
// wait in the kernel's accept queue. Once the drain has begun, Accept returns the connections of
// that queue, then net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	if l.slots != nil {
		l.slots <- struct{}{} // a drain does not block here forever: it closes connections
	}
	tcp, err := l.AcceptTCP()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		tcp, err = l.acceptQueued()
	}
	if err != nil {
		l.releaseSlot()
		return nil, err
	}
	c := &conn{TCPConn: tcp, listener: l, accepted: time.Now()}
	l.open.Add(1)
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	c.setIdle()
	return c, nil
}

func (l *Listener) releaseSlot() {
	if l.slots != nil {
		<-l.slots
	}
}

// acceptQueued accepts a connection from the kernel's queue while the listener drains; closing the
// listener would reset the connections in it.
//
// It ends when the queue is empty, not after a fixed time, which could be too short on a busy
// machine and too long while clients keep connecting. It also ends after maxQueued connections,
// because no more than that can have been queued when the drain began.
func (l *Listener) acceptQueued() (*net.TCPConn, error) {
	if l.fromQueue == maxQueued || !l.hasQueued() {
		return nil, net.ErrClosed
	}
	l.fromQueue++
	// AcceptTCP returns at once, unless the client has left and the kernel has dropped its
	// connection.
	_ = l.SetDeadline(time.Now().Add(time.Second)) // fails only if the listener is closed already
	tcp, err := l.AcceptTCP()
	_ = l.SetDeadline(past)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return tcp, err
}

// hasQueued reports whether the kernel's accept queue holds a connection.
func (l *Listener) hasQueued() bool {
	raw, err := l.SyscallConn()
	if err != nil {
		return false
	}
	ready := 0
	err = raw.Control(func(fd uintptr) {
		ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return err == nil && ready > 0
}

// ConnState is the hook for http.Server.ConnState. It reports when a response has been sent, and
// when the next request has started. Read alone cannot report the latter: a pipelined request may
// have been read together with the one before it.
func (l *Listener) ConnState(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*conn)
	switch {
	case ok && state == http.StateIdle:
		c.setIdle()
	case ok && state == http.StateActive:
		c.setActive()
	}
}

// Drain stops accepting connections, ends the idle ones after the grace period, and returns when
// all connections are closed or ctx is done. In the latter case unanswered is the number of
// connections in the middle of a request. served is closed when http.Server.Serve has returned.
func (l *Listener) Drain(ctx context.Context, served <-chan struct{}) (unanswered int) {
	now := time.Now()
	until := now.Add(l.idleGrace)
	l.idleDeadline.Store(&until)
	_ = l.SetDeadline(past) // wakes Accept; fails only if the listener is closed already
	for _, c := range l.connections() {
		c.updateReadDeadline()
	}

	closed := make(chan struct{})
	go func() {
		<-served // no connection is added afterwards
		l.open.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
		for _, c := range l.connections() {
			if !c.isIdle() {
				unanswered++
			}
		}
	}
	return unanswered
}

// connections returns the open connections.
func (l *Listener) connections() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		list = append(list, c)
	}
	return list
}

// conn is a connection that tracks whether it is idle.
type conn struct {
	*net.TCPConn

	listener  *Listener
	accepted  time.Time
	closeOnce sync.Once

	mu           sync.Mutex
	idle         bool      // no byte of the next request has been read
	readAhead    bool      // the first byte of the next request was read before this one was answered
	httpDeadline time.Time // the read deadline that net/http has set
}

// setIdle marks the connection as idle, unless the next request has been read ahead.
func (c *conn) setIdle() {
	c.mu.Lock()
	c.idle = !c.readAhead
	c.readAhead = false
	c.mu.Unlock()
	c.updateReadDeadline()
}

// setActive marks the connection as active, and lifts the deadline of a drain.
func (c *conn) setActive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.idle {
		return
	}
	c.idle = false
	if c.listener.idleDeadline.Load() != nil {
		_ = c.applyReadDeadline() // see updateReadDeadline
	}
}

func (c *conn) isIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle
}

// updateReadDeadline sets the read deadline to that of net/http, or to an earlier one if the
// connection is idle and the listener drains.
func (c *conn) updateReadDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.applyReadDeadline() // if the connection is broken, the next Read returns the error
}

// applyReadDeadline is updateReadDeadline for callers that hold c.mu.
func (c *conn) applyReadDeadline() error {
	deadline := c.httpDeadline
	if idleDeadline := c.listener.idleDeadline.Load(); idleDeadline != nil && c.idle {
		until := *idleDeadline
		// A connection that leaves the accept queue late gets the whole grace as well: its request
		// may have been sent long ago, and could not be read until now.
		if own := c.accepted.Add(c.listener.idleGrace); own.After(until) {
			until = own
		}
		if deadline.IsZero() || until.Before(deadline) {
			deadline = until
		}
	}
	return c.TCPConn.SetReadDeadline(deadline)
}

// Read reads from the connection, and marks it as active when it gets the first bytes of a request.
//
// While a handler runs, net/http reads a single byte to notice when the client disconnects
// (connReader.backgroundRead in net/http/server.go). That byte starts the next request, so the
// connection must not become idle when the current request is answered.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n == 0 {
		return n, err
	}
	c.mu.Lock()
	c.readAhead = !c.idle && len(p) == 1
	c.mu.Unlock()
	c.setActive()
	return n, err
}

// SetReadDeadline sets net/http's deadline for reading.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.httpDeadline = t
	return c.applyReadDeadline()
}

// SetDeadline sets the deadlines for reading and writing.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close closes the connection and releases its slot. A second call returns the error of net.Conn.
func (c *conn) Close() error {
	err := c.TCPConn.Close()
	c.closeOnce.Do(func() {
		c.listener.mu.Lock()
		delete(c.listener.conns, c)
		c.listener.mu.Unlock()
		c.listener.releaseSlot()
		c.listener.open.Done()
	})
	return err
}
