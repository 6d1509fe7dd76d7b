package contestants

import (
	"context"
	_ "embed" // schema.sql
	"errors"
	"math/rand/v2"
	"slices"
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
func connect(ctx context.Context, database string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		return nil, err
	}
	config.MaxConns = MaxConns
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err == nil {
		_, err = pool.Exec(ctx, schema)
	}
	return pool, err
}

// claimFunc claims a coupon on a connection of a pool.
type claimFunc func(ctx context.Context, pool *pgxpool.Pool, user, name string) (pgstore.ClaimStatus, error)

// tables are the tables of schema.sql. The contestants that use them differ only in claim.
type tables struct {
	pool  *pgxpool.Pool
	claim claimFunc
}

// withTables returns the Open of a contestant that uses the tables of schema.sql.
func withTables(claim claimFunc) func(context.Context, string) (api.Store, error) {
	return func(ctx context.Context, database string) (api.Store, error) {
		pool, err := connect(ctx, database)
		return tables{pool, claim}, err
	}
}

func (t tables) Claim(ctx context.Context, user, name string) (pgstore.ClaimStatus, error) {
	return t.claim(ctx, t.pool, user, name)
}

func (t tables) CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error) {
	tag, err := t.pool.Exec(ctx, `
		insert into contestant.coupons (name, amount, remaining_amount)
		values ($1, $2, $2)
		on conflict (name) do nothing`, name, amount)
	if tag.RowsAffected() == 0 {
		return pgstore.CouponExists, err
	}
	return pgstore.Created, err
}

const readSQL = `
select amount, remaining_amount, array(select user_id from contestant.claims where coupon_name = name order by claimed_at)
from contestant.coupons
where name = $1`

func (t tables) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	var amount, remaining int
	var claimers []string
	err := t.pool.QueryRow(ctx, readSQL, name).Scan(&amount, &remaining, &claimers)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	coupon := pgstore.NewCoupon(name, amount, claimers)
	coupon.RemainingAmount = remaining // the race compares it with the claimers
	return coupon, err == nil, err
}

func (t tables) Ready(ctx context.Context) ([]pgstore.Shard, error) { return nil, t.pool.Ping(ctx) }

// inTransaction is the usual first version: the application claims in a transaction of five round
// trips. lock is a locking clause for the row of the coupon, or "": then the isolation level makes
// PostgreSQL detect conflicts.
func inTransaction(isolation pgx.TxIsoLevel, lock string) claimFunc {
	return func(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: isolation}, func(tx pgx.Tx) (err error) {
			status, err = claimInTx(ctx, tx, user, name, lock)
			return err
		})
		return status, err
	}
}

// claimInTx claims one statement at a time. lock is appended to the query that reads the stock.
func claimInTx(ctx context.Context, tx pgx.Tx, user, name, lock string) (status pgstore.ClaimStatus, err error) {
	var remaining int
	err = tx.QueryRow(ctx, `select remaining_amount from contestant.coupons where name = $1`+lock, name).Scan(&remaining)
	if errors.Is(err, pgx.ErrNoRows) {
		return pgstore.CouponNotFound, nil
	}
	if err != nil {
		return "", err
	}
	if remaining == 0 {
		err = tx.QueryRow(ctx, rejectionSQL, name, user).Scan(&status)
		return status, err
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

// rejectionSQL returns the status of a claim that found no stock.
const rejectionSQL = `
select case
  when not exists (select from contestant.coupons where name = $1) then 'coupon_not_found'
  when exists (select from contestant.claims where coupon_name = $1 and user_id = $2) then 'already_claimed'
  else 'out_of_stock'
end`

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

// claimOptimistic takes no lock before it writes: one statement and one commit. The statement fails
// when the same user claims twice at the same time.
func claimOptimistic(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
	tag, err := pool.Exec(ctx, optimisticSQL, name, user)
	if err != nil {
		return "", err
	}
	if tag.RowsAffected() == 1 {
		return pgstore.Claimed, nil
	}
	err = pool.QueryRow(ctx, rejectionSQL, name, user).Scan(&status)
	return status, err
}

// conflicts are errors after which a retry may succeed: a concurrent transaction was in the way.
var conflicts = []string{pgerrcode.SerializationFailure, pgerrcode.DeadlockDetected, pgerrcode.UniqueViolation}

// retried repeats a claim until it does not conflict with a concurrent transaction.
func retried(claim claimFunc) claimFunc {
	return func(ctx context.Context, pool *pgxpool.Pool, user, name string) (pgstore.ClaimStatus, error) {
		for pause := time.Millisecond; ; pause = min(2*pause, 64*time.Millisecond) {
			status, err := claim(ctx, pool, user, name)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || !slices.Contains(conflicts, pgErr.Code) {
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
}

// claimPlain calls the function of schema.sql once for each request. It is what an idle client is
// compared with: nothing that claims in the database with one commit can do less.
func claimPlain(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
	err = pool.QueryRow(ctx, `select contestant.claim($1, $2)`, user, name).Scan(&status)
	return status, err
}

// single is pgstore, but claims with one call of claim_coupon for each request. It is what batches
// are compared with.
type single struct {
	api.Store

	pool *pgxpool.Pool
}

func openSingle(ctx context.Context, database string) (api.Store, error) {
	store, errStore := openCoupond(ctx, database)
	pool, errPool := connect(ctx, database)
	return single{store, pool}, errors.Join(errStore, errPool)
}

func (s single) Claim(ctx context.Context, user, name string) (status pgstore.ClaimStatus, err error) {
	err = s.pool.QueryRow(ctx, `select coupond.claim_coupon($1, $2)`, user, name).Scan(&status)
	return status, err
}
