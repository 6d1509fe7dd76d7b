package drain

import (
	"errors"
	"net"
	"sync"
	"time"
)

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
	closeOnce sync.Once
	buffer    int         // size of net/http's read buffer, which the first Read is given; used by Read only
	header    headerLines // used by Read only

	mu           sync.Mutex
	phase        phase
	began        time.Time // when it was accepted, or when its last request was started
	reading      bool
	httpDeadline time.Time // the read deadline that net/http has set
	tcpDeadline  time.Time // the one that the kernel's connection has
}

func (c *conn) currentPhase() phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase
}

// enter changes the phase, after a response or when the header of a request has been read. Read
// cannot tell the latter: a pipelined request may have been read together with the one before it.
func (c *conn) enter(p phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = p
	c.applyDeadline()
}

// start marks an idle connection as started. c.mu is held.
func (c *conn) start() {
	if c.phase == idle {
		c.phase, c.began = started, time.Now()
		c.header.begin()
	}
}

// SetReadDeadline sets net/http's deadline for reading. It takes effect in the next Read, or at
// once in one that waits: of the eight that net/http sets for a request, few are ever waited for.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.httpDeadline = t
	c.applyDeadline()
	return nil
}

// SetDeadline sets the deadlines for reading and writing.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// updateDeadline is for the beginning of the drain.
func (c *conn) updateDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applyDeadline()
}

// applyDeadline sets the connection's read deadline if something waits for it. c.mu is held.
func (c *conn) applyDeadline() {
	if deadline := c.deadline(); c.reading && deadline != c.tcpDeadline {
		c.tcpDeadline = deadline
		_ = c.TCPConn.SetReadDeadline(deadline) // if the connection is broken, Read returns the error
	}
}

// deadline returns net/http's read deadline, or an earlier one while the listener drains and the
// connection is not active. c.mu is held.
func (c *conn) deadline() time.Time {
	idleDeadline := c.listener.idleDeadline.Load()
	if idleDeadline == nil || c.phase == active {
		return c.httpDeadline
	}
	// A connection that leaves the accept queue late gets the whole grace as well: its request may
	// have been sent long ago, and could not be read until now.
	deadline := c.began.Add(c.listener.idleGrace)
	if c.phase == started {
		deadline = c.began.Add(c.listener.startGrace)
	}
	if deadline.Before(*idleDeadline) {
		deadline = *idleDeadline
	}
	if !c.httpDeadline.IsZero() && c.httpDeadline.Before(deadline) {
		deadline = c.httpDeadline
	}
	return deadline
}

// Read reads from the connection, and notices the start of a request: net/http gets its first
// bytes, or has them in its buffer already and asks for more, with less than the whole buffer to
// fill. The latter also shows a byte that net/http read ahead while a handler ran.
func (c *conn) Read(p []byte) (int, error) {
	if c.header.tooLarge() { // net/http reads again after an error
		return 0, errHeaderLines
	}
	if c.buffer == 0 {
		c.buffer = len(p)
	}
	c.mu.Lock()
	if len(p) < c.buffer {
		c.start()
	}
	c.reading = true
	c.applyDeadline()
	c.mu.Unlock()

	n, err := c.TCPConn.Read(p)

	c.mu.Lock()
	c.reading = false
	if n > 0 {
		c.start()
	}
	inHeader := c.phase == started
	c.mu.Unlock()
	c.header.add(p[:n], inHeader)
	if c.header.tooLarge() {
		return 0, errHeaderLines // net/http answers 400 and closes the connection
	}
	return n, err
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
