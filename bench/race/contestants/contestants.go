// Package contestants holds several ways to hand out a limited number of coupons. Each is written
// the way its users would write it, and runs behind our own HTTP layer (package api), so that a
// race compares nothing but how coupons are claimed.
//
//	coupond.go   pgstore, as coupond uses it
//	postgres.go  an interactive transaction, optimistic retry, SERIALIZABLE with retry, and
//	             claim_coupon once per request, a plain function once per request
//	redis.go     a Lua script
//	ceiling.go   no claim at all: the cost of HTTP alone
//
// All return the same statuses with the same precedence. The race checks the answers of each
// against what it stored.
package contestants

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// Config is what a contestant needs to connect to its database.
type Config struct {
	// PostgresURL is the connection string of a database with our schema.
	PostgresURL string
	// RedisAddress is "host:port" of a Redis server.
	RedisAddress string
	// MaxConns is the largest number of connections to the database.
	MaxConns int32
	// ClaimConcurrency is CLAIM_CONCURRENCY of coupond.
	ClaimConcurrency int
}

// Contestant is one way to hand out coupons.
type Contestant struct {
	// Name is its name in tables, charts and results.
	Name string
	// Method describes in one line how it claims.
	Method string
	// Table is the table with its coupons in PostgreSQL; "": it has none.
	Table string
	// Open connects to the database of cfg. stop ends everything that Open started.
	Open func(ctx context.Context, cfg Config) (store api.Store, stop func(), err error)
}

// Coupond is the name of the contestant that this repository is about.
const Coupond = "coupond"

// All returns the contestants in the order of the tables.
func All() []Contestant {
	const ours, theirs = "coupond.coupons", "contestant.coupons"
	return []Contestant{
		{Coupond, "concurrent claims in one call with one commit (pgstore)", ours, openCoupond},
		{"interactive", "BEGIN, SELECT … FOR UPDATE, INSERT, UPDATE, COMMIT from Go", theirs, openInteractive},
		{"optimistic", "one statement, UPDATE … WHERE remaining_amount > 0, retried after a conflict", theirs, openOptimistic},
		{"serializable", "BEGIN ISOLATION LEVEL SERIALIZABLE, retried after a serialization failure", theirs, openSerializable},
		{"one call per claim", "select claim_coupon($1, $2), once per request", ours, openSingle},
		{"plain function", "the plainest PL/pgSQL function on tables with a foreign key, once per request", theirs, openPlain},
		{"Redis", "a Lua script, with the server's appendfsync", "", openRedis},
		{"ceiling", "HTTP only: every claim is answered as claimed", "", openCeiling},
	}
}

// Find returns the contestant of that name.
func Find(name string) (Contestant, error) {
	for _, c := range All() {
		if c.Name == name {
			return c, nil
		}
	}
	return Contestant{}, fmt.Errorf("contestant %q does not exist", name)
}

// coupon returns a coupon in the form that api reads, with claimers that are in memory already.
func coupon(name string, amount, remaining int, claimers []string) *pgstore.Coupon {
	return &pgstore.Coupon{
		Name:            name,
		Amount:          amount,
		RemainingAmount: remaining,
		Claimers: func(context.Context) iter.Seq2[[]string, error] {
			return func(yield func([]string, error) bool) {
				for page := range slices.Chunk(claimers, 10_000) {
					if !yield(page, nil) {
						return
					}
				}
			}
		},
	}
}
