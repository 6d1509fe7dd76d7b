package api_test

import (
	"context"
	"encoding/json"
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
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// bigCoupon is a coupon whose claimers come from pages, one by one.
func bigCoupon(claims int, pages func(context.Context) iter.Seq2[[]string, error]) func(context.Context, string) (*pgstore.Coupon, bool, error) {
	return func(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
		return &pgstore.Coupon{Name: name, Amount: claims, Claimers: pages}, true, nil
	}
}

// page is a page of user ids.
func page(size int) []string {
	users := make([]string, size)
	for i := range users {
		users[i] = fmt.Sprintf("user %d 🎟", i)
	}
	return users
}

// repeat yields a page n times, and then, when it is not nil, err.
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

// A million claims take no more memory than a few.
func TestMillionClaimsInBoundedMemory(t *testing.T) {
	const pages, size = 100, 10_000
	s := serve(t)
	s.store.coupon = bigCoupon(pages*size, repeat(page(size), pages, nil))

	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	read := func() (int64, []byte) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/api/coupons/big", nil)
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
		t.Fatalf("the answer has %d bytes and begins with %s", n, head)
	}
	// What is allocated in all is more than what is ever held at once.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
		t.Errorf("%d bytes were allocated for an answer of %d", got, n)
	}
}

// Pages become one well-formed list, wherever chunks and pages end.
func TestPagesBecomeOneList(t *testing.T) {
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
		s.store.coupon = bigCoupon(len(want), func(context.Context) iter.Seq2[[]string, error] {
			return func(yield func([]string, error) bool) {
				for _, users := range pages {
					if !yield(users, nil) {
						return
					}
				}
			}
		})
		if claimers := s.do("GET", "/api/coupons/big", "").coupon(t).ClaimedBy; !slices.Equal(claimers, want) {
			t.Fatalf("pages of %v, %d users, are read as %d others", sizes, len(want), len(claimers))
		}
	}
}

// A coupon that is all at hand is one answer with its length, and is encoded once
// for all who share it.
func TestSharedCoupon(t *testing.T) {
	s := serve(t)
	for _, claims := range []int{0, 1, 100, 10_000} {
		users := page(claims)
		shared := pgstore.NewCoupon("big", claims+7, users)
		s.store.coupon = func(context.Context, string) (*pgstore.Coupon, bool, error) { return shared, true, nil }
		first := s.do("GET", "/api/coupons/big", "")
		coupon := first.coupon(t)
		if length := first.header.Get("Content-Length"); length != strconv.Itoa(len(first.body)) {
			t.Errorf("an answer of %d bytes has Content-Length %q", len(first.body), length)
		}
		if coupon.Amount != claims+7 || coupon.RemainingAmount != 7 || !slices.Equal(coupon.ClaimedBy, users) {
			t.Fatalf("%d claims are read as %.100s", claims, first.body)
		}
		shared.EncodeOnce(func(*pgstore.Coupon) []byte {
			t.Error("the coupon is encoded again")
			return nil
		})
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				again, err := s.try("GET", "/api/coupons/big", "")
				if err != nil || again.body != first.body {
					t.Errorf("another reader gets %.100s, %v", again.body, err)
				}
			})
		}
		readers.Wait()
	}
}

// What goes wrong before the first page is told; what goes wrong later cuts the
// answer, so that it is never whole and wrong.
func TestFailureWhileStreaming(t *testing.T) {
	s := serve(t)
	gone := fmt.Errorf("read claimers: %w", pgstore.ErrUnavailable)
	users := page(10_000)

	s.store.coupon = bigCoupon(20_000, repeat(users, 0, gone))
	s.do("GET", "/api/coupons/big", "").want(t, 503, api.CodeUnavailable)
	s.store.coupon = bigCoupon(20_000, repeat(users[:10], 1, gone))
	s.do("GET", "/api/coupons/big", "").want(t, 503, api.CodeUnavailable)
	s.store.coupon = bigCoupon(11, repeat(users[:10], 1, nil)) // a claimer is missing
	s.do("GET", "/api/coupons/big", "").want(t, 500, api.CodeInternal)
	s.log.take(t, 3)

	for name, pages := range map[string]func(context.Context) iter.Seq2[[]string, error]{
		"an error":             repeat(users, 1, gone),
		"a page too few":       repeat(users, 1, nil),
		"a page too many":      repeat(users, 3, nil),
		"a panic":              func(context.Context) iter.Seq2[[]string, error] { return panics(users) },
		"an aborted iteration": func(context.Context) iter.Seq2[[]string, error] { return aborts(users) },
	} {
		t.Run(name, func(t *testing.T) {
			s.store.coupon = bigCoupon(20_000, pages)
			got, err := s.try("GET", "/api/coupons/big", "")
			if got.status != 200 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("answered %d, %d bytes, then %v; want 200 and a cut", got.status, len(got.body), err)
			}
			if json.Valid([]byte(got.body)) {
				t.Error("the part of the answer that was sent is well-formed")
			}
			line := s.log.take(t, 1)[0]
			if line["aborted"] != true || line["status"] != 200.0 || name != "an aborted iteration" && line["error"] == nil {
				t.Errorf("the log says %v", line)
			}
		})
	}
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

