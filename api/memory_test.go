package api_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"scalable-coupon-system/api"
	"scalable-coupon-system/internal/wait"
	"scalable-coupon-system/pgstore"
)

// wideUsers returns distinct user ids of 255 characters that take 1,500 bytes each as JSON.
func wideUsers(n int) []string {
	users := make([]string, n)
	for i := range users {
		users[i] = fmt.Sprintf("%06d%s", i, strings.Repeat("\x01", 249))
	}
	return users
}

// stall sends a GET and reads none of the response.
func (s *service) stall(path string) *rawConn {
	s.tb.Helper()
	conn := s.dial()
	_ = conn.tcp().SetReadBuffer(4 << 10)
	conn.sendLines("GET "+path+" HTTP/1.1", "Host: x", "", "")
	return conn
}

// holdsBytes waits until responses and bodies in flight take between low and high bytes.
func (s *service) holdsBytes(low, high int64) {
	s.tb.Helper()
	wait.For(s.tb, fmt.Sprintf("%d to %d bytes in flight", low, high), func() bool {
		held := s.handler.InFlight()
		return low <= held && held <= high
	})
}

// othersAreServed checks that what needs no budget is served.
func (s *service) othersAreServed() {
	s.tb.Helper()
	s.create("small", 3).want(s.tb, 201, "")
	s.claim("ada", "small").want(s.tb, 201, "")
	for _, path := range []string{"/health", "/docs", "/docs/swagger-ui-bundle.js", "/openapi.yaml", "/metrics"} {
		s.do("GET", path, "").want(s.tb, 200, "")
	}
}

// Slow readers hold at most the budget. Beyond it GET of a large coupon is OVERLOADED; claims,
// small coupons and the metrics are served. Readers that share a coupon count once.
func TestBudget_slowReaders(t *testing.T) {
	t.Parallel()
	users := wideUsers(1_000)
	// The body of such a coupon, and the user ids that it is made from, take 1.8 MB; a page of 500
	// users takes 0.2 MB, one of 4,000 users 1.1 MB.
	const limit = 2_700_000
	s := serve(t)
	s.handler.SetMaxInFlight(limit)
	shared := pgstore.NewCoupon("shared", 1_000, users)
	s.store.coupon = func(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
		switch name {
		case "shared":
			return shared, true, nil
		case "other":
			return pgstore.NewCoupon(name, 1_000, users), true, nil
		case "paged":
			return pagedCoupon(10_000, repeat(users[:500], 20, nil))(ctx, name)
		case "paged widely":
			return pagedCoupon(4_000, repeat(wideUsers(4_000), 1, nil))(ctx, name)
		}
		return s.store.Store.Coupon(ctx, name)
	}

	var slow []*rawConn
	for range 20 {
		slow = append(slow, s.stall("/api/coupons/shared"))
	}
	s.holdsBytes(1_700_000, 1_800_000)
	s.do("GET", "/api/coupons/other", "").want(t, 503, api.CodeOverloaded)
	s.do("GET", "/api/coupons/shared", "").want(t, 200, "")
	s.do("GET", "/api/coupons/paged%20widely", "").want(t, 503, api.CodeOverloaded)
	for range 20 { // each of them holds a page
		slow = append(slow, s.stall("/api/coupons/paged"))
	}
	s.holdsBytes(limit-200_000, limit)
	s.do("GET", "/api/coupons/paged", "").want(t, 503, api.CodeOverloaded)
	s.othersAreServed()
	s.do("GET", "/api/coupons/small", "").want(t, 200, "")

	for _, conn := range slow {
		_ = conn.Close()
	}
	s.holdsBytes(0, 0)
	for _, name := range []string{"other", "paged", "paged%20widely"} {
		s.do("GET", "/api/coupons/"+name, "").want(t, 200, "")
	}
	s.holdsBytes(0, 0)
}

// A page that is larger than those before it is counted as well.
func TestBudget_growingPages(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.handler.SetMaxInFlight(500_000)
	small, large := wideUsers(500), wideUsers(2_000)
	s.store.coupon = pagedCoupon(2_500, func(yield func([]string, error) bool) { _ = yield(small, nil) && yield(large, nil) })
	if got, err := s.try("GET", "/api/coupons/big", ""); got.status != 200 || err == nil {
		t.Errorf("status %d, %d bytes, %v; want a response that is cut off", got.status, len(got.body), err)
	}
	s.holdsBytes(0, 0)
}

