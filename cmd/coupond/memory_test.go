package main

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/rawhttp"
)

// The memory limit bounds the responses in flight and the connections.
func TestMemoryLimit_shares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit       int64
		text        string
		inFlight    int64
		connections int
	}{
		{460 << 20, "460 MiB", 115 << 20, 7_360},
		{32 << 20, "32 MiB", 8 << 20, 512},
		{1, "1 B", 1, 1},
		{math.MaxInt64, "none", 256 << 20, maxConnections(math.MaxInt64, 16)}, // as many as there are file descriptors
	} {
		descriptors := maxConnections(math.MaxInt64, 16)
		text, inFlight, connections := formatLimit(c.limit), maxInFlight(c.limit), maxConnections(c.limit, 16)
		if text != c.text || inFlight != c.inFlight || connections != min(c.connections, descriptors) {
			t.Errorf("limit %d: %q, %d bytes in flight, %d connections; want %+v", c.limit, text, inFlight, connections, c)
		}
	}
}

// Clients cannot take the file descriptors that connections to PostgreSQL need. One that connects
// beyond the limit waits until another one leaves.
func TestServe_connectionLimit(t *testing.T) {
	t.Parallel()
	const descriptors, toPostgreSQL = 64, 4
	const limit = descriptors - toPostgreSQL - reservedFDs
	p := startCommand(t, environ(pgtest.New(t).URL, fmt.Sprint("DB_MAX_CONNS=", toPostgreSQL), "GOMEMLIMIT=64MiB"),
		fromShell(thisBinary(t, "serve"), fmt.Sprint("ulimit -n ", descriptors))).ready(t)
	if logged := p.logged(t, "starting")["memory_limit"]; logged != "64 MiB" {
		t.Errorf("the memory limit in the log is %v", logged)
	}
	var conns []*rawhttp.Conn
	for range limit + 1 {
		conn := p.dial(t)
		conn.Send(t, rawHealth)
		conns = append(conns, conn)
	}
	served, waiting := conns[:limit], conns[limit]
	for _, conn := range served {
		answered(t, conn, http.StatusOK, false)
	}
	_ = waiting.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := waiting.R.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection beyond the limit of %d: %v, want no answer yet", limit, err)
	}
	_ = served[0].Close()
	_ = waiting.SetReadDeadline(time.Now().Add(time.Minute))
	answered(t, waiting, http.StatusOK, false)
}
