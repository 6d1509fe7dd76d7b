package contestants

import (
	"context"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// ceiling claims nothing. Only HTTP, JSON and the load generator cost anything, so no contestant
// can be faster.
type ceiling struct{}

func openCeiling(context.Context, Config) (api.Store, func(), error) {
	return ceiling{}, func() {}, nil
}

func (ceiling) Claim(context.Context, string, string) (pgstore.ClaimStatus, error) {
	return pgstore.Claimed, nil
}

func (ceiling) CreateCoupon(context.Context, string, int32) (pgstore.CreateStatus, error) {
	return pgstore.Created, nil
}

func (ceiling) Coupon(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
	return coupon(name, 1, 1, nil), true, nil
}

func (ceiling) Ready(context.Context) ([]pgstore.Shard, error) { return nil, nil }
