package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
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

const (
	postClaim    = postAnything + "Content-Type: application/json\r\n"
	postAnything = "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\n" // without Content-Type
)

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
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	calls := s.store.Calls()
	body := claimBody(50)
	const message = "the body must be as long as its Content-Length, or correctly chunked"

	t.Run("too short", func(t *testing.T) {
		conn := s.dial()
		conn.send(postClaim + "Content-Length: 51\r\n\r\n" + body)
		_ = conn.tcp().CloseWrite()
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if got.error(t).Error != message {
			t.Error(got.body)
		}
		conn.waitClosed()
	})
	t.Run("malformed chunk", func(t *testing.T) {
		conn := s.dial()
		conn.send(postClaim + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body)
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if got.error(t).Error != message {
			t.Error(got.body)
		}
		conn.waitClosed()
	})
	t.Run("too long", func(t *testing.T) {
		conn := s.dial()
		conn.send(postClaim + "Content-Length: 20\r\n\r\n" + body + "\r\n\r\n")
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if rest := conn.waitClosed(); !strings.HasPrefix(rest, "HTTP/1.1 400 Bad Request") {
			t.Errorf("the rest of the body was answered with %q, want 400", rest)
		}
	})
	if got := s.store.Calls(); got != calls {
		t.Errorf("the Store was called %d times", got-calls)
	}
}

// net/http rejects these requests before the handler.
func TestServer_invalidHTTP(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"Content-Length not a number", postClaim + "Content-Length: ten\r\n\r\n", 400},
		{"negative Content-Length", postClaim + "Content-Length: -1\r\n\r\n", 400},
		{"two Content-Lengths", postClaim + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400},
		{"unknown Transfer-Encoding", postClaim + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"malformed percent-encoding", "GET /api/coupons/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"space in the path", "GET /api/coupons/a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"no Host", "GET /api/coupons/a HTTP/1.1\r\n\r\n", 400},
		{"malformed header", "GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
		{"control character in a header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x00b\r\n\r\n", 400},
		{"unsupported HTTP version", "GET /health HTTP/9.0\r\nHost: x\r\n\r\n", 505},
		{"not HTTP", "hello\r\n\r\n", 400},
		{"large header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Padding: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431},
		{"unknown expectation", postClaim + "Content-Length: 2\r\nExpect: the-unexpected\r\n\r\n{}", 417},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := s.dial()
			conn.send(c.request)
			if _, err := conn.Response(c.status); err != nil {
				t.Error(err)
			}
		})
	}
	if n := s.store.Calls(); n != 0 {
		t.Errorf("the Store was called %d times", n)
	}
}

func TestPath_asSent(t *testing.T) {
	s := serve(t)
	for _, name := range []string{".", "..", "a/b", "claim", "a;b", "a+b"} {
		s.create(name, 1).want(t, 201, "")
	}
	for target, want := range map[string]string{
		"/api/coupons/%2E":                    ".",
		"/api/coupons/%2e%2e":                 "..",
		"/api/coupons/.":                      ".",
		"/api/coupons/..":                     "..",
		"/api/coupons/a%2Fb":                  "a/b",
		"/api/coupons/a%2fb?x=/y":             "a/b",
		"/api/coupons/%63laim":                "claim",
		"/api/coupons/a;b":                    "a;b",
		"/api/coupons/a+b":                    "a+b",
		"/api/coupons/claim?":                 "claim",
		"http://elsewhere/api/coupons/claim":  "claim",
		"http://elsewhere/api/coupons/%2E#no": "", // not a fragment: in a request line, # is part of the name
	} {
		conn := s.dial()
		conn.sendLines("GET "+target+" HTTP/1.1", "Host: x", "", "")
		got := conn.response("GET", strings.TrimPrefix(target, "http://elsewhere"))
		if want == "" {
			if got.status == 200 {
				t.Errorf("GET %s: status 200, body %s", target, got.body)
			}
			continue
		}
		if got.status != 200 || got.coupon(t).Name != want {
			t.Errorf("GET %s: status %d, body %s, want the coupon %q", target, got.status, got.body, want)
		}
	}
	for _, line := range []string{"OPTIONS * HTTP/1.1", "CONNECT x:443 HTTP/1.1", "BREW /pot HTTP/1.1"} {
		conn := s.dial()
		conn.sendLines(line, "Host: x", "", "")
		got := conn.response("GET", "/nothing")
		got.want(t, 404, api.CodeNotFound)
	}
}

