package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"scalable-coupon-system/pgstore"
)

// A failure after the first part of a response cuts it off, so that it is never complete and wrong.
// It ends in a reset: a client of HTTP/1.0 has no other way to see that it is not complete.
func TestReset_cutResponse(t *testing.T) {
	t.Parallel()
	users := userPage(10_000)
	// then yields a page and does something else.
	then := func(f func()) pages {
		return func(yield func([]string, error) bool) {
			yield(users, nil)
			f()
		}
	}
	for name, c := range map[string]struct {
		pages   pages
		unnamed bool           // the log does not say why
		cut     func(*service) // after the first part was read
	}{
		"an error":          {pages: repeat(users, 1, errFault)},
		"a page is missing": {pages: repeat(users, 1, nil)},
		"one page too many": {pages: repeat(users, 3, nil)},
		"a panic":           {pages: then(func() { panic("boom") })},
		"an aborted panic":  {pages: then(func() { panic(http.ErrAbortHandler) }), unnamed: true},
		// As after SHUTDOWN_TIMEOUT. The kernel does the same when the process is killed.
		"closed by the server": {
			pages: then(func() { <-t.Context().Done() }),
			cut:   func(s *service) { _ = s.server.Close() },
		},
	} {
		for _, version := range []string{"HTTP/1.0", "HTTP/1.1"} {
			t.Run(name+", "+version, func(t *testing.T) {
				s := serve(t)
				s.store.coupon = pagedCoupon(20_000, c.pages)
				conn := s.dial()
				conn.sendLines("GET /api/coupons/big "+version, "Host: x", "Connection: close", "", "")
				if _, err := conn.R.Peek(1_000); err != nil {
					t.Fatal(err)
				}
				if c.cut != nil {
					c.cut(s)
				}
				body, err := io.ReadAll(conn.R)
				if !errors.Is(err, syscall.ECONNRESET) || strings.HasSuffix(string(body), "]}\n") {
					t.Errorf("%d bytes, then %v; want a part, then a reset", len(body), err)
				}
				if c.cut != nil {
					return
				}
				if line := s.log.line(t); line["aborted"] != true || line["status"] != 200.0 || (line["error"] == nil) != c.unnamed {
					t.Errorf("logged %v", line)
				}
			})
		}
	}
}

// A client that disconnects or stops reading ends the response: no more claimers are read. Also one
// with a Content-Length ends in a reset.
func TestReset_clientStopsReading(t *testing.T) {
	t.Parallel()
	endless := repeat(userPage(10_000), 1<<31-1, nil)
	whole := func(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
		return pgstore.NewCoupon(name, 1_000, wideUsers(1_000)), true, nil
	}
	for name, c := range map[string]struct {
		coupon      func(context.Context, string) (*pgstore.Coupon, bool, error)
		disconnects bool
	}{
		"stops, whole":          {coupon: whole},
		"stops, in pages":       {coupon: pagedCoupon(1<<31-1, endless)},
		"disconnects, in pages": {coupon: pagedCoupon(1<<31-1, endless), disconnects: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(s *service) { s.handler.SetTimeouts(time.Minute, 300*time.Millisecond) })
			s.store.coupon = c.coupon
			conn := s.stall("/api/coupons/big")
			if c.disconnects {
				if _, err := conn.R.Peek(1000); err != nil {
					t.Fatal(err)
				}
				_ = conn.Close()
			}
			line := s.log.line(t)
			if line["aborted"] != true || line["status"] != 200.0 || !strings.HasPrefix(fmt.Sprint(line["error"]), "write the response: ") {
				t.Errorf("logged %v", line)
			}
			if n, err := io.Copy(io.Discard, conn.R); !c.disconnects && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d bytes, then %v; want a reset", n, err)
			}
		})
	}
}

// A complete response ends without a reset, in HTTP/1.0 at the regular end of the connection.
func TestReset_completeResponse(t *testing.T) {
	t.Parallel()
	s := serve(t)
	const claims = 10_000
	s.store.coupon = pagedCoupon(claims, repeat(userPage(claims), 1, nil))
	conn := s.dial()
	conn.sendLines("GET /api/coupons/big HTTP/1.0", "", "")
	response, err := http.ReadResponse(conn.R, nil) // nil means GET
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.ContentLength != -1 || len(response.TransferEncoding) > 0 {
		t.Fatalf("%d bytes, %v; %v", len(body), err, response)
	}
	if got := (result{status: response.StatusCode, body: string(body)}).coupon(t); len(got.ClaimedBy) != claims {
		t.Errorf("read %d users", len(got.ClaimedBy))
	}

	// A connection of HTTP/1.1 serves the next request.
	conn = s.dial()
	for range 2 {
		conn.sendLines("GET /api/coupons/big HTTP/1.1", "Host: x", "", "")
		if got := conn.response("GET", "/api/coupons/big"); len(got.coupon(t).ClaimedBy) != claims || got.closes {
			t.Errorf("%d bytes, close %v", len(got.body), got.closes)
		}
	}
	conn.sendLines("GET /health HTTP/1.1", "Host: x", "Connection: close", "", "")
	if got := conn.response("GET", "/health"); got.status != 200 || !strings.Contains(got.body, "healthy") {
		t.Errorf("status %d: %s", got.status, got.body)
	}
	if _, err := conn.R.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ends with %v, want a regular end", err)
	}
}
