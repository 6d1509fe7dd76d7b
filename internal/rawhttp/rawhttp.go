// Package rawhttp is an HTTP/1.1 client connection for tests that need to know what net/http's
// client hides: which bytes were sent, and whether a request that was sent was answered.
package rawhttp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// Conn is one connection to a server.
type Conn struct {
	net.Conn

	R *bufio.Reader // reads from the connection
}

// New returns a Conn that uses an open connection.
func New(conn net.Conn) *Conn { return &Conn{conn, bufio.NewReader(conn)} }

// Dial opens a connection that is closed when the test ends.
func Dial(tb testing.TB, address net.Addr) *Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return New(conn)
}

// Send writes text, which may be a part of a request.
func (c *Conn) Send(tb testing.TB, text string) {
	tb.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		tb.Fatal(err)
	}
}

// Response reads one response and returns an error if its status differs from status. closes
// reports whether the server announced that it closes the connection afterwards.
func (c *Conn) Response(status int) (closes bool, err error) {
	response, err := http.ReadResponse(c.R, nil)
	if err != nil {
		return false, err
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return false, err
	}
	if response.StatusCode != status {
		return false, fmt.Errorf("status %s, want %d", response.Status, status)
	}
	return response.Close, response.Body.Close()
}
