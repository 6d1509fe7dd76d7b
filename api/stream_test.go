package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// pagedCoupon returns a Store.Coupon that reads the claimers from pages.
func pagedCoupon(claims int, pages func(context.Context) iter.Seq2[[]string, error]) func(context.Context, string) (*pgstore.Coupon, bool, error) {
	return func(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
		return &pgstore.Coupon{Name: name, Amount: claims, Claimers: pages}, true, nil
	}
}

// userPage returns a page of user ids.
func userPage(size int) []string {
	users := make([]string, size)
	for i := range users {
		users[i] = fmt.Sprintf("user %d 🎟", i)
	}
	return users
}

// repeat yields a page n times, then err unless it is nil.
func repeat(page []string, n int, err error) func(context.Context) iter.Seq2[[]string, error] {
	return func(context.Context) iter.Seq2[[]string, error] {
		return func(yield func([]string, error) bool) {
			for range n {
				if !yield(page, nil) {
					return
				}
			}
			if err != nil {
				yield(nil, err)
			}
		}
	}
}

// Memory does not grow with the number of claims.
func TestGetCoupon_millionClaimsInBoundedMemory(t *testing.T) {
	const pages, size = 100, 10_000
	s := serve(t)
	s.store.coupon = pagedCoupon(pages*size, repeat(userPage(size), pages, nil))

	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	read := func() (int64, []byte) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/coupons/big", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var head [200]byte
		if _, err := io.ReadFull(response.Body, head[:]); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return n + int64(len(head)), head[:]
	}
	n, head := read()
	if want := `{"name":"big","amount":1000000,"remaining_amount":0,"claimed_by":["user 0 🎟","user 1 🎟",`; !strings.HasPrefix(string(head), want) || n < 15_000_000 {
		t.Fatalf("the response has %d bytes and begins with %s, want %s", n, head, want)
	}
	// The total of all allocations is an upper bound of the memory in use.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
		t.Errorf("%d bytes allocated for a response of %d", got, n)
	}
}

// The list of users is valid JSON, wherever chunks and pages end.
func TestGetCoupon_pagesBecomeOneList(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, sizes := range [][]int{{1}, {0, 1, 0}, {2_000}, {5_000, 1}, {3_000, 3_000, 3}, {1, 1, 1, 1, 2_999}} {
		var want []string
		var pages [][]string
		for i, size := range sizes {
			var users []string
			for j := range size {
				users = append(users, fmt.Sprintf("%d/%d %s\"", i, j, strings.Repeat("\u0001", j%50)))
				want = append(want, users[j])
			}
			pages = append(pages, users)
		}
		s.store.coupon = pagedCoupon(len(want), func(context.Context) iter.Seq2[[]string, error] {
			return func(yield func([]string, error) bool) {
				for _, users := range pages {
					if !yield(users, nil) {
						return
					}
				}
			}
		})
		if claimers := s.do("GET", "/api/coupons/big", "").coupon(t).ClaimedBy; !slices.Equal(claimers, want) {
			t.Fatalf("pages of %v, %d users, are read as %d different users", sizes, len(want), len(claimers))
		}
	}
}

// A coupon that is completely in memory is sent with its Content-Length. Requests may share it.
func TestGetCoupon_whole(t *testing.T) {
	s := serve(t)
	for _, claims := range []int{0, 1, 100, 10_000} {
		users := userPage(claims)
		shared := pgstore.NewCoupon("big", claims+7, users)
		s.store.coupon = func(context.Context, string) (*pgstore.Coupon, bool, error) { return shared, true, nil }
		first := s.do("GET", "/api/coupons/big", "")
		coupon := first.coupon(t)
		if length := first.header.Get("Content-Length"); length != strconv.Itoa(len(first.body)) {
			t.Errorf("a response of %d bytes has Content-Length %q", len(first.body), length)
		}
		if coupon.Amount != claims+7 || coupon.RemainingAmount != 7 || !slices.Equal(coupon.ClaimedBy, users) {
			t.Fatalf("a coupon with %d claims is read as %.100s", claims, first.body)
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				again, err := s.try("GET", "/api/coupons/big", "")
				if err != nil || again.body != first.body {
					t.Errorf("another request gets %.100s, %v", again.body, err)
				}
			})
		}
		readers.Wait()
	}
}

