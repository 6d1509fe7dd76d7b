package pgstore

import (
	"context"
	"errors"
	"iter"
)

// ClaimStatus is the outcome of a claim: a label of the enum claim_status in PostgreSQL.
type ClaimStatus string

// The outcomes of a claim, in order of precedence: an unknown coupon is reported before an earlier
// claim, and an earlier claim before a sold-out coupon.
const (
	// Claimed: the user has the coupon now, and the claim is on disk.
	Claimed ClaimStatus = "claimed"
	// AlreadyClaimed: the user has had this coupon since an earlier claim.
	AlreadyClaimed ClaimStatus = "already_claimed"
	// OutOfStock: the coupon is sold out. That is final, because stock never grows.
	OutOfStock ClaimStatus = "out_of_stock"
	// CouponNotFound: no coupon has that name.
	CouponNotFound ClaimStatus = "coupon_not_found"
)

// ClaimStatuses returns every ClaimStatus, in the order of the enum. Tests use it to compare them
// with the enum in PostgreSQL and the responses of the HTTP layer.
func ClaimStatuses() []ClaimStatus {
	return []ClaimStatus{Claimed, AlreadyClaimed, OutOfStock, CouponNotFound}
}

// CreateStatus is the outcome of creating a coupon: a label of the enum create_status in
// PostgreSQL.
type CreateStatus string

// The outcomes of creating a coupon.
const (
	// Created: the coupon exists now, with all of its stock.
	Created CreateStatus = "created"
	// CouponExists: the name is taken. The coupon of that name is unchanged.
	CouponExists CreateStatus = "coupon_exists"
)

// CreateStatuses returns every CreateStatus, in the order of the enum.
func CreateStatuses() []CreateStatus {
	return []CreateStatus{Created, CouponExists}
}

// The errors of a Store. They are wrapped: compare with errors.Is. Every other error is internal: a
// bug, or a schema that does not match this program.
var (
	// ErrUnavailable: the database was not reached, or it ended the call by its own time-out (a
	// lock, for example) and rolled it back. Nothing was committed.
	ErrUnavailable = errors.New("the database is unreachable or blocked")
	// ErrOverloaded: too many claims are pending. Nothing was committed.
	ErrOverloaded = errors.New("too many requests are waiting for the database")
	// ErrOutcomeUnknown: the call was sent, and it is not known whether it was committed. Claims
	// and creations can be repeated safely.
	ErrOutcomeUnknown = errors.New("it is not known whether the database committed the call")
)

// Coupon is one consistent state of a coupon: Claimers yields exactly Amount - RemainingAmount user
// ids, whatever is claimed meanwhile.
type Coupon struct {
	Name            string
	Amount          int // 1 to 2147483647
	RemainingAmount int // 0 to Amount

	// Claimers yields the user ids in claim order, in pages of 1 to 10,000. If a page cannot be
	// read, it yields the error and ends. A page is valid until the next one is requested.
	Claimers func(ctx context.Context) iter.Seq2[[]string, error]

	whole    bool     // claimers has all of them
	claimers []string // only if whole
}
