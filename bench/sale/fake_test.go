package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// fake is a service that implements the contract, except for the faults of a test.
type fake struct {
	mu      sync.Mutex
	coupons couponmodel.Coupons
	claims  int // received so far

	// onClaim is called before a claim, while mu is locked. If it returns true, it has answered.
	onClaim func(c fakeClaim) bool
	// refuse is a method; its requests are answered 503.
	refuse string
}

// fakeClaim is a claim that a fake has received. n counts from 1.
type fakeClaim struct {
	*fake
	w            http.ResponseWriter
	r            *http.Request
	n            int
	user, coupon string
}

func (f *fake) start(t *testing.T) (url string) {
	t.Helper()
	f.coupons = couponmodel.Coupons{}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server.URL
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body struct {
		Name   string `json:"name"`
		Amount int    `json:"amount"`
		User   string `json:"user_id"`
		Coupon string `json:"coupon_name"`
	}
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			panic(err)
		}
	}
	switch {
	case r.Method == f.refuse:
		answer(w, load.Unavailable)
	case r.URL.Path == "/api/coupons":
		answer(w, load.AnswerFor(f.coupons.Create(body.Name, body.Amount)))
	case r.Method == http.MethodPost:
		f.claims++
		if c := (fakeClaim{f, w, r, f.claims, body.User, body.Coupon}); f.onClaim == nil || !f.onClaim(c) {
			c.answer(c.claim())
		}
	default:
		name, _ := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/api/coupons/"))
		c := f.coupons[name]
		report := map[string]any{"name": name, "amount": c.Amount, "remaining_amount": c.Remaining(), "claimed_by": append([]string{}, c.ClaimedBy...)}
		if err := json.NewEncoder(w).Encode(report); err != nil {
			panic(err)
		}
	}
}

// claim is a correct claim.
func (c fakeClaim) claim() load.Answer { return load.AnswerFor(c.coupons.Claim(c.user, c.coupon)) }

func (c fakeClaim) answer(a load.Answer) bool {
	answer(c.w, a)
	return true
}

// unlocked calls fn while other requests are served.
func (c fakeClaim) unlocked(fn func()) {
	c.mu.Unlock()
	fn()
	c.mu.Lock()
}

// untilGone waits until the client has closed the connection.
func (c fakeClaim) untilGone() bool {
	c.unlocked(func() { <-c.r.Context().Done() })
	return true
}

func answer(w http.ResponseWriter, a load.Answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.Status)
	if a.Code != "" {
		_, _ = fmt.Fprintf(w, `{"error":"an error of the test","code":%q,"request_id":"1"}`, a.Code)
	}
}

// cut closes the connection without an answer.
func cut() { panic(http.ErrAbortHandler) }
