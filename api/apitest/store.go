package apitest

import (
	"context"
	"sync"
	"sync/atomic"

	"scalable-coupon-system/internal/couponmodel"
	"scalable-coupon-system/pgstore"
)

// Store is an api.Store that holds the model of the coupons in memory. Create it with NewStore. For
// different behavior, embed it and override methods.
type Store struct {
	mu      sync.Mutex
	coupons couponmodel.Coupons
	err     error
	calls   atomic.Int64
}

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{coupons: make(couponmodel.Coupons)} }

// Set sets the state of a coupon.
func (s *Store) Set(name string, amount int, claimedBy ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.coupons[name] = couponmodel.Coupon{Amount: amount, ClaimedBy: claimedBy}
}

// SetError makes every method do nothing and return err, until SetError(nil). Calls is not
// affected.
func (s *Store) SetError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Calls returns the number of calls of Claim, CreateCoupon and Coupon.
func (s *Store) Calls() int64 { return s.calls.Load() }

// call does f, unless the Store has an error, and returns that.
func (s *Store) call(f func()) error {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		f()
	}
	return s.err
}

// Claim implements api.Store.
func (s *Store) Claim(_ context.Context, user, name string) (status pgstore.ClaimStatus, err error) {
	err = s.call(func() { status = pgstore.ClaimStatus(s.coupons.Claim(user, name)) })
	return status, err
}

// CreateCoupon implements api.Store.
func (s *Store) CreateCoupon(_ context.Context, name string, amount int32) (status pgstore.CreateStatus, err error) {
	err = s.call(func() { status = pgstore.CreateStatus(s.coupons.Create(name, int(amount))) })
	return status, err
}

// Coupon implements api.Store.
func (s *Store) Coupon(_ context.Context, name string) (coupon *pgstore.Coupon, found bool, err error) {
	err = s.call(func() {
		if c := s.coupons[name]; c.Amount > 0 {
			coupon = pgstore.NewCoupon(name, c.Amount, c.ClaimedBy)
		}
	})
	return coupon, coupon != nil, err
}

// Ready implements api.Store. It has no shards.
func (s *Store) Ready(context.Context) ([]pgstore.Shard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, s.err
}
