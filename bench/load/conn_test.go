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
	asking  = "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
)

// scripted listens and hands each connection, with its number from 1 on, to serve; then it closes the connection.
func scripted(t testing.TB, serve func(number int, conn net.Conn)) (address string) {
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

// request reads one request as the tests here send it, and says whether there was one.
func request(conn net.Conn) bool {
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

func TestConnKeepsItsConnection(t *testing.T) {
	var connections atomic.Int32
	c := newConn(t, scripted(t, func(number int, conn net.Conn) {
		connections.Store(int32(number))
		for request(conn) {
			_, _ = io.WriteString(conn, created)
		}
	}), time.Minute)
	for range 3 {
		before := time.Now()
		r, err := c.Do(t.Context(), []byte(asking))
		if err != nil || r.Status != 201 {
			t.Fatal(r, err)
		}
		if r.Sent.Before(before) || r.Answered.Before(r.Sent) || time.Now().Before(r.Answered) {
			t.Errorf("asked at %v, sent %v, answered %v", before, r.Sent, r.Answered)
		}
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 3 requests, want 1", n)
	}
}

func TestConnDialsAgain(t *testing.T) {
	for name, first := range map[string]string{
		"after Connection: close": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"after a cut":             "HTTP/1.1 2",
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(t, scripted(t, func(number int, conn net.Conn) {
				request(conn)
				if number == 1 {
					_, _ = io.WriteString(conn, first)
				} else {
					_, _ = io.WriteString(conn, created)
				}
			}), time.Minute)
			_, _ = c.Do(t.Context(), []byte(asking))
			if r, err := c.Do(t.Context(), []byte(asking)); err != nil || r.Status != 201 {
				t.Error(r, err)
			}
		})
	}
}

func TestConnTellsWhyThereIsNoAnswer(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	tests := map[string]struct {
		serve func(conn net.Conn)
		want  error
	}{
		"closed without a byte":   {func(conn net.Conn) { request(conn) }, ErrCut},
		"closed inside an answer": {func(conn net.Conn) { request(conn); _, _ = io.WriteString(conn, created[:20]) }, ErrCut},
		"reset": {func(conn net.Conn) {
			request(conn)
			_ = conn.(*net.TCPConn).SetLinger(0)
		}, ErrCut},
		"silence":   {func(net.Conn) { <-hold }, ErrTimeout},
		"half told": {func(conn net.Conn) { _, _ = io.WriteString(conn, created[:20]); <-hold }, ErrTimeout},
		"no HTTP":   {func(conn net.Conn) { request(conn); _, _ = io.WriteString(conn, "220 ftp ready\r\n") }, ErrMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newConn(t, scripted(t, func(_ int, conn net.Conn) { test.serve(conn) }), 100*time.Millisecond)
			if _, err := c.Do(t.Context(), []byte(asking)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestConnNotSent(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	r, err := newConn(t, address, time.Second).Do(t.Context(), []byte(asking))
	if !errors.Is(err, ErrNotSent) {
		t.Errorf("got %v, want ErrNotSent", err)
	}
	if r.Sent.IsZero() || r.Answered.IsZero() {
		t.Error("no times")
	}
}

// Bytes after the end of an answer would be taken for the next one, and every answer after it for its neighbour's.
func TestConnRefusesWhatNobodyAskedFor(t *testing.T) {
	c := newConn(t, scripted(t, func(_ int, conn net.Conn) {
		for request(conn) {
			_, _ = io.WriteString(conn, created+created)
		}
	}), time.Minute)
	if _, err := c.Do(t.Context(), []byte(asking)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), []byte(asking)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "more than the last answer") {
		t.Errorf("got %v", err)
	}
}

func TestConnAllocatesNothing(t *testing.T) {
	c := newConn(t, scripted(t, func(_ int, conn net.Conn) {
		buffer, answer := make([]byte, 1024), []byte(created)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
			_, _ = conn.Write(answer)
		}
	}), time.Minute)
	w := newWriter("127.0.0.1:8080")
	answered := Report{}
	once := func() {
		claim := Request{User: "user-0000001", Coupon: "sale"}
		bytes, err := w.write(claim)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Do(context.Background(), bytes)
		if answer, err := judge(claim, r, err); answer != Claimed {
			t.Fatal(answer, err)
		}
		answered.Claims.record(Claimed, r.Answered.Sub(r.Sent))
	}
	once()
	if n := testing.AllocsPerRun(1000, once); n != 0 {
		t.Errorf("%v allocations a request, want none", n)
	}
}
