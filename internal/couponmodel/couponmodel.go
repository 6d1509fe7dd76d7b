// Package model is the whole system in a few lines: a map of coupons, one request after the other. What the service answers to
// many at once, through crashes and lost connections, must be what this answers in some order.
package couponmodel

import (
	"slices"

	"scalable-coupon-system/bench/load"
)

// The answers that only creations get.
var (
	Created      = load.Answer{Status: 201}
	CouponExists = load.Answer{Status: 409, Code: "COUPON_EXISTS"}
)

// Coupon is one coupon. The zero value is none: there is no coupon of amount 0. It is a value: what changes is a new one.
type Coupon struct {
	Amount    int
	ClaimedBy []string // in claim order
}

// Remaining is what is left of the stock.
func (c Coupon) Remaining() int { return c.Amount - len(c.ClaimedBy) }

// Equal says whether two coupons are in the same state.
func (c Coupon) Equal(d Coupon) bool {
	return c.Amount == d.Amount && slices.Equal(c.ClaimedBy, d.ClaimedBy)
}

// Create puts amount pieces on sale.
func (c Coupon) Create(amount int) (Coupon, load.Answer) {
	if c.Amount > 0 {
		return c, CouponExists
	}
	return Coupon{Amount: amount}, Created
}

// Claim gives user a piece.
func (c Coupon) Claim(user string) (Coupon, load.Answer) {
	switch {
	case c.Amount == 0:
		return c, load.CouponNotFound
	case slices.Contains(c.ClaimedBy, user):
		return c, load.AlreadyClaimed
	case c.Remaining() == 0:
		return c, load.OutOfStock
	}
	return Coupon{c.Amount, append(slices.Clip(c.ClaimedBy), user)}, load.Claimed
}

// Read tells whether there is a coupon to be seen.
func (c Coupon) Read() load.Answer {
	if c.Amount == 0 {
		return load.CouponNotFound
	}
	return load.ReadOK
}

// Coupons is the system: every coupon by its name.
type Coupons map[string]Coupon

// Create puts a coupon on sale.
func (s Coupons) Create(name string, amount int) (answer load.Answer) {
	s[name], answer = s[name].Create(amount)
	return answer
}

// Claim gives user a piece of a coupon.
func (s Coupons) Claim(user, name string) (answer load.Answer) {
	s[name], answer = s[name].Claim(user)
	return answer
}
