package api_test

import (
	"bufio"
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
	"scalable-coupon-system/pgstore"
)

// wire is a connection on which a test says exactly what it means; http.Client
// would tidy it up.
type wire struct {
	tb     testing.TB
	conn   *net.TCPConn
	reader *bufio.Reader
}

func (s *service) dial() *wire {
	s.tb.Helper()
	dialed, err := new(net.Dialer).DialContext(s.tb.Context(), "tcp", s.addr)
	if err != nil {
		s.tb.Fatal(err)
	}
	conn, ok := dialed.(*net.TCPConn)
	if !ok {
		s.tb.Fatalf("dialed a %T", dialed)
	}
	s.tb.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return &wire{s.tb, conn, bufio.NewReader(conn)}
}

// send writes lines as they are, with CRLF at their ends.
func (w *wire) send(lines ...string) {
	w.tb.Helper()
	w.write(strings.Join(lines, "\r\n"))
}

func (w *wire) write(text string) {
	w.tb.Helper()
	if _, err := io.WriteString(w.conn, text); err != nil {
		w.tb.Fatal(err)
	}
}

// answer reads one answer, to a request with this method and path, and holds it
// against openapi.yaml.
func (w *wire) answer(method, path string) result {
	w.tb.Helper()
	request, err := http.NewRequestWithContext(w.tb.Context(), method, "http://test"+path, io.NopCloser(strings.NewReader("unknown here")))
	if err != nil {
		w.tb.Fatal(err)
	}
	response, err := http.ReadResponse(w.reader, request)
	if err != nil {
		w.tb.Fatalf("no answer to %s %s: %v", method, path, err)
	}
	if response.StatusCode == http.StatusContinue {
		return result{status: response.StatusCode}
	}
	defer func() { _ = response.Body.Close() }()
	if err := apitest.Check(apitest.Contract(w.tb), request, nil, response); err != nil {
		w.tb.Errorf("%s %s was answered %d, against the contract: %v", method, path, response.StatusCode, err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		w.tb.Fatalf("the answer to %s %s: %v", method, path, err)
	}
	return result{response.StatusCode, response.Header, string(body), response.Close}
}

// closed waits until the service has closed the connection, and returns what it
// still sent.
func (w *wire) closed() string {
	w.tb.Helper()
	rest, err := io.ReadAll(w.reader)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		w.tb.Fatal("the connection is still open")
	}
	return string(rest)
}

const postClaim = "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\n"

func claimBody(size int) string {
	body := object("user_id", "ada", "coupon_name", "sale")
	return body + strings.Repeat(" ", size-len(body))
}

func chunked(body string) string {
	return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
}

