package load

import (
	"context"
	"errors"
	"fmt"
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
// reads it afterwards. Each has a connection of its own, and ends with its context.
type Service struct {
	// Address is "host:port".
	Address string
	// Timeout bounds one request. Reading a coupon with 1,000,000 claims takes a second or two.
	Timeout time.Duration
}

// Create creates a coupon with a stock of amount. The error wraps [ErrCouponExists] if the name is
// taken.
func (s Service) Create(ctx context.Context, name string, amount int) error {
	c := NewClient(s.Address, s.Timeout)
	defer c.Close()
	answer, r, err := c.Create(ctx, name, amount)
	switch {
	case err != nil:
		return err
	case answer == CouponExists:
		return fmt.Errorf("%w: %q", ErrCouponExists, name)
	case answer != Created:
		return unexpected(r)
	}
	return nil
}

// Coupon reads a coupon with all its claims. A body that breaks the contract (a missing, unknown or
// repeated field) is an error.
func (s Service) Coupon(ctx context.Context, name string) (Coupon, error) {
	c := NewClient(s.Address, s.Timeout)
	defer c.Close()
	answer, r, err := c.Send(ctx, Request{Coupon: name, Read: true})
	if err != nil {
		return Coupon{}, err
	}
	if answer != ReadOK {
		return Coupon{}, unexpected(r)
	}
	return ParseCoupon(r.Body)
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

// ParseCoupon parses the body of an answer to a read.
func ParseCoupon(body []byte) (Coupon, error) {
	var reported struct {
		Name      *string   `json:"name"`
		Amount    *int      `json:"amount"`
		Remaining *int      `json:"remaining_amount"`
		ClaimedBy *[]string `json:"claimed_by"`
	}
	if err := json.Unmarshal(body, &reported, json.RejectUnknownMembers(true)); err != nil {
		return Coupon{}, fmt.Errorf("not a coupon: %w", err)
	}
	if reported.Name == nil || reported.Amount == nil || reported.Remaining == nil || reported.ClaimedBy == nil {
		return Coupon{}, fmt.Errorf("not a coupon, because a field is missing or null: %.200q", body)
	}
	return Coupon{*reported.Name, *reported.Amount, *reported.Remaining, *reported.ClaimedBy}, nil
}

func unexpected(r Response) error {
	return fmt.Errorf("unexpected answer: status %d %.300q", r.Status, r.Body)
}
