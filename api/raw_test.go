package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/internal/rawhttp"
	"scalable-coupon-system/pgstore"
)

// rawConn is a connection for requests that http.Client cannot send.
type rawConn struct {
	*rawhttp.Conn

	tb testing.TB
}

func (s *service) dial() *rawConn {
	s.tb.Helper()
	conn := rawhttp.Dial(s.tb, s.addr)
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.tb.Fatal(err)
	}
	return &rawConn{conn, s.tb}
}

func (c *rawConn) tcp() *net.TCPConn { return c.Conn.Conn.(*net.TCPConn) }

// sendLines sends lines unchanged, with CRLF between them.
func (c *rawConn) sendLines(lines ...string) {
	c.tb.Helper()
	c.send(strings.Join(lines, "\r\n"))
}

func (c *rawConn) send(text string) {
	c.tb.Helper()
	c.Send(c.tb, text)
}

// response reads the response to a request with this method and path, and checks it against
// openapi.yaml.
func (c *rawConn) response(method, path string) result {
	c.tb.Helper()
	request, err := http.NewRequestWithContext(c.tb.Context(), method, "http://test"+path, io.NopCloser(strings.NewReader("not checked")))
	if err != nil {
		c.tb.Fatal(err)
	}
	response, err := http.ReadResponse(c.R, request)
	if err != nil {
		c.tb.Fatalf("no response to %s %s: %v", method, path, err)
	}
	if response.StatusCode == http.StatusContinue {
		return result{status: response.StatusCode}
	}
	defer func() { _ = response.Body.Close() }()
	if err := apitest.Check(request, response); err != nil {
		c.tb.Errorf("%s %s: status %d violates the contract: %v", method, path, response.StatusCode, err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		c.tb.Fatalf("read the response to %s %s: %v", method, path, err)
	}
	return result{response.StatusCode, response.Header, string(body), response.Close}
}

// waitClosed waits until the service has closed the connection, and returns what it sent before
// that.
func (c *rawConn) waitClosed() string {
	c.tb.Helper()
	rest, err := io.ReadAll(c.R)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		c.tb.Fatal("the connection is still open")
	}
	return string(rest)
}

// postClaim is a claim, to be followed by its length and its body.
const postClaim = "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

func claimBody(size int) string {
	body := object("user_id", "ada", "coupon_name", "sale")
	return body + strings.Repeat(" ", size-len(body))
}

func chunked(body string) string {
	return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
}

func withContentLength(body string) string {
	return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// Both the actual and the announced size of a body are limited.
func TestBody_size(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	const limit = 8 << 10
	for _, c := range []struct {
		name, request string
		status        int
		code          api.Code
		calls         int64
	}{
		{"8 KiB", withContentLength(claimBody(limit)), 201, "", 1},
		{"8 KiB, chunked", chunked(claimBody(limit)), 409, api.CodeAlreadyClaimed, 1},
		{"one byte too many", withContentLength(claimBody(limit + 1)), 413, api.CodeBodyTooLarge, 0},
		{"one byte too many, chunked", chunked(claimBody(limit + 1)), 413, api.CodeBodyTooLarge, 0},
		{"1 MiB, chunked", chunked(claimBody(1 << 20)), 413, api.CodeBodyTooLarge, 0},
		// The body never arrives, and the service does not wait for it.
		{"announced as one byte too many", "Content-Length: 8193\r\n\r\n{", 413, api.CodeBodyTooLarge, 0},
		{"announced as enormous", "Content-Length: 9223372036854775807\r\n\r\n", 413, api.CodeBodyTooLarge, 0},
		{"no Content-Length", "\r\n", 400, api.CodeInvalidRequest, 0},
		{"Content-Length 0", "Content-Length: 0\r\n\r\n", 400, api.CodeInvalidRequest, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.store.Calls()
			conn := s.dial()
			conn.send(postClaim + c.request)
			got := conn.response("POST", "/api/coupons/claim")
			got.want(t, c.status, c.code)
			if unread := c.status == 413; got.closes != unread {
				t.Errorf("Connection: close is %v, want %v", got.closes, unread)
			}
			if calls := s.store.Calls() - before; calls != c.calls {
				t.Errorf("the Store was called %d times, want %d", calls, c.calls)
			}
		})
	}
}

