// Package pgstore is the PostgreSQL client of the service. It calls the functions in db/functions,
// sends concurrent claims in batches, and returns an outcome for each claim, creation and read. It
// contains no coupon logic.
//
//	status.go      outcomes, errors, Coupon
//	store.go       Config, Open, Close
//	batcher.go     batches of concurrent claims
//	claim.go       the calls that claim, and their retry
//	coupon.go      creating and reading coupons
//	sharedread.go  one read for several callers
//	pool.go        configuration of the pool and its sessions, time-outs
//	connstring.go  the connection string, and all that is wrong with it
//	connect.go     a new session: its settings, and why it cannot be started
//	conn.go        one connection: never sends a cancel request, notes warnings
//	outcome.go     what a failed call proves
//	probe.go       whether the server completes commits; nothing is written while it does not
//	proxy.go       whether the server is a PL/Proxy proxy
//	shards.go      the shards behind a proxy, and their states
//	hashtext.go    the partition of a coupon
//	health.go      whether claims can be made, and why not
//	metrics.go     Prometheus metrics
//	log.go         request ids and slow claims in the log
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

// Config configures a Store.
type Config struct {
	// URL is the connection string, password included: a URL or keyword=value pairs.
	URL string
	// MaxConns is the largest number of connections, 1 or more. From 2 on, one of them is reserved for
	// Ready. Behind a proxy there are additional ones: one that reads its map, up to 8 for health
	// checks of shards, and one for each shard that is probed.
	MaxConns int32
	// ClaimConcurrency is the number of calls of claims in flight, 1 or more; behind a proxy, per
	// shard.
	ClaimConcurrency int
	// ClaimQueue is the largest number of pending claims per batcher, 1 or more.
	ClaimQueue int
	// ClaimTimeout is the longest that a claim, a creation or a read waits for its outcome, 10 ms or
	// more. The time-outs of the server are derived from it.
	ClaimTimeout time.Duration
	// SchemaVersion is the oldest schema version that the service can work with.
	SchemaVersion int32
	// Log is for the operator; the zero Logger writes nothing.
	Log zerolog.Logger
}

// Store sends claims, creations and reads to PostgreSQL. Create it with Open. All of its methods
// may be called concurrently.
type Store struct {
	log           zerolog.Logger
	failures      zerolog.Logger // of calls, sampled
	slow          zerolog.Logger // slow claims, sampled
	metrics       *metrics
	timeout       time.Duration // Config.ClaimTimeout
	schemaVersion int32

	pool       *pgxpool.Pool // for claims, creations and reads
	healthPool *pgxpool.Pool // for Ready and probes, which must not wait for claims

	// Reads may use half of the pool, rounded up, and retries of claims another half, so that neither
	// keeps the next batch from a connection.
	readSlots  chan struct{} // holds one element per running read
	retryLimit atomic.Int32  // connections that one batcher may use for retries

	batchers  *batchers
	reads     sharedReads[*Coupon]
	readiness readiness
	kind      serverKind
	prober    prober
	shards    shardSet

	closing context.Context
	close   context.CancelFunc
}

// minClaimTimeout keeps the server's time-outs, which are fractions of ClaimTimeout, at 1 ms or
// more: PostgreSQL counts them in milliseconds, and 0 means none.
const minClaimTimeout = 10 * time.Millisecond

// Open creates a Store. It validates cfg but does not wait for the database: connections are made
// when they are needed, and Ready reports whether they can be made. Its errors never contain the
// connection string, which may contain a password.
func Open(cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
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
	poolConfig, err := parsePoolConfig(cfg, m, &s.kind)
	if err != nil {
		return nil, err
	}
	s.closing, s.close = context.WithCancel(context.Background())
	s.prober.closing, s.prober.close = context.WithCancel(context.Background())
	s.batchers = newBatchers(cfg.ClaimConcurrency, cfg.ClaimQueue, cfg.ClaimTimeout, s.sendBatch)
	s.reads.read = s.readCoupon
	s.reads.timeout = cfg.ClaimTimeout

	poolConfig.MaxConns = max(1, cfg.MaxConns-1)
	half := (int(poolConfig.MaxConns) + 1) / 2
	s.readSlots = make(chan struct{}, half)
	s.retryLimit.Store(retryLimit(half, cfg.ClaimConcurrency))

	// The context is the parent of the connections made in advance, not of the pool.
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), poolConfig); err != nil {
		return nil, fmt.Errorf("connection pool: %w", err)
	}
	s.healthPool = s.pool
	if cfg.MaxConns > 1 {
		healthConfig := poolConfig.Copy()
		healthConfig.MaxConns, healthConfig.MinConns, healthConfig.MinIdleConns = 1, 0, 0
		if s.healthPool, err = pgxpool.NewWithConfig(context.Background(), healthConfig); err != nil {
			s.pool.Close()
			return nil, fmt.Errorf("connection for health checks: %w", err)
		}
	}
	s.shards.poolConfig = healthCheckPoolConfig(poolConfig)
	s.shards.goroutines.Go(s.watchShards)
	return s, nil
}

// retryLimit divides conns connections among batchers and returns the share of one, at least 1.
func retryLimit(conns, batchers int) int32 { return int32(max(1, conns/batchers)) }

// validate returns an error that names every invalid field.
func (cfg Config) validate() error {
	var errs []error
	if cfg.URL == "" {
		errs = append(errs, errors.New("URL is empty"))
	}
	if cfg.MaxConns < 1 {
		errs = append(errs, fmt.Errorf("MaxConns is %d; at least 1 is needed", cfg.MaxConns))
	}
	if cfg.ClaimConcurrency < 1 {
		errs = append(errs, fmt.Errorf("ClaimConcurrency is %d; at least 1 is needed", cfg.ClaimConcurrency))
	}
	if cfg.ClaimQueue < 1 {
		errs = append(errs, fmt.Errorf("ClaimQueue is %d; at least 1 is needed", cfg.ClaimQueue))
	}
	if cfg.ClaimTimeout < minClaimTimeout {
		errs = append(errs, fmt.Errorf("ClaimTimeout is %v; at least %v is needed", cfg.ClaimTimeout, minClaimTimeout))
	}
	return errors.Join(errs...)
}

// Close waits until all pending claims have their outcome, then closes the connections. Calls that
// start later return ErrUnavailable.
func (s *Store) Close() {
	s.shards.mu.Lock() // no shard probe starts after this: startShardProbe checks s.closing under the mutex
	s.close()
	s.shards.mu.Unlock()
	s.shards.goroutines.Wait()
	s.batchers.close()
	s.prober.close() // last: until then a running probe keeps claims off a server that does not commit
	s.pool.Close()
	s.healthPool.Close()
}
