package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Outcome is the result of a claim or a creation. A rejection, such as SoldOut, is an outcome and
// not an error.
type Outcome string

// The outcomes.
const (
	Claimed        Outcome = "claimed"                            // by this call
	AlreadyClaimed Outcome = "already claimed"                    // by this user, in an earlier call
	SoldOut        Outcome = "sold out"                           // the user does not have it and cannot get it
	NoSuchCoupon   Outcome = "no such coupon"                     // nothing was done
	Created        Outcome = "created"                            // by this call
	Exists         Outcome = "exists"                             // created by another call, and unchanged
	MaybeCreated   Outcome = "exists, maybe created by this call" // read the coupon to find out
)

// Coupon is the state of a coupon.
type Coupon struct {
	Name            string   `json:"name"`
	Amount          int      `json:"amount"`
	RemainingAmount int      `json:"remaining_amount"`
	ClaimedBy       []string `json:"claimed_by"`
}

// Client calls the service. Create one Client with New and share it: it is safe for concurrent use,
// and it reuses connections, which saves a round trip for each claim.
type Client struct {
	base string
	http *http.Client

	// Timeout limits a call with all its attempts. The context of a call can end it earlier.
	Timeout time.Duration
	// MinDelay and MaxDelay limit the delay between two attempts, which doubles each time.
	MinDelay, MaxDelay time.Duration
}

// New returns a client of the service at base, such as http://127.0.0.1:8080.
func New(base string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // the default of 2 closes the others after each claim
	return &Client{
		base: strings.TrimRight(base, "/"),
		http: &http.Client{
			Transport: transport,
			// For one attempt. The service responds within its CLAIM_TIMEOUT of 5 s; a shorter timeout here
			// would abandon claims that are about to succeed.
			Timeout: 10 * time.Second,
			// A redirected POST would become a GET, and GET /api/coupons/claim reads the coupon "claim".
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Timeout:  time.Minute,
		MinDelay: 100 * time.Millisecond,
		MaxDelay: 5 * time.Second,
	}
}

// Claim claims coupon for user. After an error it is unknown whether the user has the
// coupon: call Claim again.
func (c *Client) Claim(ctx context.Context, user, coupon string) (Outcome, error) {
	body := map[string]any{"user_id": user, "coupon_name": coupon}
	r, ambiguous, err := c.call(ctx, http.MethodPost, "/api/coupons/claim", body)
	if err != nil {
		return "", fmt.Errorf("claim %q for %q: %w", coupon, user, err)
	}
	switch {
	case r.status == http.StatusCreated:
		return Claimed, nil
	case r.code == "ALREADY_CLAIMED" && ambiguous:
		return Claimed, nil // by an earlier attempt of this call
	case r.code == "ALREADY_CLAIMED":
		return AlreadyClaimed, nil
	case r.code == "OUT_OF_STOCK":
		return SoldOut, nil // also if ambiguous: after a successful attempt it would be ALREADY_CLAIMED
	case r.code == "COUPON_NOT_FOUND":
		return NoSuchCoupon, nil
	}
	return "", fmt.Errorf("claim %q for %q: %w", coupon, user, r)
}

// Create creates a coupon with a stock of amount.
func (c *Client) Create(ctx context.Context, name string, amount int) (Outcome, error) {
	r, ambiguous, err := c.call(ctx, http.MethodPost, "/api/coupons", map[string]any{"name": name, "amount": amount})
	if err != nil {
		return "", fmt.Errorf("create %q: %w", name, err)
	}
	switch {
	case r.status == http.StatusCreated:
		return Created, nil
	case r.code == "COUPON_EXISTS" && ambiguous:
		return MaybeCreated, nil
	case r.code == "COUPON_EXISTS":
		return Exists, nil
	}
	return "", fmt.Errorf("create %q: %w", name, r)
}

// Read reads a coupon. found is false if no coupon has this name.
func (c *Client) Read(ctx context.Context, name string) (coupon Coupon, found bool, err error) {
	path := "/api/coupons/" + url.PathEscape(name)
	if name == "." || name == ".." {
		path = "/api/coupons/" + strings.ReplaceAll(name, ".", "%2E") // otherwise a relative path segment
	}
	r, _, err := c.call(ctx, http.MethodGet, path, nil)
	switch {
	case err != nil:
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, err)
	case r.code == "COUPON_NOT_FOUND":
		return Coupon{}, false, nil
	case r.status != http.StatusOK:
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, r)
	}
	if err := json.Unmarshal(r.body, &coupon); err != nil {
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, err)
	}
	return coupon, true, nil
}

