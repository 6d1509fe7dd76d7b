// Package couponmodel is the claim rule in memory: a map of coupons that processes one request at a
// time. Tests compare the SQL functions, the store and the service with it. What they answer to
// concurrent requests, also when connections break or PostgreSQL crashes, must be what the model
// answers to the same requests in some order.
package couponmodel

import "slices"

// Outcome is the outcome of a request. Those of claims and creations have the names of the enums
// claim_status and create_status in PostgreSQL, so they convert to and from pgstore's types.
type Outcome string

// The outcomes that the model returns.
const (
	Created        Outcome = "created"
	CouponExists   Outcome = "coupon_exists"
	Claimed        Outcome = "claimed"
	AlreadyClaimed Outcome = "already_claimed"
	OutOfStock     Outcome = "out_of_stock"
	CouponNotFound Outcome = "coupon_not_found" // of a claim or a read
	Found          Outcome = "found"            // of a read
)

// The outcomes of a request that failed.
const (
	// NotExecuted means that the request changed nothing.
	NotExecuted Outcome = "not_executed"
	// Ambiguous means that it is not known whether the request was executed.
	Ambiguous Outcome = "ambiguous"
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

// Create creates the coupon with a stock of amount, at least 1. It returns Created, or CouponExists
// and changes nothing.
func (c Coupon) Create(amount int) (Coupon, Outcome) {
	if c.Amount > 0 {
		return c, CouponExists
	}
	return Coupon{Amount: amount}, Created
}

// Claim claims the coupon for user. It returns CouponNotFound, AlreadyClaimed or OutOfStock, in
// this precedence, and changes nothing; otherwise Claimed.
func (c Coupon) Claim(user string) (Coupon, Outcome) {
	switch {
	case c.Amount == 0:
		return c, CouponNotFound
	case slices.Contains(c.ClaimedBy, user):
		return c, AlreadyClaimed
	case c.Remaining() == 0:
		return c, OutOfStock
	}
	return Coupon{c.Amount, append(slices.Clip(c.ClaimedBy), user)}, Claimed
}

// Read returns Found if the coupon exists, and CouponNotFound if it does not.
func (c Coupon) Read() Outcome {
	if c.Amount == 0 {
		return CouponNotFound
	}
	return Found
}

// Coupons is the state of the system: all coupons by name.
type Coupons map[string]Coupon

// Create creates a coupon; see [Coupon.Create].
func (s Coupons) Create(name string, amount int) (outcome Outcome) {
	s[name], outcome = s[name].Create(amount)
	return outcome
}

// Claim claims a coupon for user; see [Coupon.Claim].
func (s Coupons) Claim(user, name string) (outcome Outcome) {
	s[name], outcome = s[name].Claim(user)
	return outcome
}
