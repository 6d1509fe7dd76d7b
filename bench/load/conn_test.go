package load

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	created = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
	post    = "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
)

// serveConns listens, calls serve with each connection and its number, counted from 1, and then
// closes the connection.
func serveConns(t testing.TB, serve func(number int, conn net.Conn)) (address string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for number := 1; ; number++ {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(number, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// readRequest reads one request without a body and reports whether there was one.
func readRequest(conn net.Conn) bool {
	buffer := make([]byte, 1024)
	n, err := conn.Read(buffer)
	return err == nil && bytes.HasSuffix(buffer[:n], []byte("\r\n\r\n"))
}

func newConn(t *testing.T, address string, timeout time.Duration) *Conn {
	t.Helper()
	c := NewConn(address, timeout)
	t.Cleanup(c.Close)
	return c
}

func TestConn_keepAlive(t *testing.T) {
	var connections atomic.Int32
	c := newConn(t, serveConns(t, func(number int, conn net.Conn) {
		connections.Store(int32(number))
		for readRequest(conn) {
			_, _ = io.WriteString(conn, created)
		}
	}), time.Minute)
	for range 3 {
		before := time.Now()
		r, err := c.Do(t.Context(), []byte(post))
		if err != nil || r.Status != 201 {
			t.Fatal(r, err)
		}
		if r.Sent.Before(before) || r.Answered.Before(r.Sent) || time.Now().Before(r.Answered) {
			t.Errorf("called at %v, sent %v, answered %v: not in order", before, r.Sent, r.Answered)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 3 requests, want 1", n)
	}
}

func TestConn_dialsAgain(t *testing.T) {
	for name, first := range map[string]string{
		"after Connection: close": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"after ErrCut":            "HTTP/1.1 2",
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(t, serveConns(t, func(number int, conn net.Conn) {
				readRequest(conn)
				if number == 1 {
					_, _ = io.WriteString(conn, first)
				} else {
					_, _ = io.WriteString(conn, created)
				}
			}), time.Minute)
			_, _ = c.Do(t.Context(), []byte(post))
			if r, err := c.Do(t.Context(), []byte(post)); err != nil || r.Status != 201 {
				t.Error(r, err)
			}
		})
	}
}

func TestConn_noAnswer(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	tests := map[string]struct {
		serve func(conn net.Conn)
		want  error
	}{
		"closed without a byte":   {func(conn net.Conn) { readRequest(conn) }, ErrCut},
		"closed inside an answer": {func(conn net.Conn) { readRequest(conn); _, _ = io.WriteString(conn, created[:20]) }, ErrCut},
		"reset": {func(conn net.Conn) {
			readRequest(conn)
			_ = conn.(*net.TCPConn).SetLinger(0)
		}, ErrCut},
		"no byte":        {func(net.Conn) { <-hold }, ErrTimeout},
		"half an answer": {func(conn net.Conn) { _, _ = io.WriteString(conn, created[:20]); <-hold }, ErrTimeout},
		"not HTTP":       {func(conn net.Conn) { readRequest(conn); _, _ = io.WriteString(conn, "220 ftp ready\r\n") }, ErrMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newConn(t, serveConns(t, func(_ int, conn net.Conn) { test.serve(conn) }), 100*time.Millisecond)
			if _, err := c.Do(t.Context(), []byte(post)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestConn_notSent(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	r, err := newConn(t, address, time.Second).Do(t.Context(), []byte(post))
	if !errors.Is(err, ErrNotSent) {
		t.Errorf("got %v, want ErrNotSent", err)
	}
	if r.Sent.IsZero() || r.Answered.IsZero() {
		t.Errorf("sent %v, answered %v: want both set", r.Sent, r.Answered)
	}
}

// Bytes after the end of an answer would be read as the answer to the next request.
func TestConn_refusesSurplusBytes(t *testing.T) {
	c := newConn(t, serveConns(t, func(_ int, conn net.Conn) {
		for readRequest(conn) {
			_, _ = io.WriteString(conn, created+created)
		}
	}), time.Minute)
	if _, err := c.Do(t.Context(), []byte(post)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), []byte(post)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "after the end of the last answer") {
		t.Errorf("got %v", err)
	}
}

func TestConn_allocatesNothing(t *testing.T) {
	c := newConn(t, serveConns(t, func(_ int, conn net.Conn) {
		buffer, answer := make([]byte, 1024), []byte(created)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
			_, _ = conn.Write(answer)
		}
	}), time.Minute)
	w := newWriter("127.0.0.1:8080")
	report := Report{}
	once := func() {
		claim := Request{User: "user-0000001", Coupon: "sale"}
		bytes, err := w.write(claim)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Do(context.Background(), bytes)
		if answer, err := classify(claim, r, err); answer != Claimed {
			t.Fatal(answer, err)
		}
		report.Claims.record(Claimed, r.Answered.Sub(r.Sent))
	}
	once()
	if n := testing.AllocsPerRun(1000, once); n != 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}
