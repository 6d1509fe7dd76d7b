package load

import (
	"context"
	"time"
)

// Client sends requests to one service over one connection, one at a time. It is for callers that
// choose each request after the last answer; for load use [Start].
type Client struct {
	conn   *Conn
	writer *writer
}

// NewClient returns a client of the service at address ("host:port"). It dials with the first
// request. See [NewConn] for timeout.
func NewClient(address string, timeout time.Duration) *Client {
	return &Client{NewConn(address, timeout), newWriter(address)}
}

// Close closes the connection. The next request dials again.
func (c *Client) Close() { c.conn.Close() }

// Send sends a claim or a read. The error says what was wrong with an answer that is [Malformed],
// or why there is none. The Response's Body is valid until the next request.
func (c *Client) Send(ctx context.Context, request Request) (Answer, Response, error) {
	bytes, err := c.writer.write(request)
	if err != nil {
		return NotSent, Response{}, err
	}
	return c.do(ctx, request, bytes)
}

// Create creates a coupon. It returns what Send does for a claim.
func (c *Client) Create(ctx context.Context, name string, amount int) (Answer, Response, error) {
	bytes, err := c.writer.create(name, amount)
	if err != nil {
		return NotSent, Response{}, err
	}
	return c.do(ctx, Request{Coupon: name}, bytes)
}

func (c *Client) do(ctx context.Context, request Request, bytes []byte) (Answer, Response, error) {
	r, err := c.conn.Do(ctx, bytes)
	answer, err := classify(request, r, err)
	return answer, r, err
}
