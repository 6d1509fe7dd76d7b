package drain

import (
	"bytes"
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

// maxHeaderLines is the largest number of lines in the header of a request. http.Server limits only
// its bytes, and 12 KB of short lines take 290 KB of memory once they are parsed. HAProxy has the
// same limit (tune.http.maxhdr).
const maxHeaderLines = 101

var errHeaderLines = errors.New("too many lines in the header of a request")

// conn is a connection that tracks its phase.
type conn struct {
	*net.TCPConn

	listener *Listener

	// Used by Read only.
	buffer int // size of net/http's read buffer, which the first Read is given
	lines  int // lines of the header so far
	rest   int // lines of the last read that do not belong to this header

	mu           sync.Mutex
	phase        phase
	began        time.Time // when it was accepted, or when its last request was started
	reading      bool
	httpDeadline time.Time // the read deadline that net/http has set
}

// enter changes the phase, after a response or when the header of a request has been read. Read
// cannot tell the latter: a pipelined request may have been read together with the one before it.
func (c *conn) enter(p phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = p
	c.applyDeadline()
}

// start marks an idle connection as started. The first part of the header may have come with the
// last read; how much is not known, so all lines of that read count, also those of a body. c.mu is
// held.
func (c *conn) start() {
	if c.phase == idle {
		c.phase, c.began = started, time.Now()
		c.lines, c.rest = c.rest, 0
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

// applyDeadline sets the connection's read deadline if something waits for it. c.mu is held.
func (c *conn) applyDeadline() {
	if c.reading {
		_ = c.TCPConn.SetReadDeadline(c.deadline()) // if the connection is broken, Read returns the error
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
	if c.lines > maxHeaderLines { // net/http reads again after an error
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
	switch header, rest, complete := bytes.Cut(p[:n], []byte("\r\n\r\n")); {
	case inHeader:
		c.lines += countLines(header)
		if complete {
			c.lines += 2
			c.rest = countLines(rest)
		}
	case n > 1: // a single byte is read ahead, and does not replace what was read before
		c.rest = countLines(p[:n])
	}
	if c.lines > maxHeaderLines {
		return 0, errHeaderLines // net/http answers 400 and closes the connection
	}
	return n, err
}

func countLines(p []byte) int { return bytes.Count(p, []byte("\n")) }

// Close closes the connection and releases its slot. A second call returns the error of net.Conn.
func (c *conn) Close() error {
	err := c.TCPConn.Close()
	if _, open := c.listener.conns.LoadAndDelete(c); open {
		c.listener.slots.Release(1)
	}
	return err
}
