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

// Outcome is what came of a claim or a creation. It is a value and no error: each is a true answer of the service.
type Outcome string

// The outcomes.
const (
	Claimed      Outcome = "claimed"         // the user has it, from this call
	HadIt        Outcome = "had it"          // the user has it, from an earlier one
	SoldOut      Outcome = "sold out"        // the user does not have it, and never will
	NoSuchCoupon Outcome = "no such coupon"  // nothing was done
	Created      Outcome = "created"         // by this call
	Exists       Outcome = "exists"          // the name is taken; the coupon is as it was
	MaybeOurs    Outcome = "exists, by whom" // the name is taken, maybe by an earlier try of this very call: read the coupon
)

// Coupon is what the service tells of a coupon.
type Coupon struct {
	Name            string   `json:"name"`
	Amount          int      `json:"amount"`
	RemainingAmount int      `json:"remaining_amount"`
	ClaimedBy       []string `json:"claimed_by"`
}

// Client calls the service. Make it with New; it may be used by many goroutines, and should be made once: connections
// are reused, and a new one costs a round trip before the claim is even sent.
type Client struct {
	base string
	http *http.Client

	// Patience bounds a call with all of its tries, where its context does not bound it sooner.
	Patience time.Duration
	// FirstPause and LongestPause bound the pause between two tries, which doubles each time.
	FirstPause, LongestPause time.Duration
}

// New makes a client of the service at base, such as http://127.0.0.1:8080.
func New(base string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // 2 unless told: all others would be closed after each claim
	return &Client{
		base: strings.TrimSuffix(base, "/"),
		http: &http.Client{
			Transport: transport,
			// Of one try. The service answers within its CLAIM_TIMEOUT, 5 s: whoever waits less gives up on claims that
			// are about to be answered.
			Timeout: 10 * time.Second,
		},
		Patience:     time.Minute,
		FirstPause:   100 * time.Millisecond,
		LongestPause: 5 * time.Second,
	}
}

// Claim claims one piece of coupon for user. With an error nobody knows yet whether the user has it: call it again.
func (c *Client) Claim(ctx context.Context, user, coupon string) (Outcome, error) {
	body := map[string]any{"user_id": user, "coupon_name": coupon}
	a, inDoubt, err := c.call(ctx, http.MethodPost, "/api/coupons/claim", body)
	if err != nil {
		return "", fmt.Errorf("claim %q for %q: %w", coupon, user, err)
	}
	switch {
	case a.status == http.StatusCreated:
		return Claimed, nil
	case a.code == "ALREADY_CLAIMED" && inDoubt:
		return Claimed, nil // an earlier try was done, only its answer was lost
	case a.code == "ALREADY_CLAIMED":
		return HadIt, nil
	case a.code == "OUT_OF_STOCK":
		return SoldOut, nil // also in doubt: had an earlier try been done, this would be ALREADY_CLAIMED
	case a.code == "COUPON_NOT_FOUND":
		return NoSuchCoupon, nil
	}
	return "", fmt.Errorf("claim %q for %q: %w", coupon, user, a)
}

// Create creates a coupon of amount pieces.
func (c *Client) Create(ctx context.Context, name string, amount int) (Outcome, error) {
	a, inDoubt, err := c.call(ctx, http.MethodPost, "/api/coupons", map[string]any{"name": name, "amount": amount})
	if err != nil {
		return "", fmt.Errorf("create %q: %w", name, err)
	}
	switch {
	case a.status == http.StatusCreated:
		return Created, nil
	case a.code == "COUPON_EXISTS" && inDoubt:
		return MaybeOurs, nil
	case a.code == "COUPON_EXISTS":
		return Exists, nil
	}
	return "", fmt.Errorf("create %q: %w", name, a)
}

// Read reads a coupon; found is false when there is none of this name.
func (c *Client) Read(ctx context.Context, name string) (coupon Coupon, found bool, err error) {
	path := "/api/coupons/" + url.PathEscape(name)
	if name == "." || name == ".." {
		path = "/api/coupons/" + strings.ReplaceAll(name, ".", "%2E") // else a step in the path
	}
	a, _, err := c.call(ctx, http.MethodGet, path, nil)
	switch {
	case err != nil:
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, err)
	case a.code == "COUPON_NOT_FOUND":
		return Coupon{}, false, nil
	case a.status != http.StatusOK:
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, a)
	}
	if err := json.Unmarshal(a.body, &coupon); err != nil {
		return Coupon{}, false, fmt.Errorf("read %q: %w", name, err)
	}
	return coupon, true, nil
}

// answer is an answer of the service, and an error when it is not what was asked for.
type answer struct {
	status     int
	body       []byte
	code       string        // of a refusal
	sentence   string        // for people
	requestID  string        // the service's log has it, too
	retryAfter time.Duration // at least as long is the next try to wait
}

func (a *answer) Error() string {
	return fmt.Sprintf("%d %s: %s (request id %s)", a.status, a.code, a.sentence, a.requestID)
}

// mostFaults is how often a fault of the service (500) is asked again. It may be the request's own doing, and then no
// patience helps.
const mostFaults = 3

// call sends a request until its answer is final. Every request of this API is safe to send again. inDoubt says that an
// earlier try may have been done although no answer said so.
func (c *Client) call(ctx context.Context, method, path string, body any) (final *answer, inDoubt bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	var sent []byte
	if body != nil {
		if sent, err = json.Marshal(body); err != nil {
			return nil, false, err
		}
	}
	faults := 0
	var last error
	for pause := c.FirstPause; ; pause = min(2*pause, c.LongestPause) {
		a, failure := c.try(ctx, method, path, sent)
		wait := time.Duration(0)
		switch {
		case failure != nil: // no answer, or half of one
			inDoubt = true
		case a.code == "UNAVAILABLE" || a.code == "OVERLOADED" || a.status == http.StatusTooManyRequests:
			failure, wait = a, a.retryAfter // surely not done
		case a.status >= http.StatusInternalServerError: // OUTCOME_UNKNOWN, or a proxy in between, or a fault
			failure, wait = a, a.retryAfter
			inDoubt = true
			if a.status == http.StatusInternalServerError {
				if faults++; faults > mostFaults {
					return nil, inDoubt, failure
				}
			}
		default:
			return a, inDoubt, nil
		}
		// Half to one and a half of the pause, and on top of what the service asks for: a crowd that was refused
		// together must not come back together.
		wait += pause/2 + rand.N(pause)
		if last == nil || ctx.Err() == nil {
			last = failure // and not that the last try was cut short
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, inDoubt, fmt.Errorf("given up: %w; until then: %w", ctx.Err(), last)
		}
	}
}

// try sends a request once, and reads the answer to its end.
func (c *Client) try(ctx context.Context, method, path string, body []byte) (*answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	// Read to the end, also what nobody looks at: only then is the connection used again.
	text, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, err // a broken answer is none
	}
	a := &answer{status: response.StatusCode, body: text, requestID: response.Header.Get("X-Request-ID")}
	if a.status >= http.StatusBadRequest {
		var refusal struct {
			Error string `json:"error"`
			Code  string `json:"code"`
		}
		// A proxy's refusal is no JSON; then the status alone tells.
		_ = json.Unmarshal(text, &refusal)
		a.code, a.sentence = refusal.Code, refusal.Error
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		a.retryAfter = time.Duration(seconds) * time.Second
	}
	return a, nil
}