// response is a response of the service. As an error, it describes an unexpected response.
type response struct {
	status     int
	body       []byte
	code       string        // of an error response
	message    string        // of an error response, for people
	requestID  string        // also in the service's log
	retryAfter time.Duration // minimum delay before the next attempt
}

func (r *response) Error() string {
	return fmt.Sprintf("%d %s: %s (request id %s)", r.status, r.code, r.message, r.requestID)
}

// maxInternalErrors limits the retries after an internal error (500), which the request itself may
// cause every time.
const maxInternalErrors = 3

// call sends a request until its response is final. Every request of this API is safe to repeat.
// ambiguous reports that an earlier attempt may have been executed although its response was lost.
func (c *Client) call(ctx context.Context, method, path string, body any) (final *response, ambiguous bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var sent []byte
	if body != nil {
		if sent, err = json.Marshal(body); err != nil {
			return nil, false, err
		}
	}
	internalErrors := 0
	var last error
	for delay := c.MinDelay; ; delay = min(2*delay, c.MaxDelay) {
		r, failure := c.try(ctx, method, path, sent)
		wait := time.Duration(0)
		switch {
		case failure != nil: // no response, or an incomplete one
			ambiguous = true
		case r.code == "UNAVAILABLE" || r.code == "OVERLOADED" || r.status == http.StatusTooManyRequests:
			failure, wait = r, r.retryAfter // nothing was done
		case r.status >= http.StatusInternalServerError: // OUTCOME_UNKNOWN, INTERNAL, or from a proxy
			failure, wait = r, r.retryAfter
			ambiguous = true
			if r.status == http.StatusInternalServerError {
				if internalErrors++; internalErrors > maxInternalErrors {
					return nil, ambiguous, failure
				}
			}
		default:
			return r, ambiguous, nil
		}
		// Retry-After, plus 0.5 to 1.5 times the delay: clients that were rejected at the same time must
		// not retry at the same time.
		wait += delay/2 + rand.N(delay)
		if last == nil || ctx.Err() == nil {
			last = failure // unless the end of ctx caused it
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ambiguous, fmt.Errorf("gave up: %w; last error: %w", ctx.Err(), last)
		}
	}
}

// try sends a request once and reads the whole response.
func (c *Client) try(ctx context.Context, method, path string, body []byte) (*response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	got, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	// Always read the whole body, otherwise the connection is not reused.
	text, err := io.ReadAll(got.Body)
	if err := errors.Join(err, got.Body.Close()); err != nil {
		return nil, err // do not use an incomplete response
	}
	r := &response{status: got.StatusCode, body: text, requestID: got.Header.Get("X-Request-ID")}
	if r.status >= http.StatusMultipleChoices && r.status < http.StatusBadRequest {
		r.message = "redirected to " + got.Header.Get("Location") + "; use the URL that it redirects to"
	}
	if r.status >= http.StatusBadRequest {
		var errorBody struct {
			Error string `json:"error"`
			Code  string `json:"code"`
		}
		// An error from a proxy may not be JSON. Then only the status is known.
		_ = json.Unmarshal(text, &errorBody)
		r.code, r.message = errorBody.Code, errorBody.Error
	}
	if seconds, err := strconv.Atoi(got.Header.Get("Retry-After")); err == nil && seconds > 0 {
		r.retryAfter = time.Duration(seconds) * time.Second
	}
	return r, nil
}
