// Package pgstore is the PostgreSQL client of the service. It calls the functions in db/functions,
// sends concurrent claims in batches, and returns an outcome for each claim, creation and read. It
// contains no coupon logic.
package pgstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

// Config configures a Store.
type Config struct {
	// URL is the connection string, password included: a URL or keyword=value pairs.
	URL string
	// MaxConns is the largest number of connections, 1 or more. From 2 on, one of them is reserved
	// for Ready, and from 4 on another one for probes; from 8 on, no kind of call can keep another
	// from its connections. Behind a proxy there are additional ones: one that reads its map, up to
	// 8 for health checks of shards, and one for each shard that is probed.
	MaxConns int32
	// ClaimConcurrency is the number of shared calls of claims in flight, 1 or more; behind a
	// proxy, per shard.
	ClaimConcurrency int
	// ClaimQueue is the largest number of pending claims per server, 1 or more. It is also the
	// largest number of reads, and of creations, that wait for a connection.
	ClaimQueue int
	// ClaimTimeout is the longest that a claim, a creation or a read waits for its outcome, 20 ms
	// or more. The time-outs of the server are derived from it.
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
	sampled       zerolog.Logger // for what may happen on each call
	metrics       *metrics
	timeout       time.Duration // Config.ClaimTimeout
	schemaVersion int32

	pool       *pgxpool.Pool // for claims, creations and reads
	healthPool *pgxpool.Pool // for Ready, which must not wait for claims
	probePool  *pgxpool.Pool // for the probe of a single server, which claims wait for

	// servers are those that store coupons, by partition. A single server has the only partition.
	servers    atomic.Pointer[[]*server]
	newServer  func(probe) *server
	proxy      *proxy
	background *background    // probes and health checks
	calls      sync.WaitGroup // of all batchers

	reads     sharedReads[*Coupon]
	reading   *limiter
	creating  *limiter
	readiness readiness
	closing   atomic.Bool
}

// minClaimTimeout keeps the server's time-outs, which are fractions of ClaimTimeout, at 1 ms or
// more: PostgreSQL counts them in milliseconds, and 0 means none.
const minClaimTimeout = 20 * time.Millisecond

// Open creates a Store. It validates cfg but does not wait for the database: connections are made
// when they are needed, and Ready reports whether they can be made. Its errors never contain the
// connection string, which may contain a password.
func Open(cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{
		log:           cfg.Log,
		sampled:       cfg.Log.Sample(&zerolog.BurstSampler{Burst: 10, Period: time.Second}),
		metrics:       newMetrics(),
		timeout:       cfg.ClaimTimeout,
		schemaVersion: cfg.SchemaVersion,
		background:    newBackground(),
	}
	if err := s.openPools(cfg); err != nil {
		s.closePools()
		return nil, err
	}
	// Each kind of call may use a part of the pool, so that no kind keeps the others from a
	// connection: reads 3/8, solo calls and creations a quarter each. The rest is for shared calls.
	conns := int(s.pool.Config().MaxConns)
	s.reading = newLimiter(max(1, conns*3/8), cfg.ClaimQueue, cfg.ClaimTimeout)
	s.reads.read, s.reads.timeout = s.readCoupon, cfg.ClaimTimeout
	s.creating = newLimiter(max(1, conns/4), cfg.ClaimQueue, cfg.ClaimTimeout)
	solo := make(chan struct{}, max(1, conns/4))

	s.newServer = func(p probe) *server {
		p.background = s.background
		srv := &server{
			timeout: cfg.ClaimTimeout,
			pool:    s.pool,
			probe:   p,
			metrics: s.metrics,
			log:     s.log,
			sampled: s.sampled,
			state:   healthy,
			changed: make(chan struct{}),
		}
		srv.batcher = newBatcher(srv, cfg.ClaimConcurrency, cfg.ClaimQueue, cfg.ClaimTimeout, solo, &s.calls)
		return srv
	}
	s.setServers([]*server{s.newServer(probe{
		subject: "the database", pool: s.probePool, read: probeReadSQL, commit: probeCommitSQL, problem: singleProblem,
	})})
	return s, nil
}

// openPools creates the pools. Of MaxConns, one connection is for Ready and one for probes, if
// there are enough.
func (s *Store) openPools(cfg Config) error {
	config, err := parsePoolConfig(cfg, s.metrics, func() { s.proxy.start() })
	if err != nil {
		return err
	}
	if s.proxy, err = newProxy(s, config); err != nil {
		return err
	}
	config.MaxConns = cfg.MaxConns
	if cfg.MaxConns > 1 {
		config.MaxConns--
		if s.healthPool, err = newPool(config, 1); err != nil {
			return err
		}
	}
	if cfg.MaxConns >= 4 {
		config.MaxConns--
		if s.probePool, err = newPool(config, 1); err != nil {
			return err
		}
	}
	// The context is the parent of the connections made in advance, not of the pool.
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		return fmt.Errorf("connection pool: %w", err)
	}
	s.healthPool = cmp.Or(s.healthPool, s.pool)
	s.probePool = cmp.Or(s.probePool, s.healthPool)
	return nil
}

// newPool creates a pool for a purpose besides claims. Its connections are made when they are
// needed.
func newPool(config *pgxpool.Config, maxConns int32) (*pgxpool.Pool, error) {
	config = config.Copy()
	config.MaxConns, config.MinConns, config.MinIdleConns = maxConns, 0, 0
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("connection pool for health checks: %w", err)
	}
	return pool, nil
}

// setServers replaces the servers. The old ones, if any, refuse new claims and finish what they
// have.
func (s *Store) setServers(servers []*server) {
	old := s.servers.Swap(&servers)
	if old == nil {
		return
	}
	for _, srv := range *old {
		srv.batcher.close()
		srv.retired.Store(true)
	}
}

// serverOf returns the server that stores a coupon.
func (s *Store) serverOf(coupon string) *server {
	servers := *s.servers.Load()
	if len(servers) == 1 {
		return servers[0]
	}
	return servers[hashText(coupon)&uint32(len(servers)-1)]
}

// all yields the servers by their numbers: that of the shard, or 0 without a proxy.
func (s *Store) all() iter.Seq2[int, *server] {
	return func(yield func(int, *server) bool) {
		servers := *s.servers.Load()
		for i, srv := range servers {
			if slices.Index(servers, srv) == i && !yield(i, srv) { // a shard's number is its lowest partition
				return
			}
		}
	}
}

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
	s.proxy.mu.Lock() // no new servers after this
	s.closing.Store(true)
	for _, srv := range *s.servers.Load() {
		srv.batcher.close()
	}
	s.proxy.mu.Unlock()
	s.calls.Wait()
	s.background.stop() // not before: a running probe keeps claims off a server that does not commit
	s.closePools()
}

// closePools closes the pools that were opened.
func (s *Store) closePools() {
	if s.proxy != nil {
		s.proxy.pool.Close()
	}
	for _, pool := range []*pgxpool.Pool{s.pool, s.healthPool, s.probePool} {
		if pool != nil {
			pool.Close()
		}
	}
}

// background runs goroutines until it is stopped.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex // start and stop exclude each other, as WaitGroup demands
	running sync.WaitGroup
}

func newBackground() *background {
	ctx, cancel := context.WithCancel(context.Background())
	return &background{ctx: ctx, cancel: cancel}
}

// start runs f. Its ctx ends with stop. After stop it returns false.
func (b *background) start(f func(ctx context.Context)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return false
	}
	b.running.Go(func() { f(b.ctx) })
	return true
}

// stop waits until all goroutines have ended.
func (b *background) stop() {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.running.Wait()
}