// A body must be as long as announced.
func TestBody_lengthMismatch(t *testing.T) {
	t.Parallel()
	s := serve(t)
	body := claimBody(50)
	for _, c := range []struct{ name, rest, message string }{
		{"too short", "Content-Length: 51\r\n\r\n" + body, "the body must be as long as its Content-Length, or correctly chunked"},
		{"malformed chunk", "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body, "the body must be as long as its Content-Length, or correctly chunked"},
		{"too long", "Content-Length: 20\r\n\r\n" + body + "\r\n\r\n", notJSON + "20"},
	} {
		conn := s.dial()
		conn.send(postClaim + c.rest)
		_ = conn.tcp().CloseWrite()
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if got.error(t).Error != c.message {
			t.Errorf("%s: %s", c.name, got.body)
		}
		// The rest of a body that is too long is not a valid request.
		if rest := conn.waitClosed(); c.name == "too long" && !strings.HasPrefix(rest, "HTTP/1.1 400 Bad Request") {
			t.Errorf("the rest of the body was answered with %q, want 400", rest)
		}
	}
	if calls := s.store.Calls(); calls != 0 {
		t.Errorf("the Store was called %d times", calls)
	}
}

// net/http rejects what is not valid HTTP with these statuses, before the handler.
func TestServer_invalidHTTP(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"Content-Length not a number", postClaim + "Content-Length: ten\r\n\r\n", 400},
		{"two Content-Lengths", postClaim + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400},
		{"malformed percent-encoding", "GET /api/coupons/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"control character in a header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x00b\r\n\r\n", 400},
		{"not HTTP", "hello\r\n\r\n", 400},
		{"unknown expectation", postClaim + "Content-Length: 2\r\nExpect: the-unexpected\r\n\r\n{}", 417},
		{"large header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Padding: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431},
		{"unknown Transfer-Encoding", postClaim + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"unsupported HTTP version", "GET /health HTTP/9.0\r\nHost: x\r\n\r\n", 505},
	} {
		conn := s.dial()
		conn.send(c.request)
		if _, err := conn.Response(c.status); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := s.store.Calls(); n != 0 {
		t.Errorf("the Store was called %d times", n)
	}
}

// The target of a request is used as sent (FuzzPath has more of them).
func TestPath_asSent(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for line, path := range map[string]string{
		"OPTIONS * HTTP/1.1":               "/nothing",
		"CONNECT x:443 HTTP/1.1":           "/nothing",
		"BREW /pot HTTP/1.1":               "/nothing",
		"GET /api/coupons/claim# HTTP/1.1": "/api/coupons/none", // not a fragment: # is a part of the name
	} {
		conn := s.dial()
		conn.sendLines(line, "Host: x", "", "")
		if got := conn.response("GET", path); got.status != 404 {
			t.Errorf("%s: status %d", line, got.status)
		}
	}
}

// The service sends 100 Continue only if it is going to read the body.
func TestBody_expectContinue(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	body := claimBody(60)
	expect := fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n", len(body))

	conn := s.dial()
	conn.send(postClaim + expect + "\r\n")
	got := conn.response("POST", "/api/coupons/claim")
	got.want(t, 100, "")
	conn.send(body)
	got = conn.response("POST", "/api/coupons/claim")
	got.want(t, 201, "")

	conn = s.dial()
	conn.send(strings.Replace(postClaim, typeJSON, textPlain, 1) + expect + "\r\n")
	got = conn.response("POST", "/api/coupons/claim")
	got.want(t, 415, api.CodeUnsupportedMediaType)
	if !got.closes {
		t.Error("the connection stays open although the body may still arrive")
	}
}

// A body must arrive before its deadline.
func TestBody_slow(t *testing.T) {
	t.Parallel()
	s := serve(t, func(s *service) { s.handler.SetTimeouts(50*time.Millisecond, time.Minute) })
	conn := s.dial()
	conn.send(postClaim + "Content-Length: 60\r\n\r\n{")
	got := conn.response("POST", "/api/coupons/claim")
	got.want(t, 400, api.CodeInvalidRequest)
	if want := "the body must arrive within 50ms"; got.error(t).Error != want || !got.closes {
		t.Errorf("body %s, close %v; want %q and close", got.body, got.closes, want)
	}
	conn.waitClosed()
	if calls := s.store.Calls(); calls != 0 {
		t.Errorf("the Store was called %d times", calls)
	}
}

// A response that does not depend on the body is sent before the body arrives, and its connection
// is closed at the latest at the deadline of the body.
func TestBody_notAwaited(t *testing.T) {
	t.Parallel()
	for _, deadline := range []time.Duration{time.Minute, 50 * time.Millisecond} { // a minute is longer than dial allows
		s := serve(t, func(s *service) { s.handler.SetTimeouts(deadline, time.Minute) })
		for _, request := range []string{
			"POST /api/coupons HTTP/1.1\r\nContent-Type: text/plain\r\n",
			"POST /nothing HTTP/1.1\r\n",
			"PUT /api/coupons HTTP/1.1\r\n",
			"GET /nothing HTTP/1.1\r\n",
			"GET /health HTTP/1.1\r\n",
		} {
			words := strings.Fields(request)
			conn := s.dial()
			conn.send(request + "Host: x\r\nContent-Length: 60\r\n\r\n{")
			if got := conn.response(words[0], words[1]); !got.closes {
				t.Errorf("%s %s: the connection stays open in the middle of a body", words[0], words[1])
			}
			if deadline < time.Minute {
				conn.waitClosed()
			}
		}
	}
}

// The deadline of a body applies neither to the claim nor to the next request.
func TestBody_deadlineIsCleared(t *testing.T) {
	t.Parallel()
	const deadline = 100 * time.Millisecond
	s := serve(t, func(s *service) { s.handler.SetTimeouts(deadline, time.Minute) })
	s.store.claim = func(ctx context.Context, _, _ string) (pgstore.ClaimStatus, error) {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(2 * deadline):
			return pgstore.Claimed, nil
		}
	}
	conn := s.dial()
	for range 2 {
		conn.send(postClaim + withContentLength(claimBody(60)))
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 201, "")
	}
}

