// Package contestants has several ways to hand out a limited number of coupons. Each is written the
// way its users would write it, and runs behind our own HTTP layer (package api), so that a race
// compares only how coupons are claimed. All return the same statuses with the same precedence.
package contestants

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/api"
	"scalable-coupon-system/db"
	"scalable-coupon-system/pgstore"
)

// MaxConns is the default of DB_MAX_CONNS. It bounds the connections of every contestant.
const MaxConns = 16

// Contestant is one way to hand out coupons.
type Contestant struct {
	Name        string // in tables and charts
	Method      string // how it claims, in one line
	Table       string // of its coupons in PostgreSQL; "": it has none
	Appendfsync string // of the Redis that it uses; "": it uses none
	Binary      string // path of a coupond binary that is run instead of Open
	// Open connects to a database: a URL of PostgreSQL, with our schema, or the "host:port" of Redis.
	// The connections end with the process.
	Open func(ctx context.Context, database string) (api.Store, error)
}

// Names of contestants that workloads and targets refer to.
const (
	Coupond       = "coupond"
	Interactive   = "interactive"
	Optimistic    = "optimistic"
	Serializable  = "serializable"
	Single        = "one call per claim"
	Plain         = "plain function"
	RedisEverysec = "Redis everysec"
	Ceiling       = "ceiling"
)

// All returns the contestants in the order of the tables.
func All() []Contestant {
	const ours, theirs = "coupond.coupons", "contestant.coupons"
	return []Contestant{
		{Name: Coupond, Table: ours, Open: openCoupond, Method: "concurrent claims in one call with one commit (pgstore)"},
		{Name: Interactive, Table: theirs, Open: withTables(inTransaction("", " for update")), Method: "BEGIN, SELECT … FOR UPDATE, INSERT, UPDATE, COMMIT from Go"},
		{Name: Optimistic, Table: theirs, Open: withTables(retried(claimOptimistic)), Method: "UPDATE … WHERE remaining_amount > 0, retried after a conflict"},
		{Name: Serializable, Table: theirs, Open: withTables(retried(inTransaction(pgx.Serializable, ""))), Method: "BEGIN ISOLATION LEVEL SERIALIZABLE, retried after a failure"},
		{Name: Single, Table: ours, Open: openSingle, Method: "select claim_coupon($1, $2), once per request"},
		{Name: Plain, Table: theirs, Open: withTables(claimPlain), Method: "the plainest PL/pgSQL function, once per request"},
		{Name: RedisEverysec, Appendfsync: "everysec", Open: openRedis, Method: "a Lua script; a crash may lose the claims of a second"},
		{Name: "Redis always", Appendfsync: "always", Open: openRedis, Method: "a Lua script; each claim is on disk"},
		{Name: Ceiling, Open: openCeiling, Method: "HTTP alone: every claim is answered as claimed"},
	}
}

// openCoupond opens pgstore with the defaults of coupond.
func openCoupond(_ context.Context, database string) (api.Store, error) {
	return pgstore.Open(pgstore.Config{
		URL:              database,
		MaxConns:         MaxConns,
		ClaimConcurrency: 1,
		ClaimQueue:       4096,
		ClaimTimeout:     5 * time.Second,
		SchemaVersion:    db.Version(),
	})
}

// ceiling claims nothing. It costs only HTTP, JSON and the load generator, so no contestant can be
// faster.
type ceiling struct {
	api.Store // nil: the race only creates coupons and claims them
}

func openCeiling(context.Context, string) (api.Store, error) { return ceiling{}, nil }

func (ceiling) Claim(context.Context, string, string) (pgstore.ClaimStatus, error) {
	return pgstore.Claimed, nil
}

func (ceiling) CreateCoupon(context.Context, string, int32) (pgstore.CreateStatus, error) {
	return pgstore.Created, nil
}
