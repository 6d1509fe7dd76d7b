package main

import (
	"context"
	"sync/atomic"

	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// countedStore counts the outcomes of claims, for the summary at the end.
type countedStore struct {
	*pgstore.Store

	claimed, alreadyClaimed, outOfStock, notFound, failed atomic.Int64
}

// Claim claims, and counts what came of it.
func (s *countedStore) Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error) {
	status, err := s.Store.Claim(ctx, user, coupon)
	switch status {
	case pgstore.Claimed:
		s.claimed.Add(1)
	case pgstore.AlreadyClaimed:
		s.alreadyClaimed.Add(1)
	case pgstore.OutOfStock:
		s.outOfStock.Add(1)
	case pgstore.CouponNotFound:
		s.notFound.Add(1)
	default:
		s.failed.Add(1)
	}
	return status, err
}

func (s *countedStore) summary() *zerolog.Event {
	return zerolog.Dict().
		Int64(string(pgstore.Claimed), s.claimed.Load()).
		Int64(string(pgstore.AlreadyClaimed), s.alreadyClaimed.Load()).
		Int64(string(pgstore.OutOfStock), s.outOfStock.Load()).
		Int64(string(pgstore.CouponNotFound), s.notFound.Load()).
		Int64("failed", s.failed.Load())
}
