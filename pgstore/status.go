package pgstore

import (
	"context"
	"errors"
	"iter"
)

// ClaimStatus is the outcome of a claim: a label of the enum claim_status in
// PostgreSQL, unchanged.
type ClaimStatus string

// The outcomes of a claim, in the order in which they are decided: an unknown
// coupon is told before an earlier claim, and that before the end of the stock.
const (
	// Claimed: the user has the coupon now, and the claim is on disk.
	Claimed ClaimStatus = "claimed"
	// AlreadyClaimed: the user has had this coupon since an earlier claim.
	AlreadyClaimed ClaimStatus = "already_claimed"
	// OutOfStock: nothing is left of the coupon. It stays so; stock never grows.
	OutOfStock ClaimStatus = "out_of_stock"
	// CouponNotFound: there is no coupon of that name.
	CouponNotFound ClaimStatus = "coupon_not_found"
)

// ClaimStatuses lists every ClaimStatus, so that tests can prove it equal to the
// enum in PostgreSQL and to the answers of the HTTP layer.
func ClaimStatuses() []ClaimStatus {
	return []ClaimStatus{Claimed, AlreadyClaimed, OutOfStock, CouponNotFound}
}

// CreateStatus is the outcome of creating a coupon: a label of the enum
// create_status in PostgreSQL, unchanged.
type CreateStatus string

// The outcomes of creating a coupon.
const (
	// Created: the coupon exists now, with all of its stock.
	Created CreateStatus = "created"
	// CouponExists: the name is taken. The coupon that has it is unchanged.
	CouponExists CreateStatus = "coupon_exists"
)

// CreateStatuses lists every CreateStatus, for the same proofs as ClaimStatuses.
func CreateStatuses() []CreateStatus {
	return []CreateStatus{Created, CouponExists}
}

// What can go wrong when PostgreSQL is asked. They come wrapped: compare with
// errors.Is. Every other error of this package is a fault of ours.
var (
	// ErrUnavailable: the database could not be asked, or something held the call up (a
	// lock, say) until its own time-out ended it. Surely nothing happened.
	ErrUnavailable = errors.New("the database is away or blocked")
	// ErrOverloaded: too many callers wait already. Surely nothing happened.
	ErrOverloaded = errors.New("too many requests are waiting for the database")
	// ErrOutcomeUnknown: the call was sent, but whether it was committed cannot be
	// known. A claim and a creation are safe to repeat.
	ErrOutcomeUnknown = errors.New("it cannot be known whether the database committed the call")
)

// Coupon is one consistent state of a coupon: Claimers yields exactly
// Amount - RemainingAmount user ids, whatever is claimed meanwhile.
type Coupon struct {
	Name            string
	Amount          int // 1 to 2147483647
	RemainingAmount int // 0 to Amount

	// Claimers yields the user ids in claim order, in pages of 1 to 10,000. The
	// second value is not nil when a page could not be read; it ends the
	// iteration. A page belongs to the caller until the next one is asked for.
	Claimers func(ctx context.Context) iter.Seq2[[]string, error]

	whole    bool     // claimers are all of them
	claimers []string // when whole
	encoded  encoding // for those who share this Coupon
}
