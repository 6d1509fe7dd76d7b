package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The functions of a proxy (db/proxy). coupon_shards returns, for each partition, the number of its
// shard. A shard's number is the lowest of its partitions.
const (
	shardsSQL      = `select coupond.coupon_shards()`
	shardCheckSQL  = `select coupond.coupon_shard_version($1), coupond.coupon_shard_problem($1)`
	shardReadSQL   = `select coupond.coupon_shard_version($1)`
	shardCommitSQL = `select coupond.coupon_shard_commit($1)`
)

// proxy makes each shard behind a PL/Proxy proxy a server of the Store.
//
// The proxy routes each coupon to the shard that stores it. The Store reads the proxy's map to
// batch the claims of a shard together, and to send nothing to a shard that does not answer:
// PL/Proxy waits for a shard as long as the shard lets it. An old map costs speed, not
// correctness, because the proxy routes by its own map and the shards reject coupons that are not
// theirs (ADR 0016).
//
// Calls are not the ones to find out that a shard does not answer. A health check asks each healthy
// shard again and again; the others are being probed (probe.go).
type proxy struct {
	store *Store
	pool  *pgxpool.Pool // for the map, health checks and probes
	slots chan struct{} // holds one element per running health check
	found sync.Once

	mu         sync.Mutex
	partitions []int    // the shard's number by partition; nil: not known yet
	shards     []*shard // ordered by number
}

// shard is a server behind the proxy.
type shard struct {
	*server
	number int

	checking atomic.Bool            // a health check is running
	problem  atomic.Pointer[string] // what the last health check found although the shard answers; nil: none has ended
}

// Shard is the state of a server behind a proxy.
type Shard struct {
	Number int    // the lowest of its partitions
	Reason string // why it is not healthy, a sentence without secrets; "": it is healthy
}

// maxUnanswered is the largest number of health checks without an answer. Each uses a connection.
// If that many shards are silent, the others are not checked until one of these checks ends.
const maxUnanswered = 8

// healthCheckInterval is the pause between two rounds of health checks. Together with
// unreachableAfter it is 0.3 T. The first attempt of a call takes longer than that even if its
// claims were queued for a third of T (firstAttempt). So when it fails, the shard is already known
// to be unreachable, and the second attempt is not sent.
func healthCheckInterval(claim time.Duration) time.Duration {
	return max(claim/10, 50*time.Millisecond)
}

// newProxy returns the proxy of a Store. Nothing happens until start.
func newProxy(s *Store, calls *pgxpool.Config) (*proxy, error) {
	// One connection for the map, maxUnanswered for health checks, and one for each shard that is
	// being probed.
	pool, err := newPool(calls, 1<<17)
	if err != nil {
		return nil, err
	}
	return &proxy{store: s, pool: pool, slots: make(chan struct{}, maxUnanswered)}, nil
}

// start watches the shards until the Store is closed. It is called for each new connection to a
// proxy.
func (p *proxy) start() {
	p.found.Do(func() { p.store.background.start(p.watch) })
}

func (p *proxy) watch(ctx context.Context) {
	var logged error
	for ctx.Err() == nil {
		err := p.round(ctx)
		if err != nil && logged == nil && ctx.Err() == nil {
			p.store.log.Warn().Err(err).Msg("the map of shards cannot be read from the proxy")
		}
		logged = err
		select {
		case <-ctx.Done():
		case <-time.After(healthCheckInterval(p.store.timeout)):
		}
	}
}

// round reads the proxy's map and starts a health check of each healthy shard that has none
// running. It does not wait for the answers, only for a slot if all are taken.
func (p *proxy) round(ctx context.Context) error {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, unreachableAfter(p.store.timeout))
	defer cancel()
	var partitions []int
	err = conn.QueryRow(bounded, shardsSQL).Scan(&partitions)
	conn.Release()
	switch {
	case isNotInstalled(sqlState(err)):
		return fmt.Errorf("run coupond migrate --proxy: %w", err)
	case err != nil:
		return err
	case !isPartitionMap(partitions):
		return fmt.Errorf("the options of the foreign server coupond must be p0 to p(2^n - 1); the map is %v", partitions)
	}
	p.setPartitions(partitions)

	for _, sh := range p.all() {
		if !sh.beginCheck() {
			continue
		}
		select {
		case p.slots <- struct{}{}:
			p.store.background.start(func(ctx context.Context) {
				p.check(ctx, sh)
				<-p.slots
			})
		case <-bounded.Done(): // maxUnanswered shards are silent
			sh.checking.Store(false)
			return nil
		}
	}
	return nil
}

