package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a service that implements the contract, except for the faults of a test.
type fake struct {
	mu      sync.Mutex
	coupons map[string]*fakeCoupon
	claims  int // received so far

	// onClaim is called before a claim, with its number counted from 1, while mu is locked. If it
	// returns true, it has answered the claim.
	onClaim func(f *fake, w http.ResponseWriter, n int, c *fakeCoupon, user string) bool
	// onReport changes the answer to GET.
	onReport func(report *fakeReport)
	// refuse is a method; its requests are answered 503.
	refuse string
}

type fakeCoupon struct {
	amount    int
	claimedBy []string
}

type fakeReport struct {
	Name      string   `json:"name"`
	Amount    int      `json:"amount"`
	Remaining int      `json:"remaining_amount"`
	ClaimedBy []string `json:"claimed_by"`
}

func (f *fake) start(t *testing.T) (url string) {
	t.Helper()
	f.coupons = map[string]*fakeCoupon{}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server.URL
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == f.refuse {
		fail(w, 503, "UNAVAILABLE")
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /api/coupons":
		var body struct {
			Name   string `json:"name"`
			Amount int    `json:"amount"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			fail(w, 400, "INVALID_REQUEST")
		} else if f.coupons[body.Name] != nil {
			fail(w, 409, "COUPON_EXISTS")
		} else {
			f.coupons[body.Name] = &fakeCoupon{amount: body.Amount, claimedBy: []string{}}
			w.WriteHeader(201)
		}
	case "POST /api/coupons/claim":
		var body struct {
			User   string `json:"user_id"`
			Coupon string `json:"coupon_name"`
		}
		err := json.NewDecoder(r.Body).Decode(&body)
		c := f.coupons[body.Coupon]
		f.claims++
		switch {
		case err != nil:
			fail(w, 400, "INVALID_REQUEST")
		case c == nil:
			fail(w, 404, "COUPON_NOT_FOUND")
		case f.onClaim != nil && f.onClaim(f, w, f.claims, c, body.User):
		default:
			answer(w, c.claim(body.User))
		}
	default:
		name, _ := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/api/coupons/"))
		c := f.coupons[name]
		if c == nil {
			fail(w, 404, "COUPON_NOT_FOUND")
			return
		}
		report := fakeReport{name, c.amount, c.amount - len(c.claimedBy), slices.Clone(c.claimedBy)}
		if f.onReport != nil {
			f.onReport(&report)
		}
		if err := json.NewEncoder(w).Encode(report); err != nil {
			panic(err)
		}
	}
}

// claim is a correct claim. It returns the error code, empty for claimed.
func (c *fakeCoupon) claim(user string) string {
	switch {
	case slices.Contains(c.claimedBy, user):
		return "ALREADY_CLAIMED"
	case len(c.claimedBy) >= c.amount:
		return "OUT_OF_STOCK"
	default:
		c.claimedBy = append(c.claimedBy, user)
		return ""
	}
}

func answer(w http.ResponseWriter, code string) {
	switch code {
	case "":
		w.WriteHeader(201)
	case "ALREADY_CLAIMED":
		fail(w, 409, code)
	case "OUT_OF_STOCK":
		fail(w, 400, code)
	default:
		panic(code)
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"error":"an error of the test","code":%q,"request_id":"1"}`, code)
}

// sleepUnlocked delays this request while others are served.
func (f *fake) sleepUnlocked(d time.Duration) {
	f.mu.Unlock()
	time.Sleep(d)
	f.mu.Lock()
}

// cut closes the connection without an answer.
func cut() { panic(http.ErrAbortHandler) }
