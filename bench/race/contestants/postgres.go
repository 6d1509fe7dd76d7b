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
func connect(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	poolConfig, err := pgxpool.ParseConfig(cfg.PostgresURL)
	if err != nil {
		return nil, errors.New("not a valid connection string of PostgreSQL")
	}
	poolConfig.MaxConns = cfg.MaxConns
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
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
func withTables(claim claimFunc) func(context.Context, Config) (api.Store, error) {
	return func(ctx context.Context, cfg Config) (api.Store, error) {
		pool, err := connect(ctx, cfg)
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
	return coupon(name, amount, remaining, claimers), err == nil, err
}

func (t tables) Ready(ctx context.Context) ([]pgstore.Shard, error) { return nil, t.pool.Ping(ctx) }

// claimInteractive is the usual first version: the application holds the row lock over five round
// trips.
func claimInteractive(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		status, err = claimInTx(ctx, tx, user, name, " for update")
		return err
	})
	return status, err
}

// claimSerializable leaves it to PostgreSQL to detect conflicts, and retries until there is none.
func claimSerializable(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 64*time.Millisecond) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) (err error) {
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
// when the same user claims twice at the same time, and is then retried.
func claimOptimistic(ctx context.Context, pool *pgxpool.Pool, user, name string) (status pgstore.ClaimStatus, err error) {
	for {
		tag, err := pool.Exec(ctx, optimisticSQL, name, user)
		if conflicts(err) {
			continue // the user's other claim has committed and is visible now
		}
		if err != nil {
			return "", err
		}
		if tag.RowsAffected() == 1 {
			return pgstore.Claimed, nil
		}
		err = pool.QueryRow(ctx, rejectionSQL, name, user).Scan(&status)
		return status, err
	}
}

// conflicts reports whether err is a conflict with a concurrent transaction, so that a retry may
// succeed.
func conflicts(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains([]string{pgerrcode.SerializationFailure, pgerrcode.DeadlockDetected, pgerrcode.UniqueViolation}, pgErr.Code)
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
	*pgstore.Store

	pool *pgxpool.Pool
}

func openSingle(ctx context.Context, cfg Config) (api.Store, error) {
	store, err := openStore(cfg)
	if err != nil {
		return nil, err
	}
	pool, err := connect(ctx, cfg)
	return single{store, pool}, err
}

func (s single) Claim(ctx context.Context, user, name string) (status pgstore.ClaimStatus, err error) {
	err = s.pool.QueryRow(ctx, `select coupond.claim_coupon($1, $2)`, user, name).Scan(&status)
	return status, err
}