func measured(body string) string {
	return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// The size of a body counts, not what is said about it.
func TestBodySize(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	const most = 64 << 10
	for _, c := range []struct {
		name, request string
		status        int
		code          api.Code
		calls         int64
	}{
		{"64 KiB", measured(claimBody(most)), 201, "", 1},
		{"64 KiB in a chunk", chunked(claimBody(most)), 409, api.CodeAlreadyClaimed, 1},
		{"a byte more", measured(claimBody(most + 1)), 413, api.CodeBodyTooLarge, 0},
		{"a byte more in a chunk", chunked(claimBody(most + 1)), 413, api.CodeBodyTooLarge, 0},
		{"a megabyte in a chunk", chunked(claimBody(1 << 20)), 413, api.CodeBodyTooLarge, 0},
		// The body never comes, and nobody waits for it.
		{"said to be a byte more", "Content-Length: 65537\r\n\r\n{", 413, api.CodeBodyTooLarge, 0},
		{"said to be enormous", "Content-Length: 9223372036854775807\r\n\r\n", 413, api.CodeBodyTooLarge, 0},
		{"none said", "\r\n", 400, api.CodeInvalidRequest, 0},
		{"said to be 0", "Content-Length: 0\r\n\r\n", 400, api.CodeInvalidRequest, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.store.Calls()
			w := s.dial()
			w.write(postClaim + c.request)
			got := w.answer("POST", "/api/coupons/claim")
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

// A body that is not as long as it says.
func TestBodyThatLies(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	calls := s.store.Calls()
	body := claimBody(50)
	const sentence = "the body must be as long as its Content-Length or its chunks say"

	t.Run("ends too early", func(t *testing.T) {
		w := s.dial()
		w.write(postClaim + "Content-Length: 51\r\n\r\n" + body)
		_ = w.conn.CloseWrite()
		got := w.answer("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if got.error(t).Error != sentence {
			t.Error(got.body)
		}
		w.closed()
	})
	t.Run("broken chunk", func(t *testing.T) {
		w := s.dial()
		w.write(postClaim + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body)
		got := w.answer("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if got.error(t).Error != sentence {
			t.Error(got.body)
		}
		w.closed()
	})
	t.Run("goes on after its end", func(t *testing.T) {
		w := s.dial()
		w.write(postClaim + "Content-Length: 20\r\n\r\n" + body + "\r\n\r\n")
		got := w.answer("POST", "/api/coupons/claim")
		got.want(t, 400, api.CodeInvalidRequest)
		if rest := w.closed(); !strings.HasPrefix(rest, "HTTP/1.1 400 Bad Request") {
			t.Errorf("what is no request was answered %q", rest)
		}
	})
	if got := s.store.Calls(); got != calls {
		t.Errorf("the Store was called %d times", got-calls)
	}
}

// What net/http refuses by itself never gets to a handler.
func TestRequestsThatAreNotHTTP(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		name, request string
		status        int
	}{
		{"Content-Length that is no number", postClaim + "Content-Length: ten\r\n\r\n", 400},
		{"negative Content-Length", postClaim + "Content-Length: -1\r\n\r\n", 400},
		{"two Content-Lengths", postClaim + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400},
		{"unknown Transfer-Encoding", postClaim + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"broken percent-encoding", "GET /api/coupons/%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"space in the path", "GET /api/coupons/a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"no Host", "GET /api/coupons/a HTTP/1.1\r\n\r\n", 400},
		{"broken header", "GET /health HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
		{"control character in a header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\x00b\r\n\r\n", 400},
		{"HTTP of the future", "GET /health HTTP/9.0\r\nHost: x\r\n\r\n", 505},
		{"no HTTP", "hello\r\n\r\n", 400},
		{"large header", "GET /health HTTP/1.1\r\nHost: x\r\nX-Padding: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431},
		{"unknown expectation", postClaim + "Content-Length: 2\r\nExpect: the-unexpected\r\n\r\n{}", 417},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := s.dial()
			w.write(c.request)
			got := w.answer("GET", "/health")
			if got.status != c.status {
				t.Errorf("answered %d, want %d: %s", got.status, c.status, got.body)
			}
		})
	}
	if n := s.store.Calls(); n != 0 {
		t.Errorf("the Store was called %d times", n)
	}
}

func TestPathsAsSent(t *testing.T) {
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
		"http://elsewhere/api/coupons/%2E#no": "", // # belongs to no request: it is part of the name here
	} {
		w := s.dial()
		w.send("GET "+target+" HTTP/1.1", "Host: x", "", "")
		got := w.answer("GET", strings.TrimPrefix(target, "http://elsewhere"))
		if want == "" {
			if got.status == 200 {
				t.Errorf("GET %s is answered %s", target, got.body)
			}
			continue
		}
		if got.status != 200 || got.coupon(t).Name != want {
			t.Errorf("GET %s is answered %d %s, want the coupon %q", target, got.status, got.body, want)
		}
	}
	for _, line := range []string{"OPTIONS * HTTP/1.1", "CONNECT x:443 HTTP/1.1", "GET / HTTP/1.1", "BREW /pot HTTP/1.1"} {
		w := s.dial()
		w.send(line, "Host: x", "", "")
		got := w.answer("GET", "/nothing")
		got.want(t, 404, api.CodeNotFound)
	}
}

func TestHeadersAsSent(t *testing.T) {
	s := serve(t)
	s.create("sale", 1000).want(t, 201, "")
	body := measured(claimBody(60))
	for _, c := range []struct {
		name, header string
		status       int
	}{
		{"no Content-Type", "", 201},
		{"empty Content-Type", "Content-Type:\r\n", 409},
		{"lower case", "content-type: application/json\r\n", 409},
		{"two Content-Types", "Content-Type: application/json\r\nContent-Type: application/json\r\n", 415},
		{"two unlike Content-Types", "Content-Type: application/json\r\nContent-Type: text/plain\r\n", 415},
	} {
		w := s.dial()
		w.write(postClaim + c.header + body)
		if got := w.answer("POST", "/api/coupons/claim"); got.status != c.status {
			t.Errorf("%s: answered %d, want %d: %s", c.name, got.status, c.status, got.body)
		}
	}
}

// Expect: 100-continue is granted where the body will be read, and only there.
func TestExpectContinue(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	body := claimBody(60)
	expect := fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n", len(body))

	w := s.dial()
	w.write(postClaim + expect + "\r\n")
	got := w.answer("POST", "/api/coupons/claim")
	got.want(t, 100, "")
	w.write(body)
	got = w.answer("POST", "/api/coupons/claim")
	got.want(t, 201, "")

	w = s.dial()
	w.write(postClaim + expect + "Content-Type: text/plain\r\n\r\n")
	got = w.answer("POST", "/api/coupons/claim")
	got.want(t, 415, api.CodeUnsupportedMediaType)
	if !got.closes {
		t.Error("the connection goes on, though nobody knows whether the body will come")
	}

	w = s.dial()
	w.write(postClaim + "Expect: 100-continue\r\nContent-Length: 65537\r\n\r\n")
	got = w.answer("POST", "/api/coupons/claim")
	got.want(t, 413, api.CodeBodyTooLarge)
}

// One connection carries many requests, also such as were sent ahead, also old ones.
func TestConnectionGoesOn(t *testing.T) {
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	w := s.dial()
	one := postClaim + measured(claimBody(60))
	w.write(one + one + "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + one)
	for i, status := range []int{201, 409, 404, 409} {
		path := "/api/coupons/claim"
		method := "POST"
		if status == 404 {
			method, path = "GET", "/nothing"
		}
		got := w.answer(method, path)
		if got.status != status || got.closes {
			t.Errorf("answer %d is %d, close %v; want %d", i, got.status, got.closes, status)
		}
	}

	w = s.dial()
	w.write("POST /api/coupons/claim HTTP/1.0\r\nConnection: keep-alive\r\n" + measured(claimBody(60)))
	got := w.answer("POST", "/api/coupons/claim")
	got.want(t, 409, api.CodeAlreadyClaimed)
	if got.closes {
		t.Error("a connection of HTTP/1.0 that asks to go on is closed")
	}
	w.write("GET /api/coupons/sale HTTP/1.0\r\n\r\n")
	got = w.answer("GET", "/api/coupons/sale")
	got.want(t, 200, "")
	w.closed()
}

// A body has until its deadline, and not longer.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	const deadline = time.Second
	s := serve(t, func(s *service) { s.handler.Hurry(deadline, time.Minute) })
	s.create("sale", 1).want(t, 201, "")
	calls := s.store.Calls()

	tooSlow := s.dial()
	began := time.Now()
	tooSlow.write(postClaim + "Content-Length: 60\r\n\r\n{")

	// Refused, or answered, before the body is read: nobody waits for it to tell so,
	// and nobody waits for it for ever.
	var early []*wire
	for _, request := range []string{
		"POST /api/coupons HTTP/1.1\r\nContent-Type: text/plain\r\n",
		"POST /nothing HTTP/1.1\r\n",
		"PUT /api/coupons HTTP/1.1\r\n",
		"GET /nothing HTTP/1.1\r\n",
		"GET /health HTTP/1.1\r\n",
	} {
		words := strings.Fields(request)
		w := s.dial()
		began := time.Now()
		w.write(request + "Host: x\r\nContent-Length: 60\r\n\r\n{")
		got := w.answer(words[0], words[1])
		if took := time.Since(began); took >= deadline {
			t.Errorf("%s %s is answered after %v", words[0], words[1], took)
		}
		if !got.closes {
			t.Errorf("%s %s: the connection goes on in the middle of a body", words[0], words[1])
		}
		early = append(early, w)
	}

	got := tooSlow.answer("POST", "/api/coupons/claim")
	got.want(t, 400, api.CodeInvalidRequest)
	if want := "the body must arrive within 1s"; got.error(t).Error != want || !got.closes {
		t.Errorf("answered %s, close %v", got.body, got.closes)
	}
	if took := time.Since(began); took < deadline || took > 10*deadline {
		t.Errorf("answered after %v", took)
	}
	for _, w := range append(early, tooSlow) {
		w.closed()
	}
	if got := s.store.Calls(); got != calls {
		t.Errorf("the Store was called %d times", got-calls)
	}
}

// A body that drips is read, if only it is there in time.
func TestDrippingBody(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.create("sale", 1).want(t, 201, "")
	w := s.dial()
	w.write(postClaim + "Content-Length: 60\r\n\r\n")
	for _, c := range claimBody(60) {
		w.write(string(c))
		time.Sleep(time.Millisecond)
	}
	w.answer("POST", "/api/coupons/claim").want(t, 201, "")
}

// The deadline of the body is over when it has arrived: it must not cut what
// comes after, neither the claim nor the next request.
func TestDeadlineOfTheBodyEnds(t *testing.T) {
	t.Parallel()
	const deadline = 100 * time.Millisecond
	s := serve(t, func(s *service) { s.handler.Hurry(deadline, time.Minute) })
	s.store.claim = func(ctx context.Context, _, _ string) (pgstore.ClaimStatus, error) {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(3 * deadline):
			return pgstore.Claimed, nil
		}
	}
	w := s.dial()
	for range 2 {
		w.write(postClaim + measured(claimBody(60)))
		got := w.answer("POST", "/api/coupons/claim")
		got.want(t, 201, "")
		time.Sleep(2 * deadline)
	}
}

// A header that drips is cut off, without an answer.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	s := serve(t, func(s *service) { s.server.ReadHeaderTimeout = 200 * time.Millisecond })
	w := s.dial()
	began := time.Now()
	w.write("GET /health HTTP/1.1\r\nHost: x\r\n")
	for range 100 {
		if _, err := io.WriteString(w.conn, "X: y\r\n"); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if rest := w.closed(); rest != "" {
		t.Errorf("answered %q", rest)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("cut off after %v", took)
	}
}

// A claim may take longer than an answer has to be taken: its deadline begins
// when there is an answer.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, func(s *service) { s.server.WriteTimeout = 1100 * time.Millisecond })
	s.store.claim = func(context.Context, string, string) (pgstore.ClaimStatus, error) {
		time.Sleep(1300 * time.Millisecond)
		return pgstore.Claimed, nil
	}
	s.claim("ada", "sale").want(t, 201, "")
}
