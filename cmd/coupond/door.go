package main

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
	// idleGrace is how long a closing door waits for the next request of a keep-alive connection, which may be on its way while
	// the signal arrives. Its answer says Connection: close. A busy client sends it within a round trip; who is silent for so
	// long is closed.
	idleGrace = 250 * time.Millisecond
	// acceptQueue is the most that the kernel can hold of connections that are made and not yet accepted (Linux's default for
	// net.core.somaxconn).
	acceptQueue = 4096
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// door is the listener of a service. It knows each of its connections, so that the service can end without losing a request
// on a connection that was made before the end began.
//
// http.Server.Shutdown does lose some: from its first moment it closes every connection that waits for its next request, and
// drops a request that has been read but not yet given to the handler. (Tried with 128 busy keep-alive clients, five times:
// 76 to 118 of them got the end of the connection for an answer.)
//
// A connection that waits is closed here by an expired read deadline, and no other way. Either net/http has got the first
// bytes of a request, then it is answered, or it has not, then nobody ever reads them.
type door struct {
	*net.TCPListener

	idleGrace time.Duration

	places chan struct{} // has one for each connection that is open, as many as may be; nil: there is no bound

	waitUntil atomic.Pointer[time.Time] // nil until the door closes: when waiting connections end
	open      sync.WaitGroup            // connections that are not closed yet

	lastGuests int // accepted since the door closes; Accept's own

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// openDoor listens at address, host:port or :port.
func openDoor(ctx context.Context, address string) (*door, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp := l.(*net.TCPListener) //nolint:forcetypeassert // what net listens with for "tcp"
	return &door{TCPListener: tcp, idleGrace: idleGrace, conns: map[*conn]struct{}{}}, nil
}

// bound lets in at most so many connections at once. It is called before the first Accept.
func (d *door) bound(most int) { d.places = make(chan struct{}, most) }

// reserve is how many file descriptors the process needs beside connections: its own (some ten), and those of its resolver.
const reserve = 32

// mostConnections is how many connections leave enough file descriptors for so many to PostgreSQL. Without that bound a crowd
// takes them all, and a connection to PostgreSQL that is lost meanwhile cannot be made again: nobody is served any more until
// idle ones of the crowd have timed out.
func mostConnections(toPostgreSQL int32) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(1, int(limit.Cur)-int(toPostgreSQL)-reserve)
}

// Accept waits for the next connection, and for a place that is free: until then newcomers wait in the kernel's queue. When the
// door closes it returns those that were made before, then net.ErrClosed.
func (d *door) Accept() (net.Conn, error) {
	if d.places != nil {
		d.places <- struct{}{} // does not block a door that closes: it closes connections
	}
	tcp, err := d.AcceptTCP()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		tcp, err = d.acceptQueued()
	}
	if err != nil {
		d.leave()
		return nil, err
	}
	c := &conn{TCPConn: tcp, door: d, since: time.Now()}
	d.open.Add(1)
	d.mu.Lock()
	d.conns[c] = struct{}{}
	d.mu.Unlock()
	c.wait()
	return c, nil
}

// leave gives a place to the next connection.
func (d *door) leave() {
	if d.places != nil {
		<-d.places
	}
}

// acceptQueued accepts, once the door closes, what the kernel has in its queue: closing the listener would reset it. It ends when
// the queue is empty, not after some time: on a busy machine no time is long enough, and where somebody comes every moment each
// time is too long. It also ends when as many have come as can have been there when the door closed.
func (d *door) acceptQueued() (*net.TCPConn, error) {
	if d.lastGuests == acceptQueue || !d.hasQueue() {
		return nil, net.ErrClosed
	}
	d.lastGuests++
	// There is nothing to wait for, unless the one in the queue has gone (not every kernel keeps those).
	_ = d.SetDeadline(time.Now().Add(time.Second)) // it fails only on a listener that is closed already
	tcp, err := d.AcceptTCP()
	_ = d.SetDeadline(longAgo)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return tcp, err
}

