// Package couponmodel is the claim rule in memory: a map of coupons that takes one request at a
// time. Tests compare the service with it. The answers that the service gives to concurrent
// requests, also when connections break or PostgreSQL crashes, must be those that the model gives
// to the same requests in some order.
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

// Coupon is the state of one coupon. The zero value is a coupon that does not exist: an existing
// one has an amount of at least 1. Its methods return the new state and leave the receiver as it
// was, so that several histories can continue from one state.
type Coupon struct {
	Amount    int
	ClaimedBy []string // user ids by claim number
}

// Remaining returns the stock that is left.
func (c Coupon) Remaining() int { return c.Amount - len(c.ClaimedBy) }

// Equal reports whether c and d are the same state.
func (c Coupon) Equal(d Coupon) bool {
	return c.Amount == d.Amount && slices.Equal(c.ClaimedBy, d.ClaimedBy)
}

// Create creates the coupon with a stock of amount, at least 1. It answers Created, or CouponExists
// and changes nothing.
func (c Coupon) Create(amount int) (Coupon, load.Answer) {
	if c.Amount > 0 {
		return c, CouponExists
	}
	return Coupon{Amount: amount}, Created
}

// Claim claims the coupon for user. It answers CouponNotFound, AlreadyClaimed or OutOfStock, in
// this precedence, and changes nothing; otherwise Claimed.
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

// Read answers ReadOK if the coupon exists, and CouponNotFound if it does not.
func (c Coupon) Read() load.Answer {
	if c.Amount == 0 {
		return load.CouponNotFound
	}
	return load.ReadOK
}

// Coupons is the state of the system: all coupons by name.
type Coupons map[string]Coupon

// Create creates a coupon; see [Coupon.Create].
func (s Coupons) Create(name string, amount int) (answer load.Answer) {
	s[name], answer = s[name].Create(amount)
	return answer
}

// Claim claims a coupon for user; see [Coupon.Claim].
func (s Coupons) Claim(user, name string) (answer load.Answer) {
	s[name], answer = s[name].Claim(user)
	return answer
}
