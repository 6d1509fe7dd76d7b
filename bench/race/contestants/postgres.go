package contestants

import (
	"context"
	_ "embed" // schema.sql
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

//go:embed schema.sql
var schema string

// connect opens a pool and creates the tables and the function of schema.sql.
func connect(ctx context.Context, cfg Config) (*pgxpool.Pool, func(), error) {
	poolConfig, err := pgxpool.ParseConfig(cfg.PostgresURL)
	if err != nil {
		return nil, nil, errors.New("not a valid connection string of PostgreSQL")
	}
	poolConfig.MaxConns = cfg.MaxConns
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("pool: %w", err)
	}
	if _, err := pool.Exec(ctx, schema); err != nil {
		pool.Close()
		return nil, nil, fmt.Errorf("create the contestants' tables: %w", err)
	}
	return pool, pool.Close, nil
}

// tables implements everything but Claim for the contestants that use the tables of schema.sql.
type tables struct {
	pool *pgxpool.Pool
}

func (t tables) CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	tag, err := t.pool.Exec(ctx, `
		insert into contestant.coupons (name, amount, remaining_amount)
		values ($1, $2, $2)
		on conflict (name) do nothing`, name, amount)
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 0 {
		return pgstore.CouponExists, nil
	}
	return pgstore.Created, nil
}

func (t tables) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	var amount, remaining int
	var claimers []string
	err := pgx.BeginTxFunc(ctx, t.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `select amount, remaining_amount from contestant.coupons where name = $1`, name).Scan(&amount, &remaining)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `select user_id from contestant.claims where coupon_name = $1 order by claimed_at`, name)
		if err != nil {
			return err
		}
		claimers, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return coupon(name, amount, remaining, claimers), true, nil
}

func (t tables) Ready(ctx context.Context) ([]pgstore.Shard, error) { return nil, t.pool.Ping(ctx) }

// interactive is the usual first version: the application holds the row lock over five round trips.
type interactive struct{ tables }

func openInteractive(ctx context.Context, cfg Config) (api.Store, func(), error) {
	pool, stop, err := connect(ctx, cfg)
	return interactive{tables{pool}}, stop, err
}

func (s interactive) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	var status pgstore.ClaimStatus
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
		status, err = claimInTx(ctx, tx, user, name, " for update")
		return err
	})
	return status, err
}

// serializable leaves it to PostgreSQL to detect conflicts, and retries until there is none.
type serializable struct{ tables }

func openSerializable(ctx context.Context, cfg Config) (api.Store, func(), error) {
	pool, stop, err := connect(ctx, cfg)
	return serializable{tables{pool}}, stop, err
}

