package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// oneAnswer is a Store that says the same to everything, at no cost.
type oneAnswer struct {
	status pgstore.ClaimStatus
	coupon func() *pgstore.Coupon
}

func (s oneAnswer) Claim(context.Context, string, string) (pgstore.ClaimStatus, error) {
	return s.status, nil
}

func (s oneAnswer) CreateCoupon(context.Context, string, int32) (pgstore.CreateStatus, error) {
	return pgstore.Created, nil
}

func (s oneAnswer) Coupon(context.Context, string) (*pgstore.Coupon, bool, error) {
	return s.coupon(), true, nil
}

func (s oneAnswer) Ready(context.Context) error { return nil }

const claimJSON = `{"user_id":"user-0000012345","coupon_name":"summer sale"}`

func BenchmarkDecodeClaim(b *testing.B) {
	r := new(reader)
	b.ReportAllocs()
	for b.Loop() {
		r.body.Reset()
		r.body.WriteString(claimJSON)
		if _, err := r.decode(claimObject); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeError(b *testing.B) {
	b.ReportAllocs()
	var body []byte
	for b.Loop() {
		body = appendError(body[:0], "", CodeOutOfStock, answers[CodeOutOfStock].sentence, "4bf92f3577b34da6")
	}
}

// BenchmarkClaim is all of a claim but net/http's part and the Store's.
func BenchmarkClaim(b *testing.B) {
	for _, status := range []pgstore.ClaimStatus{pgstore.Claimed, pgstore.OutOfStock} {
		for _, logged := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/log=%v", status, logged), func(b *testing.B) {
				log := zerolog.New(io.Discard)
				if !logged {
					log = zerolog.Nop()
				}
				h := New(oneAnswer{status: status}, Options{Log: log})
				request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/api/coupons/claim", nil)
				request.Header.Set("Content-Type", "application/json")
				request.ContentLength = int64(len(claimJSON))
				sent, body := []byte(claimJSON), bytes.NewReader(nil)
				request.Body = io.NopCloser(body)
				w := &discard{header: make(http.Header)}
				b.ReportAllocs()
				for b.Loop() {
					body.Reset(sent)
					clear(w.header)
					h.ServeHTTP(w, request)
				}
				if want := map[bool]int{true: 201, false: 400}[status == pgstore.Claimed]; w.status != want {
					b.Fatalf("answered %d, want %d", w.status, want)
				}
			})
		}
	}
}

// BenchmarkObserve is what a request pays to be counted, alone and when all processors count.
func BenchmarkObserve(b *testing.B) {
	t := New(oneAnswer{}, Options{}).traffic
	observe := func() { t.observe(http.MethodPost, "/api/coupons/claim", http.StatusCreated, 4*time.Millisecond) }
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			observe()
		}
	})
	b.Run("together", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				observe()
			}
		})
	})
}

// BenchmarkCoupon is a GET of a coupon, for a number of claims: encoded as a whole
// up to a page, streamed beyond.
func BenchmarkCoupon(b *testing.B) {
	const pageSize = 10_000
	for _, claims := range []int{0, 1_000, 1_000_000} {
		b.Run(strconv.Itoa(claims), func(b *testing.B) {
			users := make([]string, min(claims, pageSize))
			for i := range users {
				users[i] = fmt.Sprintf("user-%010d", i)
			}
			pages := func(context.Context) iter.Seq2[[]string, error] {
				return func(yield func([]string, error) bool) {
					for read := 0; read < claims; read += pageSize {
						if !yield(users, nil) {
							return
						}
					}
				}
			}
			store := oneAnswer{coupon: func() *pgstore.Coupon {
				if claims <= pageSize {
					return pgstore.NewCoupon("summer sale", claims+1, users)
				}
				return &pgstore.Coupon{Name: "summer sale", Amount: claims + 1, RemainingAmount: 1, Claimers: pages}
			}}
			h := New(store, Options{})
			request := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/api/coupons/summer%20sale", nil)
			w := &discard{header: make(http.Header)}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				w.n = 0
				h.ServeHTTP(w, request)
			}
			b.SetBytes(w.n)
			if w.status != http.StatusOK {
				b.Fatalf("answered %d", w.status)
			}
		})
	}
}

// discard is a ResponseWriter that keeps the status and the length.
type discard struct {
	header http.Header
	status int
	n      int64
}

func (w *discard) Header() http.Header                { return w.header }
func (w *discard) WriteHeader(status int)             { w.status = status }
func (w *discard) SetReadDeadline(_ time.Time) error  { return nil }
func (w *discard) SetWriteDeadline(_ time.Time) error { return nil }
func (w *discard) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}