func TestContentType_asSent(t *testing.T) {
	s := serve(t)
	s.create("sale", 1000).want(t, 201, "")
	body := withContentLength(claimBody(60))
	for _, c := range []struct {
		name, header string
		status       int
	}{
		{"lower case", "content-type: application/json\r\n", 201},
		{"no Content-Type", "", 415},
		{"empty Content-Type", "Content-Type:\r\n", 415},
		{"two Content-Types", "Content-Type: application/json\r\nContent-Type: application/json\r\n", 415},
		{"two different Content-Types", "Content-Type: application/json\r\nContent-Type: text/plain\r\n", 415},
	} {
		conn := s.dial()
		conn.send(postAnything + c.header + body)
		if got := conn.response("POST", "/api/coupons/claim"); got.status != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.name, got.status, c.status, got.body)
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
	conn.send(postAnything + expect + "Content-Type: text/plain\r\n\r\n")
	got = conn.response("POST", "/api/coupons/claim")
	got.want(t, 415, api.CodeUnsupportedMediaType)
	if !got.closes {
		t.Error("the connection stays open although the body may still arrive")
	}

	conn = s.dial()
	conn.send(postClaim + "Expect: 100-continue\r\nContent-Length: 8193\r\n\r\n")
	got = conn.response("POST", "/api/coupons/claim")
	got.want(t, 413, api.CodeBodyTooLarge)
}

// A connection serves several requests, also pipelined ones and those of HTTP/1.0.
func TestServer_keepAlive(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	conn := s.dial()
	one := postClaim + withContentLength(claimBody(60))
	conn.send(one + one + "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + one)
	for i, status := range []int{201, 409, 404, 409} {
		path := "/api/coupons/claim"
		method := "POST"
		if status == 404 {
			method, path = "GET", "/nothing"
		}
		got := conn.response(method, path)
		if got.status != status || got.closes {
			t.Errorf("response %d: status %d, close %v; want %d", i, got.status, got.closes, status)
		}
	}

	conn = s.dial()
	conn.send("POST /api/coupons/claim HTTP/1.0\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n" + withContentLength(claimBody(60)))
	got := conn.response("POST", "/api/coupons/claim")
	got.want(t, 409, api.CodeAlreadyClaimed)
	if got.closes {
		t.Error("an HTTP/1.0 connection with keep-alive is closed")
	}
	conn.send("GET /api/coupons/sale HTTP/1.0\r\n\r\n")
	got = conn.response("GET", "/api/coupons/sale")
	got.want(t, 200, "")
	conn.waitClosed()
}

// A body must arrive before its deadline.
func TestBody_slow(t *testing.T) {
	t.Parallel()
	const deadline = time.Second
	s := serve(t, func(s *service) { s.handler.SetTimeouts(deadline, time.Minute) })
	s.create("sale", 1).want(t, 201, "")
	calls := s.store.Calls()

	tooSlow := s.dial()
	began := time.Now()
	tooSlow.send(postClaim + "Content-Length: 60\r\n\r\n{")

	// These responses do not depend on the body: they are sent before it arrives, and the connections
	// are closed at the latest at the deadline.
	var early []*rawConn
	for _, request := range []string{
		"POST /api/coupons HTTP/1.1\r\nContent-Type: text/plain\r\n",
		"POST /nothing HTTP/1.1\r\n",
		"PUT /api/coupons HTTP/1.1\r\n",
		"GET /nothing HTTP/1.1\r\n",
		"GET /health HTTP/1.1\r\n",
	} {
		words := strings.Fields(request)
		conn := s.dial()
		began := time.Now()
		conn.send(request + "Host: x\r\nContent-Length: 60\r\n\r\n{")
		got := conn.response(words[0], words[1])
		if took := time.Since(began); took >= deadline {
			t.Errorf("%s %s: response after %v", words[0], words[1], took)
		}
		if !got.closes {
			t.Errorf("%s %s: the connection stays open in the middle of a body", words[0], words[1])
		}
		early = append(early, conn)
	}

	got := tooSlow.response("POST", "/api/coupons/claim")
	got.want(t, 400, api.CodeInvalidRequest)
	if want := "the body must arrive within 1s"; got.error(t).Error != want || !got.closes {
		t.Errorf("body %s, close %v; want %q and close", got.body, got.closes, want)
	}
	if took := time.Since(began); took < deadline || took > 10*deadline {
		t.Errorf("response after %v, want it after %v", took, deadline)
	}
	for _, conn := range append(early, tooSlow) {
		conn.waitClosed()
	}
	if got := s.store.Calls(); got != calls {
		t.Errorf("the Store was called %d times", got-calls)
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
		case <-time.After(3 * deadline):
			return pgstore.Claimed, nil
		}
	}
	conn := s.dial()
	for range 2 {
		conn.send(postClaim + withContentLength(claimBody(60)))
		got := conn.response("POST", "/api/coupons/claim")
		got.want(t, 201, "")
		time.Sleep(2 * deadline)
	}
}

// The write deadline starts when the response does: a claim may take longer than WriteTimeout.
func TestClaim_lateResponse(t *testing.T) {
	t.Parallel()
	s := serve(t, func(s *service) { s.server.WriteTimeout = 1100 * time.Millisecond })
	s.store.claim = func(context.Context, string, string) (pgstore.ClaimStatus, error) {
		time.Sleep(1300 * time.Millisecond)
		return pgstore.Claimed, nil
	}
	s.claim("ada", "sale").want(t, 201, "")
}
