package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// Client is a keep-alive connection to one service that sends one request at a time. It dials when
// it is first needed and after either side closed it. It is not safe for concurrent use.
//
// fasthttp writes the requests and parses the answers, but does not own the connection: its clients
// repeat requests, and hide whether one was sent. A Client never repeats a request, and a request
// that was not sent has another [Answer] than one without an answer.
type Client struct {
	address string
	timeout time.Duration

	conn     *conn // nil: not connected
	request  fasthttp.Request
	response fasthttp.Response
}

// Request is a request for a [Client]: claim Coupon for User or, with Read, read Coupon.
type Request struct {
	User   string `json:"user_id"`
	Coupon string `json:"coupon_name"`
	Read   bool   `json:"-"`
}

// Response is the HTTP response to one request.
type Response struct {
	// Status is the HTTP status.
	Status int
	// Body is valid until the next request.
	Body []byte
	// RetryAfter is the header of that name if it is a number of seconds, else 0.
	RetryAfter time.Duration
	// Sent is when the request was given to the kernel, Answered when the last byte of the answer
	// was read. Both are set without an answer, too.
	Sent, Answered time.Time
	// Attempt is how often the request has been sent, this time included. Only [Plan].Answered and
	// [UntilDefinite] set it.
	Attempt int
}

// NewClient returns a client of the service at address ("host:port"). The whole answer to a request
// must arrive within timeout.
func NewClient(address string, timeout time.Duration) *Client {
	return &Client{address: address, timeout: timeout}
}

// conn counts what was written, and remembers the error of a read or a write: from fasthttp's
// errors one cannot tell a broken connection from a malformed answer.
type conn struct {
	net.Conn
	in      *bufio.Reader
	out     *bufio.Writer
	used    time.Time // when the last answer was read
	written int       // bytes of the current request
	err     error     // of the last read or write
}

func (c *conn) Read(p []byte) (n int, err error) {
	n, c.err = c.Conn.Read(p)
	return n, c.err
}

func (c *conn) Write(p []byte) (n int, err error) {
	n, c.err = c.Conn.Write(p)
	c.written += n
	return n, c.err
}

// maxUnchecked is how long a kept connection may be idle before it is checked. The check is a
// system call, and a draining service closes connections that were idle for 250 ms.
const maxUnchecked = 50 * time.Millisecond

// isClosed reports whether the service has closed a connection on which no answer is due.
func (c *conn) isClosed() (closed bool) {
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			readable, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			closed = readable > 0 // the end, or bytes that are no answer
		})
	}
	return closed || err != nil
}

// open dials unless the connection is open.
func (c *Client) open(ctx context.Context) error {
	if c.conn != nil && time.Since(c.conn.used) > maxUnchecked && c.conn.isClosed() {
		c.Close() // nothing was sent on it since the last answer
	}
	if c.conn != nil {
		return nil
	}
	dialer := net.Dialer{Timeout: c.timeout}
	dialled, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return fmt.Errorf("not sent: %w", err)
	}
	c.conn = &conn{Conn: dialled, used: time.Now()}
	c.conn.in, c.conn.out = bufio.NewReader(c.conn), bufio.NewWriter(c.conn)
	return nil
}

// Close closes the connection. The next request dials again.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close() // no request is in flight
		c.conn = nil
	}
}

// Send sends a claim or a read. The error says what was wrong with an answer that is [Malformed],
// or why there is none. When ctx ends, a request that was sent is [TimedOut].
func (c *Client) Send(ctx context.Context, r Request) (Answer, Response, error) {
	if r.Read {
		return c.do(ctx, http.MethodGet, CouponPath(r.Coupon), nil)
	}
	return c.do(ctx, http.MethodPost, "/api/coupons/claim", r)
}

// Create creates a coupon. It returns what Send does for a claim.
func (c *Client) Create(ctx context.Context, name string, amount int) (Answer, Response, error) {
	return c.do(ctx, http.MethodPost, "/api/coupons", map[string]any{"name": name, "amount": amount})
}

// Get reads any path.
func (c *Client) Get(ctx context.Context, path string) (Response, error) {
	_, r, err := c.do(ctx, http.MethodGet, path, nil)
	return r, err
}

// do sends a request once; body, if it is not nil, as JSON.
func (c *Client) do(ctx context.Context, method, path string, body any) (Answer, Response, error) {
	c.request.Reset()
	c.request.Header.SetHost(c.address)
	c.request.Header.SetMethod(method)
	c.request.Header.SetRequestURI(path)
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return NotSent, Response{}, err
		}
		c.request.Header.SetContentType("application/json")
		c.request.SetBodyRaw(encoded)
	}
	err := c.open(ctx)
	r := Response{Sent: time.Now()}
	if err != nil {
		r.Answered = r.Sent
		return NotSent, r, err
	}
	c.conn.written = 0
	_ = c.conn.SetDeadline(r.Sent.Add(c.timeout)) // fails only on a closed connection, and then the write fails too
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	err = c.exchange(&r)
	r.Answered = time.Now()
	if err != nil {
		answer, err := c.noAnswer(err)
		c.Close()
		return answer, r, errors.Join(err, ctx.Err())
	}
	c.conn.used = r.Answered
	if c.response.ConnectionClose() {
		c.Close()
	}
	answer, err := classify(method, r)
	return answer, r, err
}

// exchange writes the request and reads the answer.
func (c *Client) exchange(r *Response) error {
	if n := c.conn.in.Buffered(); n > 0 {
		return fmt.Errorf("%d bytes after the end of the last answer", n)
	}
	header := &c.response.Header
	if err := errors.Join(c.request.Write(c.conn.out), c.conn.out.Flush()); err != nil {
		return err
	}
	if err := header.Read(c.conn.in); err != nil {
		return err
	}
	if header.ContentLength() < -1 {
		// HTTP allows it: the body ends with the connection. But a cut one would look the same.
		return errors.New("neither Content-Length nor Transfer-Encoding")
	}
	if err := c.response.ReadBody(c.conn.in, 1<<30); err != nil {
		return err
	}
	if header.ContentLength() == -1 { // chunked
		// fasthttp accepts chunks without the end of the trailer.
		if err := errors.Join(header.ReadTrailer(c.conn.in), c.conn.err); err != nil {
			return err
		}
	}
	seconds, _ := strconv.Atoi(string(header.Peek("Retry-After"))) // 0 for the other form, a date
	r.Status, r.Body, r.RetryAfter = header.StatusCode(), c.response.Body(), time.Duration(seconds)*time.Second
	return nil
}

// noAnswer returns the reason why an exchange failed with err.
func (c *Client) noAnswer(err error) (Answer, error) {
	switch failed := c.conn.err; {
	case failed == nil:
		return Malformed, fmt.Errorf("malformed answer: %w", err)
	case c.conn.written == 0:
		return NotSent, fmt.Errorf("not sent: %w", failed)
	case errors.Is(failed, os.ErrDeadlineExceeded):
		return TimedOut, errors.New("no answer in time")
	default:
		// Without the addresses, so that equal errors on different ports have equal texts.
		if operation, ok := errors.AsType[*net.OpError](failed); ok {
			failed = operation.Err
		}
		return Cut, fmt.Errorf("connection ended before the answer: %w", failed)
	}
}

// CouponPath returns the path of a coupon. Dots are escaped: clients and proxies resolve "." and
// "..".
func CouponPath(name string) string {
	return "/api/coupons/" + strings.ReplaceAll(url.PathEscape(name), ".", "%2E")
}