// An error before the first part of a response gets an error response.
func TestGetCoupon_failureBeforeStreaming(t *testing.T) {
	s := serve(t)
	failed := fmt.Errorf("read claimers: %w", pgstore.ErrUnavailable)
	users := userPage(10_000)

	s.store.coupon = pagedCoupon(20_000, repeat(users, 0, failed))
	s.do("GET", "/api/coupons/big", "").want(t, 503, api.CodeUnavailable)
	s.store.coupon = pagedCoupon(20_000, repeat(users[:10], 1, failed))
	s.do("GET", "/api/coupons/big", "").want(t, 503, api.CodeUnavailable)
	s.store.coupon = pagedCoupon(11, repeat(users[:10], 1, nil)) // a claimer is missing
	s.do("GET", "/api/coupons/big", "").want(t, 500, api.CodeInternal)
}

func panics(users []string) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		yield(users, nil)
		panic("boom")
	}
}

func aborts(users []string) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		yield(users, nil)
		panic(http.ErrAbortHandler)
	}
}

// endless yields a page until the iteration stops.
func endless(users []string) func(context.Context) iter.Seq2[[]string, error] {
	return func(context.Context) iter.Seq2[[]string, error] {
		return func(yield func([]string, error) bool) {
			for more := true; more; {
				more = yield(users, nil)
			}
		}
	}
}

// A client that reads slowly, but never stops for long, gets the whole response.
func TestGetCoupon_slowClient(t *testing.T) {
	t.Parallel()
	const stall = 3 * time.Second // a shorter one fails because of the delays of TCP and of a busy machine
	s := serve(t, func(s *service) {
		s.handler.SetTimeouts(time.Minute, stall)
		s.server.WriteTimeout = stall
		s.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetWriteBuffer(64 << 10)
			}
			return ctx
		}
	})
	const claims = 200_000
	s.store.coupon = pagedCoupon(claims, repeat(userPage(10_000), claims/10_000, nil))
	conn := s.dial()
	_ = conn.tcp().SetReadBuffer(64 << 10)
	conn.sendLines("GET /api/coupons/big HTTP/1.1", "Host: x", "", "")
	response, err := http.ReadResponse(conn.R, nil) // nil means GET
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	began := time.Now()
	var body strings.Builder
	for {
		_, err := io.CopyN(&body, response.Body, 64<<10)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("cut off after %v and %d bytes: %v", time.Since(began), body.Len(), err)
		}
		time.Sleep(stall / 24)
	}
	if took := time.Since(began); took < 2*stall {
		t.Fatalf("read within %v: too fast for this test", took)
	}
	if got := (result{status: response.StatusCode, body: body.String()}).coupon(t); len(got.ClaimedBy) != claims {
		t.Errorf("read %d users", len(got.ClaimedBy))
	}
}

func TestHead_readsNoClaims(t *testing.T) {
	s := serve(t)
	s.store.coupon = pagedCoupon(1_000_000, func(ctx context.Context) iter.Seq2[[]string, error] {
		t.Error("HEAD reads the claims")
		return repeat(nil, 0, nil)(ctx)
	})
	got := s.do("HEAD", "/api/coupons/big", "")
	got.want(t, 200, "")
	if got.header.Get("Content-Length") != "" {
		t.Errorf("Content-Length is %s, want none", got.header.Get("Content-Length"))
	}
}

// A client that disconnects is not an error of the service.
func TestClaim_clientDisconnects(t *testing.T) {
	s := serve(t)
	arrived := make(chan struct{})
	s.store.claim = func(ctx context.Context, _, _ string) (pgstore.ClaimStatus, error) {
		close(arrived)
		<-ctx.Done()
		return "", fmt.Errorf("claim: %w", ctx.Err())
	}
	conn := s.dial()
	conn.send(postClaim + withContentLength(claimBody(60)))
	<-arrived
	_ = conn.Close()
	line := s.log.line(t)
	if line["status"] != 499.0 || line["aborted"] != true || line["level"] != "info" {
		t.Errorf("logged %v", line)
	}
}