func (s serializable) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 64*time.Millisecond) {
		var status pgstore.ClaimStatus
		err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) (err error) {
			status, err = claimInTx(ctx, tx, user, name, "")
			return err
		})
		if !conflicts(err) {
			return status, err
		}
		// Full jitter, so that conflicting transactions do not retry at the same moment.
		select {
		case <-time.After(rand.N(pause)):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// claimInTx claims one statement at a time. lock is appended to the query that reads the stock: a
// locking clause, or "".
func claimInTx(ctx context.Context, tx pgx.Tx, user, name, lock string) (pgstore.ClaimStatus, error) {
	var remaining int
	err := tx.QueryRow(ctx, `select remaining_amount from contestant.coupons where name = $1`+lock, name).Scan(&remaining)
	if errors.Is(err, pgx.ErrNoRows) {
		return pgstore.CouponNotFound, nil
	}
	if err != nil {
		return "", err
	}
	if remaining == 0 {
		return withoutStock(ctx, tx, user, name)
	}
	tag, err := tx.Exec(ctx, `
		insert into contestant.claims (coupon_name, user_id)
		values ($1, $2)
		on conflict (coupon_name, user_id) do nothing`, name, user)
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 0 {
		return pgstore.AlreadyClaimed, nil
	}
	_, err = tx.Exec(ctx, `update contestant.coupons set remaining_amount = remaining_amount - 1 where name = $1`, name)
	return pgstore.Claimed, err
}

// withoutStock returns the status of a claim on a coupon without stock: already claimed, if the
// user has it, else out of stock.
func withoutStock(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, user, name string) (pgstore.ClaimStatus, error) {
	var has bool
	err := db.QueryRow(ctx, `
		select exists (select from contestant.claims where coupon_name = $1 and user_id = $2)`, name, user).Scan(&has)
	if err != nil {
		return "", err
	}
	if has {
		return pgstore.AlreadyClaimed, nil
	}
	return pgstore.OutOfStock, nil
}

// optimistic takes no lock before it writes: one statement and one commit. The statement fails when
// the same user claims twice at the same time, and is then retried.
type optimistic struct{ tables }

func openOptimistic(ctx context.Context, cfg Config) (api.Store, func(), error) {
	pool, stop, err := connect(ctx, cfg)
	return optimistic{tables{pool}}, stop, err
}

const optimisticSQL = `
with granted as (
  update contestant.coupons
  set remaining_amount = remaining_amount - 1
  where name = $1
    and remaining_amount > 0
    and not exists (select from contestant.claims where coupon_name = $1 and user_id = $2)
  returning name
)
insert into contestant.claims (coupon_name, user_id)
select name, $2
from granted`

func (s optimistic) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	for {
		tag, err := s.pool.Exec(ctx, optimisticSQL, name, user)
		if conflicts(err) {
			continue // the user's other claim has committed and is visible now
		}
		if err != nil {
			return "", err
		}
		if tag.RowsAffected() == 1 {
			return pgstore.Claimed, nil
		}
		var found bool
		if err := s.pool.QueryRow(ctx, `select exists (select from contestant.coupons where name = $1)`, name).Scan(&found); err != nil {
			return "", err
		}
		if !found {
			return pgstore.CouponNotFound, nil
		}
		return withoutStock(ctx, s.pool, user, name)
	}
}

// conflicts reports whether err is a conflict with a concurrent transaction, so that a retry may
// succeed.
func conflicts(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pgErr.Code {
	case pgerrcode.SerializationFailure, pgerrcode.DeadlockDetected, pgerrcode.UniqueViolation:
		return true
	}
	return false
}

// plain calls the function of schema.sql once for each request. It is what an idle client is
// compared with: nothing that claims in the database with one commit can do less.
type plain struct{ tables }

func openPlain(ctx context.Context, cfg Config) (api.Store, func(), error) {
	pool, stop, err := connect(ctx, cfg)
	return plain{tables{pool}}, stop, err
}

func (s plain) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	var status pgstore.ClaimStatus
	err := s.pool.QueryRow(ctx, `select contestant.claim($1, $2)`, user, name).Scan(&status)
	return status, err
}

// single calls our own functions once for each request, also for reads. It is what batched claims
// and shared reads are compared with.
type single struct {
	*pgstore.Store
	pool *pgxpool.Pool
}

func openSingle(ctx context.Context, cfg Config) (api.Store, func(), error) {
	pool, stop, err := connect(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	store, err := pgstore.Open(pgstore.Config{
		URL: cfg.PostgresURL, MaxConns: 2, ClaimConcurrency: 1, ClaimQueue: 1, ClaimTimeout: 5 * time.Second,
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	return single{store, pool}, func() { store.Close(); stop() }, nil
}

func (s single) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	var status pgstore.ClaimStatus
	err := s.pool.QueryRow(ctx, `select coupond.claim_coupon($1, $2)`, user, name).Scan(&status)
	return status, err
}

// singleReadSQL does not need one snapshot for its two calls: claims are never deleted, and the
// first call says how many of them the second returns.
const singleReadSQL = `
select c.amount, c.remaining_amount, array(select coupond.coupon_claimers($1, 0, c.amount - c.remaining_amount))
from coupond.get_coupon($1) as c`

func (s single) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	var amount, remaining int
	var claimers []string
	err := s.pool.QueryRow(ctx, singleReadSQL, name).Scan(&amount, &remaining, &claimers)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return coupon(name, amount, remaining, claimers), true, nil
}
