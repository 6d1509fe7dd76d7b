package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
)

// ErrCouponExists means that the service already has a coupon of this name.
var ErrCouponExists = errors.New("the service already has a coupon of this name")

// Coupon is a coupon as the service reports it.
type Coupon struct {
	Name      string
	Amount    int
	Remaining int
	ClaimedBy []string
}

// Service makes the requests that are not part of the load: it creates a coupon before a run and
// reads it afterwards. It uses net/http.
type Service struct {
	// Address is "host:port".
	Address string
	// Timeout bounds one request. Reading a coupon with 1,000,000 claims takes a second or two.
	Timeout time.Duration
}

// Create creates a coupon with a stock of amount. The error wraps [ErrCouponExists] if the name is
// taken.
func (s Service) Create(ctx context.Context, name string, amount int) error {
	body, err := json.Marshal(map[string]any{"name": name, "amount": amount})
	if err != nil {
		return err
	}
	return s.do(ctx, http.MethodPost, "/api/coupons", body, func(r *http.Response) error {
		switch r.StatusCode {
		case http.StatusCreated:
			return nil
		case http.StatusConflict:
			return fmt.Errorf("%w: %q", ErrCouponExists, name)
		default:
			return unexpected(r)
		}
	})
}

// Coupon reads a coupon with all its claims. A body that breaks the contract (a missing, unknown or
// repeated field) is an error.
func (s Service) Coupon(ctx context.Context, name string) (Coupon, error) {
	var c Coupon
	err := s.do(ctx, http.MethodGet, CouponPath(name), nil, func(r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return unexpected(r)
		}
		var reported struct {
			Name      *string   `json:"name"`
			Amount    *int      `json:"amount"`
			Remaining *int      `json:"remaining_amount"`
			ClaimedBy *[]string `json:"claimed_by"`
		}
		if err := json.UnmarshalRead(r.Body, &reported, json.RejectUnknownMembers(true)); err != nil {
			return err
		}
		if reported.Name == nil || reported.Amount == nil || reported.Remaining == nil || reported.ClaimedBy == nil {
			return errors.New("a field is missing or null")
		}
		c = Coupon{*reported.Name, *reported.Amount, *reported.Remaining, *reported.ClaimedBy}
		return nil
	})
	return c, err
}

// Coupons reads several coupons. A name that the service does not have is an error.
func (s Service) Coupons(ctx context.Context, names ...string) (map[string]Coupon, error) {
	coupons := make(map[string]Coupon, len(names))
	for _, name := range names {
		c, err := s.Coupon(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("coupon %q: %w", name, err)
		}
		coupons[name] = c
	}
	return coupons, nil
}

func (s Service) do(ctx context.Context, method, path string, body []byte, read func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+s.Address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := read(response); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func unexpected(r *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 300)) // whatever could be read
	return fmt.Errorf("unexpected response %s %q", r.Status, body)
}
