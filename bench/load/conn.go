package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// Conn is one keep-alive HTTP/1.1 connection that carries one request at a time. It dials when it is first needed and
// again after it was closed, by either side; it never sends a request twice by itself. It is not safe for concurrent
// use.
//
// Why not one of the well-kept clients: generator, service and PostgreSQL share the cores of every measurement. With 128
// connections a request costs 18.9 µs of CPU with this one, 22.2 with fasthttp 1.77 and 64.8 with net/http (61
// allocations); medians of five interleaved rounds of BenchmarkClient, busy machine, two cores. Four fifths of the 18.9
// are the kernel's, for one write, two reads (the first finds nothing) and the poller, so there is little left to win.
// And the books need what a client for everyday use hides: nothing is ever sent twice, "surely not sent" and "maybe
// served" are told apart, and an answer that is not exactly HTTP is a failure.
type Conn struct {
	address string
	timeout time.Duration

	conn     net.Conn // nil: not connected
	in       *bufio.Reader
	deadline time.Time
	kept     [KeptBody]byte
}

// Why a request has no answer, besides [ErrMalformed].
var (
	// ErrNotSent: there was no connection and none could be made. Surely nothing happened.
	ErrNotSent = errors.New("not sent")
	// ErrCut: the connection ended before the whole answer was read. The request may or may not have been served.
	ErrCut = errors.New("connection ended before the answer")
	// ErrTimeout: the whole answer was not there in time. The request may or may not have been served.
	ErrTimeout = errors.New("no answer in time")
)

// NewConn returns a connection to address ("host:port"), not yet dialled. A request may take timeout and up to a quarter
// more: the deadline is moved only when less than timeout is left of it, because moving it costs as much as parsing the
// answer.
func NewConn(address string, timeout time.Duration) *Conn {
	return &Conn{address: address, timeout: timeout, in: bufio.NewReaderSize(nil, bufferSize)}
}

// Open dials unless the connection is there already, so that a measurement can begin with all its connections made.
func (c *Conn) Open(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	dialer := net.Dialer{Timeout: c.timeout}
	conn, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	c.conn, c.deadline = conn, time.Time{}
	c.in.Reset(conn)
	return nil
}

// Close closes the connection; the next request would dial again.
func (c *Conn) Close() {
	if c.conn != nil {
		_ = c.conn.Close() // nothing is in flight that a failed close could lose
		c.conn = nil
	}
}

// Do sends request, a whole HTTP/1.1 request with its body, in one write, and reads the answer to it. Its error is, or
// wraps, [ErrNotSent], [ErrCut], [ErrTimeout] or [ErrMalformed]; after one the connection is closed. Sent and Answered of
// the Response are set even then. ctx bounds the dialling only: a request that was sent is waited for.
func (c *Conn) Do(ctx context.Context, request []byte) (Response, error) {
	if c.conn == nil {
		if err := c.Open(ctx); err != nil {
			now := time.Now()
			return Response{Sent: now, Answered: now}, err
		}
	}
	sent := time.Now()
	if c.deadline.Sub(sent) < c.timeout {
		c.deadline = sent.Add(c.timeout + c.timeout/4)
		_ = c.conn.SetDeadline(c.deadline) // fails only on a closed connection, as the write then does
	}
	r, err := c.exchange(request)
	r.Sent, r.Answered = sent, time.Now()
	if err != nil {
		c.Close()
		return r, named(err)
	}
	if r.close {
		c.Close()
	}
	return r, nil
}

func (c *Conn) exchange(request []byte) (Response, error) {
	if c.in.Buffered() > 0 {
		return Response{}, malformed("%d bytes more than the last answer's length", c.in.Buffered())
	}
	if _, err := c.conn.Write(request); err != nil {
		return Response{}, err
	}
	return readResponse(c.in, c.kept[:0])
}

func named(err error) error {
	switch {
	case errors.Is(err, ErrMalformed):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrCut
	default:
		// Without the addresses: the same fault on another port is no other fault.
		if operation := (*net.OpError)(nil); errors.As(err, &operation) {
			err = operation.Err
		}
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
}
