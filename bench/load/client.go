package load

import (
	"context"
	"time"
)

// Client asks one service over one connection, request by request, for whoever decides himself what comes next.
type Client struct {
	conn   *Conn
	writer *writer
}

// NewClient returns a client of the service at address ("host:port"), not yet dialled; see [NewConn] for timeout.
func NewClient(address string, timeout time.Duration) *Client {
	return &Client{NewConn(address, timeout), newWriter(address)}
}

// Close closes the connection; the next request would dial again.
func (c *Client) Close() { c.conn.Close() }

// Ask sends a claim or a read. The error says what was wrong with an answer that is [Malformed], or why there is none; the
// Response's Body is good until the next request.
func (c *Client) Ask(ctx context.Context, request Request) (Answer, Response, error) {
	bytes, err := c.writer.write(request)
	if err != nil {
		return NotSent, Response{}, err
	}
	return c.send(ctx, request, bytes)
}

// Create asks for a new coupon, as Ask does for a claim.
func (c *Client) Create(ctx context.Context, name string, amount int) (Answer, Response, error) {
	bytes, err := c.writer.create(name, amount)
	if err != nil {
		return NotSent, Response{}, err
	}
	return c.send(ctx, Request{Coupon: name}, bytes)
}

func (c *Client) send(ctx context.Context, request Request, bytes []byte) (Answer, Response, error) {
	r, err := c.conn.Do(ctx, bytes)
	answer, err := judge(request, r, err)
	return answer, r, err
}
