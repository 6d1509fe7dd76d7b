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

// Listener is a TCP listener for an http.Server. It tracks every connection, so that Drain can end
// the service without losing a request on a connection that was made before the drain began.
//
// http.Server.Shutdown loses such requests. It closes idle connections at once, and drops a request
// that has been read but not yet passed to the handler, so busy keep-alive clients see connections
// end instead of getting answers.
//
// A connection is in one of three phases:
//
//	accepted ──▶ idle ──first byte read──▶ started ──header read──▶ active
//	             ▲                         ▲                        │
//	             └─────────────────────────┴─────response sent──────┘
//
// After a response the connection is started, not idle, if a part of the next request has been read
// ahead.
//
// A draining listener ends only idle connections, and only by letting their read deadline expire.
// So either net/http has read the first byte of a request, which is then answered if its header
// arrives within startGrace, or it never reads it.
//
// It cannot save each connection that is made during the drain. A client's kernel considers a
// connection complete before Accept returns it, and closing the listener resets those that were
// completed since the last look at the accept queue. Only whatever sends the clients can prevent
// this: a load balancer that takes the instance out before it is stopped.
type Listener struct {
	*net.TCPListener

	idleGrace, startGrace time.Duration

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
	return &Listener{TCPListener: tcp, idleGrace: IdleGrace, startGrace: startGrace, conns: map[*conn]struct{}{}}, nil
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
	c.updateReadDeadline() // the drain may have begun
	return c, nil
}

func (l *Listener) releaseSlot() {
	if l.slots != nil {
		<-l.slots
	}
}

// acceptQueued accepts a connection from the kernel's queue while the listener drains; closing the
// listener resets the connections in it.
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
// when the header of a request has been read. Read alone cannot report the latter: a pipelined
// request may have been read together with the one before it.
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
			if c.currentPhase() != idle {
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

// phase is the phase of a connection; see Listener.
type phase int

const (
	idle    phase = iota // no byte of the next request has been read
	started              // a part of its header has been read
	active               // its header has been read
)

// conn is a connection that tracks its phase.
type conn struct {
	*net.TCPConn

	listener  *Listener
	accepted  time.Time
	closeOnce sync.Once
	buffer    int         // size of net/http's read buffer, which the first Read is given; used by Read only
	header    headerLines // used by Read only

	mu           sync.Mutex
	phase        phase
	startedAt    time.Time // when the phase became started
	httpDeadline time.Time // the read deadline that net/http has set
}

func (c *conn) currentPhase() phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase
}

func (c *conn) enter(p phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setPhase(p)
}

// setPhase changes the phase, and the read deadline if the listener drains. c.mu is held.
func (c *conn) setPhase(p phase) {
	c.phase = p
	if c.listener.idleDeadline.Load() != nil {
		_ = c.applyReadDeadline() // if the connection is broken, the next Read returns the error
	}
}

func (c *conn) updateReadDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.applyReadDeadline()
}

// applyReadDeadline sets the read deadline to that of net/http, or to an earlier one while the
// listener drains. c.mu is held.
func (c *conn) applyReadDeadline() error {
	deadline := c.httpDeadline
	if until := c.drainDeadline(); !until.IsZero() && (deadline.IsZero() || until.Before(deadline)) {
		deadline = until
	}
	return c.TCPConn.SetReadDeadline(deadline)
}

// drainDeadline returns when the drain ends the connection if nothing arrives: zero if there is no
// drain, or if the header has been read. c.mu is held.
func (c *conn) drainDeadline() time.Time {
	idleDeadline := c.listener.idleDeadline.Load()
	if idleDeadline == nil || c.phase == active {
		return time.Time{}
	}
	// A connection that leaves the accept queue late gets the whole grace as well: its request may
	// have been sent long ago, and could not be read until now.
	own := c.accepted.Add(c.listener.idleGrace)
	if c.phase == started {
		own = c.startedAt.Add(c.listener.startGrace)
	}
	if own.After(*idleDeadline) {
		return own
	}
	return *idleDeadline
}

// Read reads from the connection, and notices the start of a request: net/http gets its first
// bytes, or has them in its buffer already and asks for more, with less than the whole buffer to
// fill.
//
// While a handler runs, net/http reads a single byte to notice when the client disconnects
// (connReader.backgroundRead in net/http/server.go). That byte starts the next request. It cannot
// be recognized when it is read: the last byte of a trailer may be read alone as well.
func (c *conn) Read(p []byte) (int, error) {
	if c.buffer == 0 {
		c.buffer = len(p)
	}
	if len(p) < c.buffer {
		c.start()
	}
	if c.header.tooLarge() {
		return 0, errHeaderLines // net/http answers 400 and closes the connection
	}
	n, err := c.TCPConn.Read(p)
	if n == 0 {
		return n, err
	}
	inHeader := c.start()
	c.header.add(p[:n], inHeader)
	if c.header.tooLarge() {
		return 0, errHeaderLines
	}
	return n, err
}

// start marks an idle connection as started, and reports whether the header of the request was not
// read yet.
func (c *conn) start() (inHeader bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == idle {
		c.startedAt = time.Now()
		c.header.begin()
		c.setPhase(started)
	}
	return c.phase == started
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
