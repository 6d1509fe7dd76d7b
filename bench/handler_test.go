package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/pgstore"
)

// constantStore answers every claim with the same status and every read with the same coupon, at no
// cost.
type constantStore struct {
	*apitest.Store

	status pgstore.ClaimStatus
	coupon *pgstore.Coupon
}

// Claim implements api.Store.
func (s constantStore) Claim(context.Context, string, string) (pgstore.ClaimStatus, error) {
	return s.status, nil
}

// Coupon implements api.Store.
func (s constantStore) Coupon(context.Context, string) (*pgstore.Coupon, bool, error) {
	return s.coupon, true, nil
}

// BenchmarkHandlerClaim measures what the api package does for a claim: decoding the request,
// encoding the response, metrics and the access log. net/http and the Store are not in it.
func BenchmarkHandlerClaim(b *testing.B) {
	for _, test := range []struct {
		status pgstore.ClaimStatus
		want   int
	}{{pgstore.Claimed, http.StatusCreated}, {pgstore.OutOfStock, http.StatusBadRequest}} {
		for _, logged := range []bool{true, false} {
			log := zerolog.Nop()
			if logged {
				log = zerolog.New(io.Discard)
			}
			handler := api.New(constantStore{Store: apitest.NewStore(), status: test.status}, api.Options{Log: log})
			b.Run(fmt.Sprintf("%s/log=%v", test.status, logged), func(b *testing.B) {
				sent, body := []byte(`{"user_id":"user-0000012345","coupon_name":"summer sale"}`), bytes.NewReader(nil)
				request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/api/coupons/claim", nil)
				request.Header.Set("Content-Type", "application/json")
				request.ContentLength, request.Body = int64(len(sent)), io.NopCloser(body)
				w := &discard{header: make(http.Header)}
				b.ReportAllocs()
				for b.Loop() {
					body.Reset(sent)
					w.reset()
					handler.ServeHTTP(w, request)
					if w.status != test.want {
						b.Errorf("status %d, want %d", w.status, test.want)
					}
				}
			})
		}
	}
}

// inPages returns the claimers of a coupon in pages.
func inPages(users []string) func(context.Context) iter.Seq2[[]string, error] {
	return func(context.Context) iter.Seq2[[]string, error] {
		return func(yield func([]string, error) bool) {
			for page := range slices.Chunk(users, 10_000) {
				if !yield(page, nil) {
					return
				}
			}
		}
	}
}

// BenchmarkHandlerCoupon measures GET of a coupon by its number of claims. Up to one page the
// response is encoded as a whole, beyond that it is streamed.
func BenchmarkHandlerCoupon(b *testing.B) {
	for _, claims := range []int{0, 1_000, 1_000_000} {
		b.Run(strconv.Itoa(claims), func(b *testing.B) {
			users := newUsers(claims)
			coupon := pgstore.NewCoupon("summer sale", claims+1, users)
			if claims > 10_000 { // a page of pgstore
				coupon = &pgstore.Coupon{Name: coupon.Name, Amount: coupon.Amount, RemainingAmount: 1, Claimers: inPages(users)}
			}
			handler := api.New(constantStore{Store: apitest.NewStore(), coupon: coupon}, api.Options{})
			request := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/api/coupons/summer%20sale", nil)
			w := &discard{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				w.reset()
				handler.ServeHTTP(w, request)
			}
			b.SetBytes(w.length)
			if w.status != http.StatusOK {
				b.Fatalf("status %d", w.status)
			}
		})
	}
}

// discard is a ResponseWriter that keeps the status and the length of the body.
type discard struct {
	header http.Header
	status int
	length int64
}

func (w *discard) reset() {
	clear(w.header)
	w.status, w.length = 0, 0
}

// Header implements http.ResponseWriter.
func (w *discard) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *discard) WriteHeader(status int) { w.status = status }

// SetReadDeadline implements what http.ResponseController looks for.
func (w *discard) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements what http.ResponseController looks for.
func (w *discard) SetWriteDeadline(time.Time) error { return nil }

// Write implements http.ResponseWriter.
func (w *discard) Write(p []byte) (int, error) {
	w.length += int64(len(p))
	return len(p), nil
}
