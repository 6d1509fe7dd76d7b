// Package pgstore is PostgreSQL from Go: it carries claims, creations and reads to
// the functions in db/functions and their outcomes back, and knows nothing else
// about coupons.
//
//	status.go   the words: outcomes, errors, the Coupon
//	store.go    Config, Open, Close
//	connect.go  the pool, and what holds for each of its connections
//	wire.go     one connection: closed instead of cancelled; warnings heard
//	proxied.go  whether the server is a proxy before several
//	shards.go   which of them there are, and which are away
//	hashtext.go which of them a coupon belongs to
//	errors.go   the one place where a failed call is judged: did it surely not happen?
//	claims.go   the one place where claims are sent
//	lanes.go    how claims travel together
//	coupons.go  creating and reading coupons
//	reads.go    how reads of one coupon travel together
//	request.go  the request behind a claim, in the log
//	metrics.go  what is counted
//	ready.go    whether claims can be made, and why not
//	commits.go  whether commits come back: nothing is sent while they do not
package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

// Config says how to reach PostgreSQL and how much may be asked of it at once.
type Config struct {
	// URL is the connection string, password included: a URL or keyword=value.
	URL string
	// MaxConns bounds the connections of the store, 1 or more. From 2 on, one of
	// them is kept for Ready. Behind a proxy there is one more that reads its map, one
	// to ask each shard, 8 at the most, and one for each whose commits are in doubt.
	MaxConns int32
	// ClaimConcurrency is the number of calls of claims in flight at once, 1 or more; behind a
	// proxy, for each of its shards.
	ClaimConcurrency int
	// ClaimQueue is the number of claims that may wait in a lane, 1 or more.
	ClaimQueue int
	// ClaimTimeout is the longest that a claim, a creation or a read waits for its
	// answer. The time-outs of the server follow from it. At least 10 ms.
	ClaimTimeout time.Duration
	// SchemaVersion is the oldest schema that the service can work with.
	SchemaVersion int32
	// Log gets what an operator should know; the zero Logger writes nowhere.
	Log zerolog.Logger
}

// Store carries claims, creations and reads to PostgreSQL. Make it with Open; all
// of its methods may be called concurrently.
type Store struct {
	log           zerolog.Logger
	failures      zerolog.Logger // of calls: a few a second tell as much as thousands
	slow          zerolog.Logger // claims, as few
	metrics       *metrics
	timeout       time.Duration
	schemaVersion int32

	pool  *pgxpool.Pool // claims, creations and reads
	watch *pgxpool.Pool // Ready's own connection, so that no crowd keeps it from asking

	// Each of these two may take half of the pool, rounded up: neither a rush of
	// readers nor a crowd that is asked again coupon by coupon keeps the next claim
	// from a connection.
	readers chan struct{} // a place in it is the right to read
	askers  atomic.Int32  // connections that one lane may use to ask again

	lanes  *lanes
	reads  reads[*Coupon]
	state  readiness
	peer   peer
	shards shards

	commits commits
	closing context.Context
	close   context.CancelFunc
}

// minClaimTimeout leaves each of the time-outs that follow from ClaimTimeout at
// least the millisecond that PostgreSQL counts in.
const minClaimTimeout = 10 * time.Millisecond

// Open makes a Store. It reads the connection string but does not wait for the
// database: connections are made when they are needed, and Ready tells whether
// they can be. An error names what is wrong in cfg and never shows the connection
// string, which may hold a password.
func Open(cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m := newMetrics()
	s := &Store{
		log:           cfg.Log,
		failures:      cfg.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
		slow:          cfg.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
		metrics:       m,
		timeout:       cfg.ClaimTimeout,
		schemaVersion: cfg.SchemaVersion,
	}
	poolConfig, err := parse(cfg, m, &s.peer)
	if err != nil {
		return nil, err
	}
	s.closing, s.close = context.WithCancel(context.Background())
	s.commits.closing, s.commits.close = context.WithCancel(context.Background())
	s.lanes = newLanes(cfg.ClaimConcurrency, cfg.ClaimQueue, cfg.ClaimTimeout, s.send)
	s.reads.read = s.readCoupon
	s.reads.timeout = cfg.ClaimTimeout

	poolConfig.MaxConns = max(1, cfg.MaxConns-1)
	half := (int(poolConfig.MaxConns) + 1) / 2
	s.readers = make(chan struct{}, half)
	s.askers.Store(askers(half, cfg.ClaimConcurrency))

	// The context is the parent of connections made in advance, not of the pool.
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), poolConfig); err != nil {
		return nil, fmt.Errorf("pool of connections: %w", err)
	}
	s.watch = s.pool
	if cfg.MaxConns > 1 {
		watchConfig := poolConfig.Copy()
		watchConfig.MaxConns, watchConfig.MinConns, watchConfig.MinIdleConns = 1, 0, 0
		if s.watch, err = pgxpool.NewWithConfig(context.Background(), watchConfig); err != nil {
			s.pool.Close()
			return nil, fmt.Errorf("connection for health checks: %w", err)
		}
	}
	s.shards.config = questions(poolConfig)
	s.shards.ended.Go(s.watchShards)
	return s, nil
}

// askers shares half of the pool among the lanes.
func askers(half, lanes int) int32 { return int32(max(1, half/lanes)) }

// check refuses what makes no sense, all of it at once.
func (cfg Config) check() error {
	var errs []error
	if cfg.URL == "" {
		errs = append(errs, errors.New("URL is empty"))
	}
	if cfg.MaxConns < 1 {
		errs = append(errs, fmt.Errorf("MaxConns is %d; at least 1 is needed", cfg.MaxConns))
	}
	if cfg.ClaimConcurrency < 1 {
		errs = append(errs, fmt.Errorf("ClaimLanes is %d; at least 1 is needed", cfg.ClaimConcurrency))
	}
	if cfg.ClaimQueue < 1 {
		errs = append(errs, fmt.Errorf("ClaimQueue is %d; at least 1 is needed", cfg.ClaimQueue))
	}
	if cfg.ClaimTimeout < minClaimTimeout {
		errs = append(errs, fmt.Errorf("ClaimTimeout is %v; at least %v is needed", cfg.ClaimTimeout, minClaimTimeout))
	}
	return errors.Join(errs...)
}

// Close answers everything that waits, then closes the connections. Calls that
// begin later find the database unavailable.
func (s *Store) Close() {
	s.shards.mu.Lock() // whoever begins an inquiry there has begun it, or begins none
	s.close()
	s.shards.mu.Unlock()
	s.shards.ended.Wait()
	s.lanes.close()
	s.commits.close() // not before: it keeps claims from a server whose commits hang
	s.pool.Close()
	s.watch.Close()
}
