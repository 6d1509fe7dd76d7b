package apitest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"scalable-coupon-system/pgstore"
)

// Store is an api.Store in memory, with the same rules as *pgstore.Store. Create it with NewStore.
// For different behavior, embed it and override methods.
type Store struct {
	mu      sync.Mutex
	coupons map[string]*coupon
	err     error
	shards  []pgstore.Shard
	calls   atomic.Int64
}

type coupon struct {
	amount   int
	claimers []string // append-only, so that a Coupon that shares it does not change
	claimed  map[string]bool
}

// PageSize is the maximum number of claimers in a page, the same as in pgstore.
const PageSize = 10_000

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{coupons: make(map[string]*coupon)} }

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
	c := s.coupons[name]
	switch {
	case s.err != nil:
		return "", s.err
	case c == nil:
		return pgstore.CouponNotFound, nil
	case c.claimed[user]:
		return pgstore.AlreadyClaimed, nil
	case len(c.claimers) == c.amount:
		return pgstore.OutOfStock, nil
	}
	c.claimed[user] = true
	c.claimers = append(c.claimers, user)
	return pgstore.Claimed, nil
}

// CreateCoupon implements api.Store.
func (s *Store) CreateCoupon(_ context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return "", s.err
	}
	if s.coupons[name] != nil {
		return pgstore.CouponExists, nil
	}
	s.coupons[name] = &coupon{amount: int(amount), claimed: make(map[string]bool)}
	return pgstore.Created, nil
}

// Coupon implements api.Store.
func (s *Store) Coupon(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coupons[name]
	if s.err != nil || c == nil {
		return nil, false, s.err
	}
	claimers := c.claimers
	if len(claimers) <= PageSize {
		return pgstore.NewCoupon(name, c.amount, claimers), true, nil
	}
	return &pgstore.Coupon{
		Name:            name,
		Amount:          c.amount,
		RemainingAmount: c.amount - len(claimers),
		Claimers:        func(ctx context.Context) iter.Seq2[[]string, error] { return pages(ctx, claimers) },
	}, true, nil
}

func pages(ctx context.Context, claimers []string) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		for page := range slices.Chunk(claimers, PageSize) {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !yield(page, nil) {
				return
			}
		}
	}
}

// Ready implements api.Store.
func (s *Store) Ready(context.Context) ([]pgstore.Shard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards, s.err
}