// deadlineWriter is a ResponseWriter that has the write deadline of a connection.
type deadlineWriter struct {
	*httptest.ResponseRecorder

	deadline time.Time
	late     bool // something was written after the deadline
}

func (w *deadlineWriter) SetWriteDeadline(deadline time.Time) error {
	w.deadline = deadline
	return nil
}

func (w *deadlineWriter) Write(p []byte) (int, error) {
	w.late = w.late || time.Now().After(w.deadline)
	time.Sleep(29 * time.Second) // a slow client, in the time of synctest
	return w.ResponseRecorder.Write(p)
}

// The time for the client to read the response starts when the response does, and again with each
// part of a large one: a claim, and a slow client, may take longer than WriteTimeout.
func TestResponse_deadlineRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStub()
		store.claim = func(context.Context, string, string) (pgstore.ClaimStatus, error) {
			time.Sleep(time.Minute)
			return pgstore.OutOfStock, nil
		}
		const claims = 20_000
		store.coupon = pagedCoupon(claims, repeat(userPage(claims/10), 10, nil))
		handler := api.New(store, api.Options{})
		claim := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/coupons/claim", strings.NewReader(adaClaims))
		claim.Header.Set("Content-Type", typeJSON)
		for _, request := range []*http.Request{claim, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/coupons/big", nil)} {
			w := &deadlineWriter{httptest.NewRecorder(), time.Now().Add(30 * time.Second), false}
			handler.ServeHTTP(w, request)
			if w.late || w.Body.Len() == 0 {
				t.Errorf("%s: a part of the response, %d bytes, is written after the deadline", request.URL, w.Body.Len())
			}
		}
	})
}
