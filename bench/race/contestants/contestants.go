// Package rivals holds the other ways to hand out a limited number of coupons, each written as well as those who would
// choose it write it, and each behind our own HTTP layer (package api), so that a race between them measures the ways and
// nothing else.
//
//	postgres.go  an interactive transaction, optimistic retry, SERIALIZABLE with retry, claim_coupon once a request
//	redis.go     a Lua script
//	ceiling.go   no claim at all: what HTTP alone costs
//	ours.go      pgstore, as coupond serves it
//
// All of them answer the same statuses in the same precedence, and the race checks the books of each.
package contestants

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// Config says where a rival finds its database and how much it may use of it.
type Config struct {
	// PostgresURL is the connection string of a database with our schema.
	PostgresURL string
	// RedisAddress is "host:port" of a Redis server.
	RedisAddress string
	// MaxConns bounds the connections to the database.
	MaxConns int32
	// Lanes is CLAIM_LANES for ours.
	Lanes int
}

// Contestant is one way to hand out coupons.
type Contestant struct {
	// Name is what the tables and the charts call it.
	Name string
	// Method says in a line how it claims.
	Method string
	// Open connects to the database of cfg; stop ends all that it started.
	Open func(ctx context.Context, cfg Config) (store api.Store, stop func(), err error)
}

// Coupond is the name of pgstore among its rivals.
const Coupond = "coupond"

// All lists the rivals, in the order of the tables.
func All() []Contestant {
	return []Contestant{
		{Coupond, "claims that wait together go together in one call and one commit (pgstore)", openOurs},
		{"interactive", "BEGIN, SELECT … FOR UPDATE, INSERT, UPDATE, COMMIT from Go", openInteractive},
		{"optimistic", "one statement, UPDATE … WHERE remaining_amount > 0, again when it collides", openOptimistic},
		{"serializable", "BEGIN ISOLATION LEVEL SERIALIZABLE, again when it cannot serialize", openSerializable},
		{"one call a claim", "select claim_coupon($1, $2), once a request", openSingle},
		{"Redis", "a Lua script, appendfsync as the server is set", openRedis},
		{"ceiling", "HTTP only: every claim is claimed", openCeiling},
	}
}

// Find returns the rival of that name.
func Find(name string) (Contestant, error) {
	for _, r := range All() {
		if r.Name == name {
			return r, nil
		}
	}
	return Contestant{}, fmt.Errorf("no rival is called %q", name)
}

// coupon makes what api reads from, of claimers that are in memory already.
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
