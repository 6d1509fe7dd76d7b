package api_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"testing"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// pages yields pages of user ids.
type pages = iter.Seq2[[]string, error]

// pagedCoupon returns a Store.Coupon that reads the claimers from pages.
func pagedCoupon(claims int, claimers pages) func(context.Context, string) (*pgstore.Coupon, bool, error) {
	return func(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
		return &pgstore.Coupon{Name: name, Amount: claims, Claimers: func(context.Context) pages { return claimers }}, true, nil
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
func repeat(page []string, n int, err error) pages {
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

// Memory does not grow with the number of claims.
func TestGetCoupon_millionClaimsInBoundedMemory(t *testing.T) {
	const size = 10_000
	s := serve(t)
	s.store.coupon = pagedCoupon(100*size, repeat(userPage(size), 100, nil))
	var sent int
	read := func() { sent = s.discard("/api/coupons/big") }
	read()
	if got := allocated(read); got > 1<<20 || sent < 15_000_000 {
		t.Errorf("%d bytes allocated for a response of %d", got, sent)
	}
}

// The list of users is valid JSON, wherever chunks and pages end.
func TestGetCoupon_pagesBecomeOneList(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, sizes := range [][]int{{1}, {0, 1, 0}, {2_000}, {5_000, 1}, {3_000, 3_000, 3}, {1, 1, 1, 1, 2_999}} {
		var want []string
		var lists [][]string
		for i, size := range sizes {
			var users []string
			for j := range size {
				users = append(users, fmt.Sprintf("%d/%d %s\"", i, j, strings.Repeat("\u0001", j%50)))
				want = append(want, users[j])
			}
			lists = append(lists, users)
		}
		s.store.coupon = pagedCoupon(len(want), func(yield func([]string, error) bool) {
			for _, users := range lists {
				_ = yield(users, nil)
			}
		})
		if claimers := s.do("GET", "/api/coupons/big", "").coupon(t).ClaimedBy; !slices.Equal(claimers, want) {
			t.Fatalf("pages of %v, %d users, are read as %d different users", sizes, len(want), len(claimers))
		}
	}
}

// A coupon that is completely in memory is sent with its Content-Length.
func TestGetCoupon_whole(t *testing.T) {
	s := serve(t)
	for _, claims := range []int{0, 1, 100, 10_000} {
		users := userPage(claims)
		s.store.Set("big", claims+7, users...)
		got := s.do("GET", "/api/coupons/big", "")
		coupon := got.coupon(t)
		if length := got.header.Get("Content-Length"); length != strconv.Itoa(len(got.body)) {
			t.Errorf("a response of %d bytes has Content-Length %q", len(got.body), length)
		}
		if coupon.Amount != claims+7 || coupon.RemainingAmount != 7 || !slices.Equal(coupon.ClaimedBy, users) {
			t.Fatalf("a coupon with %d claims is read as %.100s", claims, got.body)
		}
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

func TestHead_readsNoClaims(t *testing.T) {
	s := serve(t)
	s.store.coupon = pagedCoupon(1_000_000, func(func([]string, error) bool) { t.Error("HEAD reads the claims") })
	got := s.do("HEAD", "/api/coupons/big", "")
	got.want(t, 200, "")
	if got.header.Get("Content-Length") != "" {
		t.Errorf("Content-Length is %s, want none", got.header.Get("Content-Length"))
	}
}

// A client that disconnects is not an error of the service.
func TestStore_clientDisconnects(t *testing.T) {
	t.Parallel()
	s := serve(t)
	arrived := make(chan struct{})
	wait := func(ctx context.Context) error {
		arrived <- struct{}{}
		<-ctx.Done()
		return fmt.Errorf("wait: %w", ctx.Err())
	}
	s.store.claim = func(ctx context.Context, _, _ string) (pgstore.ClaimStatus, error) { return "", wait(ctx) }
	s.store.ready = func(ctx context.Context) ([]pgstore.Shard, error) { return nil, wait(ctx) }
	for request, level := range map[string]string{
		postClaim + withContentLength(claimBody(60)): "info",
		"GET /health HTTP/1.1\r\nHost: x\r\n\r\n":    "debug",
	} {
		conn := s.dial()
		conn.send(request)
		<-arrived
		_ = conn.Close()
		if line := s.log.line(t); line["status"] != 499.0 || line["aborted"] != true || line["level"] != level {
			t.Errorf("logged %v", line)
		}
	}
}
