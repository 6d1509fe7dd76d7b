package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/internal/wait"
	"scalable-coupon-system/pgstore"
)

const created = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"

// noService is an address that refuses connections.
const noService = "127.0.0.1:1"

var claim = Request{User: "u", Coupon: "c"}

// serveConns listens, calls serve with each connection and its number, counted from 1, and then
// closes the connection.
func serveConns(t testing.TB, serve func(number int, conn *net.TCPConn)) (address string) {
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
				serve(number, conn.(*net.TCPConn))
			}()
		}
	}()
	return listener.Addr().String()
}

// readRequest reads one claim and reports whether there was one.
func readRequest(conn net.Conn) bool {
	_, err := conn.Read(make([]byte, 1024))
	return err == nil
}

// serveAnswer serves every request with these bytes and then closes the connection.
func serveAnswer(t testing.TB, answer string) (address string) {
	t.Helper()
	return serveConns(t, func(_ int, conn *net.TCPConn) {
		readRequest(conn)
		_, _ = io.WriteString(conn, answer)
	})
}

func newClient(t testing.TB, address string, timeout time.Duration) *Client {
	t.Helper()
	c := NewClient(address, timeout)
	t.Cleanup(c.Close)
	return c
}

func TestClient_requests(t *testing.T) {
	var method, path, contentType string
	var body map[string]any
	c := newClient(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		method, path, contentType, body = r.Method, r.RequestURI, r.Header.Get("Content-Type"), nil
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			w.WriteHeader(201)
			return
		}
		w.Header().Set("Retry-After", "2")
		_, _ = w.Write([]byte(strings.Repeat("x", 100_000))) // chunked
	}), time.Minute)

	for _, name := range []string{"sale", `quo"te\`, "new\nline\t", "名前 🎟", "a/b%2F <&>", ".", ".."} {
		a, r, err := c.Send(t.Context(), Request{User: name, Coupon: "coupon " + name})
		if a != Claimed || err != nil || r.Status != 201 || len(r.Body) != 0 || r.Answered.Before(r.Sent) || r.Sent.IsZero() {
			t.Errorf("%v, %+v, %v", a, r, err)
		}
		if path != "/api/coupons/claim" || contentType != "application/json" || body["user_id"] != name || body["coupon_name"] != "coupon "+name {
			t.Errorf("%q: %s %v", name, path, body)
		}
		a, _, err = c.Create(t.Context(), name, 3)
		if a != Created || err != nil || path != "/api/coupons" || contentType != "application/json" || body["name"] != name || body["amount"] != 3.0 {
			t.Errorf("%q: %v, %v, %s %v", name, a, err, path, body)
		}
		a, r, err = c.Send(t.Context(), Request{Coupon: name, Read: true})
		if a != ReadOK || err != nil || string(r.Body) != strings.Repeat("x", 100_000) || r.RetryAfter != 2*time.Second {
			t.Errorf("%v, %+v, %v", a, r, err)
		}
		if method != http.MethodGet || path != CouponPath(name) {
			t.Errorf("%q: %s %s", name, method, path)
		}
	}
	if a, _, err := c.Send(t.Context(), Request{User: "\xff", Coupon: "c"}); a != NotSent || err == nil {
		t.Errorf("a user that is not UTF-8: %v, %v", a, err)
	}
}

// A request is sent once: neither a connection that ends before the answer, new or kept alive, nor
// a method that may be repeated makes the client send it again.
func TestClient_neverRepeats(t *testing.T) {
	for _, request := range []Request{claim, {Coupon: "c", Read: true}} {
		for kept := range 3 { // answers before the connection is closed
			t.Run(fmt.Sprintf("read %v, after %d", request.Read, kept), func(t *testing.T) {
				var connections, requests atomic.Int32
				c := newClient(t, serveConns(t, func(number int, conn *net.TCPConn) {
					connections.Store(int32(number))
					for readRequest(conn) && requests.Add(1) <= int32(kept) {
						_, _ = io.WriteString(conn, created)
					}
				}), time.Minute)
				for range kept {
					if a, _, err := c.Send(t.Context(), request); a != Claimed {
						t.Fatal(a, err)
					}
				}
				a, r, err := c.Send(t.Context(), request)
				if a != Cut || err == nil || r.Sent.IsZero() || r.Answered.Before(r.Sent) {
					t.Errorf("%v, %+v, %v; want Cut", a, r, err)
				}
				if n := requests.Load(); n != int32(kept)+1 || connections.Load() != 1 {
					t.Errorf("%d requests over %d connections, want %d over 1", n, connections.Load(), kept+1)
				}
			})
		}
	}
}

// A request dials again after an answer that ends the connection, after one that was cut, and when
// the service has closed the connection while it was idle.
func TestClient_dialsAgain(t *testing.T) {
	for _, first := range []string{"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 2", created} {
		c := newClient(t, serveConns(t, func(number int, conn *net.TCPConn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, map[bool]string{true: first, false: created}[number == 1])
		}), time.Minute)
		_, _, _ = c.Send(t.Context(), claim)
		if c.conn != nil {
			wait.For(t, "the end of the connection", c.conn.isClosed)
			c.conn.used = time.Time{} // idle for long
		}
		if a, _, err := c.Send(t.Context(), claim); a != Claimed {
			t.Errorf("after %q: %v, %v", first, a, err)
		}
	}
}

func TestClient_noAnswer(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	for name, test := range map[string]struct {
		serve func(conn *net.TCPConn)
		want  Answer
	}{
		"reset":          {func(conn *net.TCPConn) { readRequest(conn); _ = conn.SetLinger(0) }, Cut},
		"no byte":        {func(*net.TCPConn) { <-hold }, TimedOut},
		"half an answer": {func(conn *net.TCPConn) { _, _ = io.WriteString(conn, created[:20]); <-hold }, TimedOut},
		"half a body": {func(conn *net.TCPConn) {
			_, _ = io.WriteString(conn, "HTTP/1.1 400 X\r\nContent-Length: 9\r\n\r\nx")
			<-hold
		}, TimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, serveConns(t, func(_ int, conn *net.TCPConn) { test.serve(conn) }), 100*time.Millisecond)
			if a, _, err := c.Send(t.Context(), claim); a != test.want || err == nil {
				t.Errorf("%v, %v; want %v", a, err, test.want)
			}
		})
	}
}

// An answer that is cut at any byte is not taken for a complete or a malformed one.
func TestClient_cutAnywhere(t *testing.T) {
	for _, whole := range []string{
		"HTTP/1.1 409 Conflict\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
	} {
		address := serveConns(t, func(number int, conn *net.TCPConn) {
			readRequest(conn)
			_, _ = io.WriteString(conn, whole[:number-1])
		})
		for n := range len(whole) {
			if a, _, err := newClient(t, address, time.Minute).Send(t.Context(), claim); a != Cut {
				t.Errorf("cut after %q: %v, %v", whole[:n], a, err)
			}
		}
	}
}

// Nothing was sent if no connection can be opened, or if the first write fails.
func TestClient_notSent(t *testing.T) {
	a, r, err := newClient(t, noService, time.Minute).Send(t.Context(), claim)
	if a != NotSent || err == nil || r.Sent.IsZero() || r.Answered.IsZero() {
		t.Errorf("refused: %v, %+v, %v", a, r, err)
	}

	c := newClient(t, serveConns(t, func(_ int, conn *net.TCPConn) {
		readRequest(conn)
		_, _ = io.WriteString(conn, created)
		_ = conn.SetLinger(0)
	}), time.Minute)
	if a, _, err := c.Send(t.Context(), claim); a != Claimed {
		t.Fatal(a, err)
	}
	if _, err := c.conn.Conn.Read(make([]byte, 1)); err == nil { // until the reset has arrived
		t.Fatal("a byte after the answer")
	}
	if a, _, err := c.Send(t.Context(), claim); a != NotSent || err == nil {
		t.Errorf("a reset connection: %v, %v", a, err)
	}
}

func TestClient_malformed(t *testing.T) {
	const chunked = "HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, answer := range map[string]string{
		"another protocol":             "220 ftp ready\r\n\r\n",
		"a status of letters":          "HTTP/1.1 2oo OK\r\nContent-Length: 0\r\n\r\n",
		"an interim response":          "HTTP/1.1 100 Continue\r\n\r\n" + created,
		"a header without a colon":     "HTTP/1.1 201 OK\r\nContent-Length\r\n\r\n",
		"no length":                    "HTTP/1.1 201 OK\r\n\r\n",
		"a negative length":            "HTTP/1.1 201 OK\r\nContent-Length: -1\r\n\r\n",
		"two lengths":                  "HTTP/1.1 201 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
		"another transfer coding":      "HTTP/1.1 201 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"a chunk size of letters":      chunked + "xyz\r\n",
		"a chunk longer than its size": chunked + "1\r\nxy\r\n0\r\n\r\n",
		"a header that is too long":    "HTTP/1.1 201 OK\r\nX: " + strings.Repeat("a", 10_000) + "\r\n\r\n",
		"a claim with a body":          "HTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\n{}",
		"no error body":                "HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n",
		"a proxy's body":               "HTTP/1.1 502 X\r\nContent-Length: 6\r\n\r\n<html>",
		"no code":                      "HTTP/1.1 400 X\r\nContent-Length: 13\r\n\r\n" + `{"error":"x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			a, _, err := newClient(t, serveAnswer(t, answer), time.Minute).Send(t.Context(), claim)
			if a != Malformed || err == nil || !strings.HasPrefix(err.Error(), "malformed answer: ") {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	t.Run("bytes after the answer", func(t *testing.T) {
		c := newClient(t, serveAnswer(t, created+created), time.Minute)
		if a, _, err := c.Send(t.Context(), claim); a != Claimed {
			t.Fatal(a, err)
		}
		if a, _, err := c.Send(t.Context(), claim); a != Malformed || !strings.Contains(err.Error(), "after the end of the last answer") {
			t.Errorf("%v, %v", a, err)
		}
	})
}

func TestService(t *testing.T) {
	store := apitest.NewStore()
	s := Service{Timeout: time.Minute, Address: serve(t, api.New(store, api.Options{}).ServeHTTP)}
	if err := s.Create(t.Context(), "new", 3); err != nil {
		t.Error(err)
	}
	if err := s.Create(t.Context(), "new", 3); !errors.Is(err, ErrCouponExists) {
		t.Error(err)
	}
	users := Users(100_000)
	store.Set("x", 100_001, users...)
	coupons, err := s.Coupons(t.Context(), "x", "new")
	if c := coupons["x"]; err != nil || len(coupons) != 2 || c.Name != "x" || c.Amount != 100_001 || c.Remaining != 1 || !slices.Equal(c.ClaimedBy, users) {
		t.Errorf("%d coupons, %d users, %v", len(coupons), len(c.ClaimedBy), err)
	}
	if _, err := s.Coupons(t.Context(), "none"); err == nil || !strings.Contains(err.Error(), `coupon "none": unexpected answer: status 404`) {
		t.Error(err)
	}
	store.SetError(pgstore.ErrUnavailable)
	if err := s.Create(t.Context(), "other", 3); err == nil || errors.Is(err, ErrCouponExists) || !strings.Contains(err.Error(), "UNAVAILABLE") {
		t.Error(err)
	}
}

func TestParseCoupon(t *testing.T) {
	for _, body := range []string{
		`{"name":"x","amount":3,"remaining_amount":1}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":null}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":[],"more":1}`,
		`{"name":"x","amount":3,"amount":3,"remaining_amount":1,"claimed_by":[]}`,
		`{"name":"x","amount":3.5,"remaining_amount":1,"claimed_by":[]}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":[]}{}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":["a"`,
	} {
		if c, err := ParseCoupon([]byte(body)); err == nil || !strings.Contains(err.Error(), "not a coupon") {
			t.Errorf("%s: %+v, %v", body, c, err)
		}
	}
}

// The requests of a Service end with their context, also those that were sent.
func TestService_contextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := Service{Timeout: time.Hour, Address: serveConns(t, func(_ int, conn *net.TCPConn) {
		readRequest(conn)
		cancel()
		readRequest(conn) // until the client closes it
	})}
	if err := s.Create(ctx, "c", 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
