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

// Conn is a keep-alive HTTP/1.1 connection that sends one request at a time. It dials when it is
// first needed and after either side closed it. It never repeats a request. It is not safe for
// concurrent use.
//
// It is not a general client, for two reasons. The load generator shares its cores with the service
// that it measures, so a request must cost little CPU (BenchmarkClient compares it with fasthttp
// and net/http). And the checks need what general clients hide: no request is sent twice, "not
// sent" and "no answer" are different errors, and an answer that is not valid HTTP is an error.
type Conn struct {
	address string
	timeout time.Duration

	conn     net.Conn // nil: not connected
	in       *bufio.Reader
	deadline time.Time
	kept     [KeptBody]byte
}

// Reasons for no answer, besides [ErrMalformed].
var (
	// ErrNotSent means that there was no connection and dialling failed. The service did nothing.
	ErrNotSent = errors.New("not sent")
	// ErrCut means that the connection ended before the whole answer was read. The request may have
	// been served.
	ErrCut = errors.New("connection ended before the answer")
	// ErrTimeout means that the whole answer did not arrive in time. The request may have been
	// served.
	ErrTimeout = errors.New("no answer in time")
)

// NewConn returns a connection to address ("host:port") that is not dialled yet. A request may take
// timeout plus up to a quarter: the deadline is moved only when less than timeout is left of it,
// because moving it costs as much as parsing an answer.
func NewConn(address string, timeout time.Duration) *Conn {
	return &Conn{address: address, timeout: timeout, in: bufio.NewReaderSize(nil, bufferSize)}
}

// Open dials unless the connection is open, so that a measurement can start with open connections.
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

// Close closes the connection. The next request dials again.
func (c *Conn) Close() {
	if c.conn != nil {
		_ = c.conn.Close() // no request is in flight
		c.conn = nil
	}
}

// Do sends request, a whole HTTP/1.1 request with its body, in one write, and reads the answer. The
// error wraps [ErrNotSent], [ErrCut], [ErrTimeout] or [ErrMalformed]; after an error the connection
// is closed. Sent and Answered of the Response are always set. ctx bounds dialling only: Do waits
// for the answer to a request that was sent.
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
		_ = c.conn.SetDeadline(c.deadline) // fails only on a closed connection, and then the write fails too
	}
	r, err := c.exchange(request)
	r.Sent, r.Answered = sent, time.Now()
	if err != nil {
		c.Close()
		return r, noAnswer(err)
	}
	if r.close {
		c.Close()
	}
	return r, nil
}

func (c *Conn) exchange(request []byte) (Response, error) {
	if c.in.Buffered() > 0 {
		return Response{}, malformed("%d bytes after the end of the last answer", c.in.Buffered())
	}
	if _, err := c.conn.Write(request); err != nil {
		return Response{}, err
	}
	return readResponse(c.in, c.kept[:0])
}

// noAnswer wraps the error of an exchange in one of the package's errors.
func noAnswer(err error) error {
	switch {
	case errors.Is(err, ErrMalformed):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrCut
	default:
		// Without the addresses, so that equal errors on different ports have equal texts.
		if operation, ok := errors.AsType[*net.OpError](err); ok {
			err = operation.Err
		}
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
}
