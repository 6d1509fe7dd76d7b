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
	shards  []pgstore.Shard
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

// SetShards sets the shards that Ready returns.
func (s *Store) SetShards(shards ...pgstore.Shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shards = shards
}

// Calls returns the number of calls of Claim, CreateCoupon and Coupon.
func (s *Store) Calls() int64 { return s.calls.Load() }

// Claim implements api.Store.
func (s *Store) Claim(_ context.Context, user, name string) (pgstore.ClaimStatus, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return "", s.err
	}
	return pgstore.ClaimStatus(s.coupons.Claim(user, name)), nil
}

// CreateCoupon implements api.Store.
func (s *Store) CreateCoupon(_ context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return "", s.err
	}
	return pgstore.CreateStatus(s.coupons.Create(name, int(amount))), nil
}

// Coupon implements api.Store.
func (s *Store) Coupon(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coupons[name]
	if s.err != nil || c.Amount == 0 {
		return nil, false, s.err
	}
	return pgstore.NewCoupon(name, c.Amount, c.ClaimedBy), true, nil
}

// Ready implements api.Store.
func (s *Store) Ready(context.Context) ([]pgstore.Shard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards, s.err
}
