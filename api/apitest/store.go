package apitest

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"scalable-coupon-system/pgstore"
)

// Store keeps coupons in memory, by the rules of the real one; it satisfies
// api.Store. Use NewStore. For other behaviour embed it and replace a method.
type Store struct {
	mu      sync.Mutex
	coupons map[string]*coupon
	fault   error
	shards  []pgstore.Shard
	calls   atomic.Int64
}

type coupon struct {
	amount   int
	claimers []string // only ever appended to, so that a reader's part of it stays
	claimed  map[string]bool
}

// PageSize is how many claimers the Store yields in a page, as the real one does.
const PageSize = 10_000

// NewStore makes an empty Store.
func NewStore() *Store { return &Store{coupons: make(map[string]*coupon)} }

// Fail lets every method return err from now on, and do nothing; nil ends that.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err
}

// HasShards lets the Store say that these servers are behind it.
func (s *Store) HasShards(shards ...pgstore.Shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shards = shards
}

// Calls is how often the methods have been called, Ready and Shards apart.
func (s *Store) Calls() int64 { return s.calls.Load() }

// Claim is api.Store's.
func (s *Store) Claim(_ context.Context, user, name string) (pgstore.ClaimStatus, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coupons[name]
	switch {
	case s.fault != nil:
		return "", s.fault
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

// CreateCoupon is api.Store's.
func (s *Store) CreateCoupon(_ context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		return "", s.fault
	}
	if s.coupons[name] != nil {
		return pgstore.CouponExists, nil
	}
	s.coupons[name] = &coupon{amount: int(amount), claimed: make(map[string]bool)}
	return pgstore.Created, nil
}

// Coupon is api.Store's.
func (s *Store) Coupon(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
	s.calls.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coupons[name]
	if s.fault != nil || c == nil {
		return nil, false, s.fault
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

// Ready is api.Store's.
func (s *Store) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// Shards is api.Sharded's.
func (s *Store) Shards() []pgstore.Shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards
}