// endless yields a page until nobody wants more; it counts the pages, and tells
// when it has ended.
func endless(users []string) (pages func(context.Context) iter.Seq2[[]string, error], yielded *atomic.Int64, ended chan struct{}) {
	yielded, ended = new(atomic.Int64), make(chan struct{})
	return func(context.Context) iter.Seq2[[]string, error] {
		return func(yield func([]string, error) bool) {
			defer close(ended)
			for yield(users, nil) {
				yielded.Add(1)
			}
		}
	}, yielded, ended
}

// A client that goes away, or that takes nothing, stops the reading.
func TestReaderWhoLeaves(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(net.Conn){
		"goes away":     func(c net.Conn) { _ = c.Close() },
		"takes nothing": func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(s *service) { s.handler.Hurry(time.Minute, 300*time.Millisecond) })
			pages, yielded, ended := endless(page(10_000))
			s.store.coupon = bigCoupon(1<<31-1, pages)
			w := s.dial()
			_ = w.conn.SetReadBuffer(4 << 10)
			w.send("GET /api/coupons/big HTTP/1.1", "Host: x", "", "")
			if _, err := w.reader.Peek(1000); err != nil {
				t.Fatal(err)
			}
			leave(w.conn)
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatalf("still reading, page %d", yielded.Load())
			}
			line := s.log.take(t, 1)[0]
			if line["aborted"] != true || line["status"] != 200.0 || !strings.HasPrefix(fmt.Sprint(line["error"]), "the client took no more") {
				t.Errorf("the log says %v", line)
			}
		})
	}
}

// A slow reader who takes something is served to the end, however long it takes.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	const stall = 3 * time.Second // less meets the pauses of TCP and of a busy machine
	s := serve(t, func(s *service) {
		s.handler.Hurry(time.Minute, stall)
		s.server.WriteTimeout = stall
		s.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetWriteBuffer(64 << 10)
			}
			return ctx
		}
	})
	const claims = 200_000
	s.store.coupon = bigCoupon(claims, repeat(page(10_000), claims/10_000, nil))
	w := s.dial()
	_ = w.conn.SetReadBuffer(64 << 10)
	w.send("GET /api/coupons/big HTTP/1.1", "Host: x", "", "")
	response, err := http.ReadResponse(w.reader, nil) // nil: to a GET
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
		t.Fatalf("read within %v, so nothing was shown", took)
	}
	if got := (result{status: response.StatusCode, body: body.String()}).coupon(t); len(got.ClaimedBy) != claims {
		t.Errorf("read %d users", len(got.ClaimedBy))
	}
}

// HEAD reads no claims.
func TestHeadReadsNoClaims(t *testing.T) {
	s := serve(t)
	s.store.coupon = bigCoupon(1_000_000, func(ctx context.Context) iter.Seq2[[]string, error] {
		t.Error("the claims are read")
		return repeat(nil, 0, nil)(ctx)
	})
	got := s.do("HEAD", "/api/coupons/big", "")
	got.want(t, 200, "")
	if got.header.Get("Content-Length") != "" {
		t.Errorf("Content-Length: %s", got.header.Get("Content-Length"))
	}
}

// A context that ends because the client has left is his doing, not a fault.
func TestClientWhoLeavesBeforeTheAnswer(t *testing.T) {
	s := serve(t)
	arrived := make(chan struct{})
	s.store.claim = func(ctx context.Context, _, _ string) (pgstore.ClaimStatus, error) {
		close(arrived)
		<-ctx.Done()
		return "", fmt.Errorf("claim: %w", ctx.Err())
	}
	w := s.dial()
	w.write(postClaim + measured(claimBody(60)))
	<-arrived
	_ = w.conn.Close()
	line := s.log.take(t, 1)[0]
	if line["status"] != 499.0 || line["aborted"] != true || line["level"] != "info" {
		t.Errorf("the log says %v", line)
	}
}