// isPartitionMap reports whether there are 2^n partitions, each with the number of a shard that is
// the lowest of that shard's partitions.
func isPartitionMap(partitions []int) bool {
	for partition, number := range partitions {
		if number < 0 || number > partition || partitions[number] != number {
			return false
		}
	}
	n := len(partitions)
	return n > 0 && n&(n-1) == 0
}

// setPartitions makes new servers if the map has changed: by another map, the same number may mean
// another server. The old ones finish what they have.
func (p *proxy) setPartitions(partitions []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store.closing.Load() || slices.Equal(partitions, p.partitions) {
		return
	}
	doubtful := slices.ContainsFunc(p.shards, func(sh *shard) bool { return !sh.isHealthy() })
	p.partitions, p.shards = partitions, nil
	servers := make([]*server, len(partitions)) // by partition
	for partition, number := range partitions {
		if partition == number {
			sh := &shard{server: p.store.newServer(p.probeOf(number)), number: number}
			sh.log = sh.log.With().Int("shard", number).Logger()
			p.shards = append(p.shards, sh)
			servers[partition] = sh.server
		}
		servers[partition] = servers[number]
	}
	p.store.setServers(servers)
	if doubtful { // any of the new shards may have what a doubtful one had
		for _, sh := range p.shards {
			sh.markSuspect()
		}
	}
	p.store.log.Info().Int("partitions", len(partitions)).Int("shards", len(p.shards)).Msg("the map of shards was read from the proxy")
}

// probeOf returns the probe of a shard. An error of the proxy or of its connection proves nothing
// about the shard.
func (p *proxy) probeOf(number int) probe {
	return probe{
		subject: "it", pool: p.pool, read: shardReadSQL, commit: shardCommitSQL, args: []any{number}, problem: shardProblem,
	}
}

// shardProblem returns what an error of a call to a shard proves about the shard; "": nothing.
func shardProblem(err error) string {
	pgErr, fromServer := errors.AsType[*pgconn.PgError](err)
	switch {
	case isNotInstalled(sqlState(err)):
		return "its functions or the proxy's are not those of this program: run coupond migrate there, and coupond migrate --proxy"
	case fromServer && pgErr.SeverityUnlocalized == "ERROR":
		return "the proxy gets no answer from it"
	}
	return ""
}

// all returns the shards, ordered by number.
func (p *proxy) all() []*shard {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shards
}

// states returns the state of each shard that is known; none without a proxy.
func (p *proxy) states() []Shard {
	var states []Shard
	for _, sh := range p.all() {
		reason, problem := sh.refusalReason(), sh.problem.Load()
		if reason == "" && problem != nil {
			reason = *problem
		}
		if reason != "" || problem != nil {
			states = append(states, Shard{Number: sh.number, Reason: reason})
		}
	}
	return states
}

// beginCheck returns false if the shard needs no health check now.
func (sh *shard) beginCheck() bool {
	return sh.isHealthy() && sh.checking.CompareAndSwap(false, true)
}

// check asks a shard for its schema version and for what is wrong with the session that the proxy
// has there, and records the result. The time for a connection to the proxy does not count against
// the shard.
func (p *proxy) check(ctx context.Context, sh *shard) {
	defer sh.checking.Store(false)
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return // the proxy has failed, not the shard; round reports it
	}
	defer conn.Release()
	ctx, cancel := context.WithTimeout(ctx, p.store.timeout)
	defer cancel()
	var version int32
	var sessionProblem *string // null: none
	silent := time.AfterFunc(unreachableAfter(p.store.timeout), func() { sh.markUnreachable(sh.probe.subject + silentReason) })
	defer silent.Stop()
	err = conn.QueryRow(ctx, shardCheckSQL, sh.number).Scan(&version, &sessionProblem)
	if sqlState(err) != "" { // perhaps PL/Proxy used a connection that a restart of the shard had broken
		err = conn.QueryRow(ctx, shardCheckSQL, sh.number).Scan(&version, &sessionProblem)
	}
	switch reason := shardProblem(err); {
	case reason != "":
		sh.markUnreachable(reason)
	case err != nil: // it proves nothing about the shard
	case version < p.store.schemaVersion:
		sh.setProblem(fmt.Sprintf("its schema has version %d, and this program needs %d: run coupond migrate there", version, p.store.schemaVersion))
	case sessionProblem != nil:
		sh.setProblem("the proxy's session there cannot be used: " + oneLine(*sessionProblem))
	default:
		sh.setProblem("")
	}
}

// setProblem records what a health check that was answered has found, and logs a change.
func (sh *shard) setProblem(problem string) {
	before := sh.problem.Swap(&problem)
	if before == nil {
		before = new(string)
	}
	if problem != *before {
		sh.log.Warn().Str("reason", problem).Msg("the result of the shard's health check has changed")
	}
}