// hasQueue tells whether Accept would return at once.
func (d *door) hasQueue() bool {
	raw, err := d.SyscallConn()
	if err != nil {
		return false
	}
	ready := 0
	err = raw.Control(func(fd uintptr) {
		ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor fits
	})
	return err == nil && ready > 0
}

// connState is the hook for http.Server.ConnState. It tells a connection that its request has been answered, and that the next
// one has begun: a pipelined one may have been read together with the one before it, and no Read tells of it.
func (d *door) connState(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*conn)
	switch {
	case ok && state == http.StateIdle:
		c.wait()
	case ok && state == http.StateActive:
		c.begin()
	}
}

// close lets nobody in any more, ends the connections that wait, and returns when the last one has been answered and closed, or
// when ctx is done: then unanswered is the number of connections in the middle of a request. served is closed when
// http.Server.Serve has returned.
func (d *door) close(ctx context.Context, served <-chan struct{}) (unanswered int) {
	now := time.Now()
	until := now.Add(d.idleGrace)
	d.waitUntil.Store(&until)
	_ = d.SetDeadline(longAgo) // wakes Accept; it fails only on a listener that is closed already
	for _, c := range d.connections() {
		c.limitRead()
	}

	closed := make(chan struct{})
	go func() {
		<-served // nobody is added any more
		d.open.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
		for _, c := range d.connections() {
			if !c.isWaiting() {
				unanswered++
			}
		}
	}
	return unanswered
}

// connections lists those that are open.
func (d *door) connections() []*conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*conn, 0, len(d.conns))
	for c := range d.conns {
		list = append(list, c)
	}
	return list
}

// conn is a connection that knows whether it waits for a request.
type conn struct {
	*net.TCPConn

	door  *door
	since time.Time // when it was let in
	gone  sync.Once

	mu       sync.Mutex
	waits    bool      // not a byte of the next request has been read
	ahead    bool      // the first byte of the next request was read before this one was answered
	deadline time.Time // the read deadline that net/http wants
}

// wait notes that the connection has nothing to do until the next request arrives.
func (c *conn) wait() {
	c.mu.Lock()
	c.waits = !c.ahead
	c.ahead = false
	c.mu.Unlock()
	c.limitRead()
}

// begin notes that a request has begun; a limit that the closing door has set is lifted.
func (c *conn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waits {
		return
	}
	c.waits = false
	if c.door.waitUntil.Load() != nil {
		_ = c.setReadDeadline() // see limitRead
	}
}

func (c *conn) isWaiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits
}

// limitRead sets the read deadline: net/http's, or an earlier one for a waiting connection while the door closes.
func (c *conn) limitRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.setReadDeadline() // a connection that is broken tells so when it is read
}

// setReadDeadline is limitRead with c.mu held.
func (c *conn) setReadDeadline() error {
	deadline := c.deadline
	if closing := c.door.waitUntil.Load(); closing != nil && c.waits {
		until := *closing
		// Who comes out of the queue late has the whole grace, too: his request was sent long ago, and nobody has read it yet.
		if own := c.since.Add(c.door.idleGrace); own.After(until) {
			until = own
		}
		if deadline.IsZero() || until.Before(deadline) {
			deadline = until
		}
	}
	return c.TCPConn.SetReadDeadline(deadline)
}

// Read reads; with the first bytes of a request the connection stops waiting.
//
// While a handler runs, net/http reads one byte, and no more, to notice a client who leaves (connReader.backgroundRead in
// net/http/server.go). That byte is the first of the next request, and must not be forgotten when this one is answered.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n == 0 {
		return n, err
	}
	c.mu.Lock()
	c.ahead = !c.waits && len(p) == 1
	c.mu.Unlock()
	c.begin()
	return n, err
}

// SetReadDeadline sets net/http's deadline for reading.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.setReadDeadline()
}

// SetDeadline sets the deadlines for reading and writing.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close closes the connection; again is an error like that of every connection.
func (c *conn) Close() error {
	err := c.TCPConn.Close()
	c.gone.Do(func() {
		c.door.mu.Lock()
		delete(c.door.conns, c)
		c.door.mu.Unlock()
		c.door.leave()
		c.door.open.Done()
	})
	return err
}