// Bodies that arrive slowly hold at most the budget. Beyond it a large body is OVERLOADED; a claim
// of the usual size is served.
func TestBudget_slowBodies(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.create("sale", 10).want(t, 201, "")
	const size = 8 << 10
	s.handler.SetMaxInFlight(3 * size)
	var slow []*rawConn
	for _, length := range []string{"Content-Length: 8192\r\n\r\n", "Content-Length: 8192\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"} {
		conn := s.dial()
		conn.send(postClaim + length)
		slow = append(slow, conn)
	}
	s.holdsBytes(3*size, 3*size)
	large := claimBody(size)
	got := s.do("POST", "/api/coupons/claim", large)
	got.want(t, 503, api.CodeOverloaded)
	if !got.closes {
		t.Error("the connection stays open although its body was not read")
	}
	s.othersAreServed()

	_ = slow[0].Close()
	s.holdsBytes(2*size, 2*size)
	s.do("POST", "/api/coupons/claim", large).want(t, 201, "")
	for _, conn := range slow {
		_ = conn.Close()
	}
	s.holdsBytes(0, 0)
}

// The limit of a body has room for the largest valid claim: 255 characters in each field, and each
// character, also of the names of the fields, as its longest escape.
func TestBody_largestClaim(t *testing.T) {
	s := serve(t)
	ticket := strings.Repeat("🎟", 255)
	s.create(ticket, 1).want(t, 201, "")
	escape := func(text string) string {
		var b strings.Builder
		for _, c := range text {
			fmt.Fprintf(&b, `\u%04x`, c)
		}
		return b.String()
	}
	value := strings.Repeat(`\ud83c\udf9f`, 255)
	body := fmt.Sprintf("{\r\n\t\"%s\": \"%s\",\r\n\t\"%s\": \"%s\"\r\n}\r\n", escape("user_id"), value, escape("coupon_name"), value)
	s.do("POST", "/api/coupons/claim", body).want(t, 201, "")
	if users := s.do("GET", "/api/coupons/"+percentEncoded(ticket), "").coupon(t).ClaimedBy; len(users) != 1 || users[0] != ticket {
		t.Errorf("claimed by %q", users)
	}
}

// Readers of a file of the docs page share its bytes.
func TestDocs_shared(t *testing.T) {
	s := serve(t)
	read := func() { s.discard("/docs/swagger-ui-bundle.js") }
	read()
	if got := allocated(read); got > 64<<10 {
		t.Errorf("a reader takes %d bytes", got)
	}
}

// allocated returns how many bytes f allocates, an upper bound of the memory that it uses.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// discard serves a GET without a connection and returns the size of the response.
func (s *service) discard(path string) int {
	w := &discarded{header: make(http.Header)}
	s.handler.ServeHTTP(w, httptest.NewRequestWithContext(s.tb.Context(), http.MethodGet, path, nil))
	return w.size
}

// discarded is a ResponseWriter that discards the body.
type discarded struct {
	header http.Header
	size   int
}

func (d *discarded) Header() http.Header         { return d.header }
func (d *discarded) WriteHeader(int)             {}
func (d *discarded) Write(p []byte) (int, error) { d.size += len(p); return len(p), nil }

// The kernel holds little of a connection if its client neither reads nor waits for an answer.
func TestServer_socketBuffers(t *testing.T) {
	t.Parallel()
	accepted := make(chan net.Conn, 1)
	s := serve(t, func(s *service) {
		s.server.ConnState = func(c net.Conn, state http.ConnState) {
			if state == http.StateActive {
				accepted <- c
			}
		}
	})
	s.stall("/health/live")
	raw, err := (<-accepted).(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, option := range map[string]int{"send": unix.SO_SNDBUF, "receive": unix.SO_RCVBUF} {
		var size int
		controlErr := raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option) })
		if controlErr != nil || err != nil {
			t.Fatal(controlErr, err)
		}
		if size > 64<<10 { // Linux doubles the 32 KiB
			t.Errorf("the %s buffer has %d bytes", name, size)
		}
	}
}
