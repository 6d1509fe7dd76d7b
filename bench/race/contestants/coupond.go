package contestants

import (
	"context"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/db"
	"scalable-coupon-system/pgstore"
)

// openCoupond opens pgstore with the defaults of coupond.
func openCoupond(_ context.Context, cfg Config) (api.Store, func(), error) {
	store, err := pgstore.Open(pgstore.Config{
		URL:              cfg.PostgresURL,
		MaxConns:         cfg.MaxConns,
		ClaimConcurrency: max(1, cfg.ClaimConcurrency),
		ClaimQueue:       4096,
		ClaimTimeout:     5 * time.Second,
		SchemaVersion:    db.Version(),
	})
	if err != nil {
		return nil, nil, err
	}
	return store, store.Close, nil
}
