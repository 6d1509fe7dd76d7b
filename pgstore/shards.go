package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The functions of the proxy (db/proxy). coupon_shards returns, for each partition, the number of
// its shard. A shard's number is the lowest of its partitions.
const (
	shardsSQL      = `select coupond.coupon_shards()`
	shardCheckSQL  = `select coupond.coupon_shard_version($1), coupond.coupon_shard_problem($1)`
	shardCommitSQL = `select coupond.coupon_shard_commit($1)`
)

// maxUnanswered is the largest number of health checks without an answer. Each uses a connection.
// If that many shards are silent, the others are not checked until one of these checks ends.
const maxUnanswered = 8

// healthCheckInterval is the pause between two rounds of health checks. unreachableAfter is the
// time without an answer after which a shard is unreachable, and after which a running probe marks
// its shard as not committing. A round waits as long for the map and for free slots.
//
// Together they are 0.3 T. The first attempt of a call takes longer than that even if its claims
// were queued for a third of T (firstAttempt). So when it fails, the shard is already known to be
// unreachable, and the second attempt is not sent.
func healthCheckInterval(claim time.Duration) time.Duration {
	return max(claim/10, 50*time.Millisecond)
}

func unreachableAfter(claim time.Duration) time.Duration { return claim / 5 }

// Shard is a server behind a proxy, with the result of its last health check.
type Shard struct {
	Number int    // the lowest of its partitions
	Reason string // why it is not healthy, a sentence without secrets; "": it is healthy
}

// shardSet is what is known of the servers behind a proxy. Claims are grouped and refused by it, no
// more: an old map costs speed, not correctness, because the proxy routes by its own map and the
// shards reject coupons that are not theirs (ADR 0016).
type shardSet struct {
	poolConfig *pgxpool.Config // for health checks and probes
	goroutines sync.WaitGroup  // watchShards, each health check and each probe

	mu         sync.Mutex
	pool       *pgxpool.Pool       // for health checks and probes; nil: the server is not known to be a proxy
	partitions []int               // the shard's number by partition; nil: no proxy, or no map yet
	states     map[int]*shardState // by the shard's number
}

// shardState is the state of one shard.
//
// PL/Proxy waits for a shard as long as the shard lets it, so a silent shard would hold each call
// for half of ClaimTimeout. Health checks in the background find such a shard, and nothing is sent
// to it until it answers (ADR 0016):
//
//	healthy        all calls are sent
//	suspect        a write was not answered in time; a probe is running, and writes wait for it
//	notCommitting  health checks are answered, but a probe took too long or failed; reads are sent,
//	               writes are refused until a probe commits
//	unreachable    health checks are not answered; all calls are refused until one is
//
// unreachable can coincide with the two states before it. A shard that answers again while it is
// suspect is probed before its claims are accepted.
//
// There is one health check per shard at a time. One that is not answered is given up after
// ClaimTimeout for a new one, because another server may have taken the shard's place.
type shardState struct {
	Shard
	checked     bool               // Reason is known: setShard has been called
	refusal     error              // nil: all calls are sent; errNotCommitting: only reads; else: none
	cancelCheck context.CancelFunc // ends the running health check; nil: none is running

	suspect       bool               // a write was not answered, and no commit has completed since
	notCommitting bool               // a probe took too long or failed, and no commit has completed since
	probe         *probe             // nil: none is running
	cancelProbe   context.CancelFunc // of the running probe
}

// Shards returns the servers behind the proxy as last checked, ordered by number; none if there is
// no proxy. It sends nothing to the database.
func (s *Store) Shards() []Shard {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	var all []Shard
	for _, st := range s.shards.states {
		if st.checked {
			all = append(all, st.Shard)
		}
	}
	slices.SortFunc(all, func(a, b Shard) int { return a.Number - b.Number })
	return all
}

// watchShards checks the shards until Close. Without a proxy it ends as soon as that is known.
func (s *Store) watchShards() {
	if !s.waitForProxy() {
		return
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), s.shards.poolConfig)
	if err != nil {
		s.log.Error().Err(err).Msg("the pool for health checks of shards cannot be created")
		return
	}
	defer pool.Close() // waits for the health checks and probes, which end with s.closing
	s.shards.mu.Lock()
	s.shards.pool = pool
	s.shards.mu.Unlock()
	slots := make(chan struct{}, maxUnanswered)
	var logged error
	for {
		err := s.checkShards(pool, slots)
		if err != nil && logged == nil && s.closing.Err() == nil {
			s.log.Warn().Err(err).Msg("the map of shards cannot be read from the proxy")
		}
		logged = err
		if !s.waitInterval() {
			return
		}
	}
}

// waitForProxy waits until it is known whether the server is a proxy. It returns false if it is
// not, or if the store is closed.
func (s *Store) waitForProxy() bool {
	for {
		ctx, cancel := context.WithTimeout(s.closing, readyTimeout)
		isProxy, err := s.detectProxy(ctx, s.healthPool)
		cancel()
		if err == nil {
			return isProxy
		}
		if !s.waitInterval() {
			return false
		}
	}
}

// waitInterval waits for the next round of health checks. It returns false if the store is closed.
func (s *Store) waitInterval() bool {
	select {
	case <-s.closing.Done():
		return false
	case <-time.After(healthCheckInterval(s.timeout)):
		return true
	}
}

// checkShards is one round: it reads the proxy's map and starts a health check of each shard that
// has none running. It does not wait for the answers, only for a slot if all are taken.
func (s *Store) checkShards(pool *pgxpool.Pool, slots chan struct{}) error {
	conn, err := pool.Acquire(s.closing)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.closing, unreachableAfter(s.timeout))
	defer cancel()
	var partitions []int
	err = conn.QueryRow(ctx, shardsSQL).Scan(&partitions)
	conn.Release()
	switch {
	case isNotInstalled(sqlState(err)):
		return fmt.Errorf("run coupond migrate --proxy: %w", err)
	case err != nil:
		s.abandonProbes() // the next answer may come from another proxy
		return err
	case !isPartitionMap(partitions):
		return fmt.Errorf("the options of the foreign server coupond must be p0 to p(2^n - 1); the map is %v", partitions)
	}
	s.setPartitionMap(partitions)

	for partition, number := range partitions {
		if partition != number || s.checkRunning(number) {
			continue // each shard is checked once
		}
		select {
		case slots <- struct{}{}:
			s.startCheck(pool, slots, number)
		case <-ctx.Done():
			return nil // maxUnanswered shards are silent
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

// setPartitionMap gives the shards their batchers and resets their states if the map has changed:
// by another map, the same number may mean another server.
func (s *Store) setPartitionMap(partitions []int) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	if slices.Equal(partitions, s.shards.partitions) {
		return
	}
	suspect := false
	for number, st := range s.shards.states {
		suspect = suspect || st.suspect
		if st.cancelCheck != nil {
			st.cancelCheck()
		}
		st.endProbe()
		s.batchers.setRefusal(number, nil)
	}
	s.shards.partitions, s.shards.states = partitions, make(map[int]*shardState)
	for partition, number := range partitions {
		if partition == number {
			s.shards.states[number] = &shardState{Shard: Shard{Number: number}, suspect: suspect}
		}
	}
	s.batchers.setPartitions(partitions)
	s.retryLimit.Store(retryLimit(cap(s.readSlots), s.batchers.groupSize*len(s.shards.states)))
	s.log.Info().Int("partitions", len(partitions)).Int("shards", len(s.shards.states)).Msg("the map of shards was read from the proxy")
}

// checkRunning reports whether a health check of the shard is running.
func (s *Store) checkRunning(number int) bool {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	return s.shards.states[number].cancelCheck != nil
}

// startCheck starts a health check of a shard. It frees the slot when the check has ended.
func (s *Store) startCheck(pool *pgxpool.Pool, slots chan struct{}, number int) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	st := s.shards.states[number]
	ctx, cancel := context.WithCancel(s.closing)
	st.cancelCheck = cancel
	s.shards.goroutines.Go(func() {
		defer func() { <-slots }()
		defer s.endCheck(st)
		defer cancel()
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return // the proxy has failed, not the shard; checkShards reports it
		}
		defer conn.Release()
		s.checkShard(ctx, conn, st)
	})
}

func (s *Store) endCheck(st *shardState) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	st.cancelCheck = nil
}

// checkShard asks a shard for its schema version and for what is wrong with the session that the
// proxy has there, and records the result. Its time starts here: the time for a connection to the
// proxy does not count against the shard.
func (s *Store) checkShard(ctx context.Context, conn *pgxpool.Conn, st *shardState) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var version int32
	var sessionProblem *string // null: none
	ended := make(chan error, 1)
	go func() {
		err := conn.QueryRow(ctx, shardCheckSQL, st.Number).Scan(&version, &sessionProblem)
		if sqlState(err) != "" { // perhaps PL/Proxy used a connection that a restart of the shard had broken
			s.abandonProbe(st)
			err = conn.QueryRow(ctx, shardCheckSQL, st.Number).Scan(&version, &sessionProblem)
		}
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-time.After(unreachableAfter(s.timeout)):
		s.recordNoAnswer(st)
		err = <-ended
	}
	s.recordCheck(st, version, sessionProblem, err)
}

// recordCheck records how the health check of a shard ended.
func (s *Store) recordCheck(st *shardState, version int32, sessionProblem *string, err error) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	pgErr, fromServer := errors.AsType[*pgconn.PgError](err)
	switch {
	case err != nil:
		s.abandonProbeLocked(st)
	case st.suspect:
		s.startShardProbe(st) // before its claims are accepted
	}
	switch {
	case err == nil && st.notCommitting:
		s.setShard(st, "it "+notCommittingReason, errNotCommitting)
	case err == nil && version < s.schemaVersion:
		s.setShard(st, fmt.Sprintf("its schema has version %d, and this program needs %d: run coupond migrate there", version, s.schemaVersion), nil)
	case err == nil && sessionProblem != nil:
		s.setShard(st, "the proxy's session there cannot be used: "+oneLine(*sessionProblem), nil)
	case err == nil:
		s.setShard(st, "", nil)
	case isNotInstalled(sqlState(err)):
		s.setShard(st, "its functions or the proxy's are not those of this program: run coupond migrate there, and coupond migrate --proxy", err)
	case fromServer && pgErr.SeverityUnlocalized == "ERROR":
		s.setShard(st, "the proxy gets no answer from it", err)
	}
	// Any other error, also a FATAL, comes from the proxy or its connection. If the check was given
	// up, recordNoAnswer has recorded it already.
}

// recordNoAnswer records that a shard has not answered its health check for unreachableAfter.
func (s *Store) recordNoAnswer(st *shardState) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	s.setShard(st, "it does not answer", context.DeadlineExceeded)
}

// abandonProbes ends all probes.
func (s *Store) abandonProbes() {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	for _, st := range s.shards.states {
		s.abandonProbeLocked(st)
	}
}

// abandonProbe ends the probe of a shard, if one is running: the server that it was sent to may be
// gone. The shard then counts as notCommitting.
func (s *Store) abandonProbe(st *shardState) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	s.abandonProbeLocked(st)
}

// abandonProbeLocked is abandonProbe for a caller that holds s.shards.mu.
func (s *Store) abandonProbeLocked(st *shardState) {
	if st.probe != nil {
		s.setNotCommitting(st)
		st.endProbe()
	}
}

// endProbe cancels the probe, if one is running, and releases the calls that wait for it. The
// caller holds s.shards.mu.
func (st *shardState) endProbe() {
	if st.probe != nil {
		st.cancelProbe()
		close(st.probe.ended)
		st.probe, st.cancelProbe = nil, nil
	}
}

// setNotCommitting marks a shard as notCommitting. The caller holds s.shards.mu.
func (s *Store) setNotCommitting(st *shardState) {
	st.notCommitting = true
	if st.refusal == nil {
		s.setShard(st, "it "+notCommittingReason, errNotCommitting)
	}
}

// stateOf returns the state of the coupon's shard; nil: it is not known. The caller holds ss.mu.
func (ss *shardSet) stateOf(coupon string) *shardState {
	if ss.partitions == nil {
		return nil
	}
	partition := hashText(coupon) & uint32(len(ss.partitions)-1)
	return ss.states[ss.partitions[partition]]
}

// runningProbe returns the running probe of the coupon's shard; nil: none is running.
func (ss *shardSet) runningProbe(coupon string) *probe {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if st := ss.stateOf(coupon); st != nil {
		return st.probe
	}
	return nil
}

// markShardSuspect is markSuspect for the coupon's shard. It returns false if the shard is not
// known. A shard that is refused already is probed when it answers a health check.
func (s *Store) markShardSuspect(coupon string) bool {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	st := s.shards.stateOf(coupon)
	if st == nil {
		return false
	}
	st.suspect = true
	if st.refusal == nil {
		s.startShardProbe(st)
	}
	return true
}

// startShardProbe starts a probe of a shard, unless one is running. The caller holds s.shards.mu.
func (s *Store) startShardProbe(st *shardState) {
	if st.probe != nil || s.shards.states[st.Number] != st || s.closing.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.closing)
	p := &probe{began: time.Now(), ended: make(chan struct{})}
	st.probe, st.cancelProbe = p, cancel
	s.shards.goroutines.Go(func() {
		defer cancel()
		s.recordProbe(st, p, s.runShardProbe(ctx, st, p))
	})
}

// runShardProbe commits something on a shard that has no effect. It waits for the commit until ctx
// ends, and marks the shard as notCommitting when that takes longer than unreachableAfter.
func (s *Store) runShardProbe(ctx context.Context, st *shardState, p *probe) error {
	conn, err := s.shards.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	late := time.AfterFunc(unreachableAfter(s.timeout), func() {
		s.shards.mu.Lock()
		defer s.shards.mu.Unlock()
		if st.probe == p {
			s.setNotCommitting(st)
		}
	})
	defer late.Stop()
	return execCommit(ctx, conn, shardCommitSQL, st.Number)
}

// recordProbe records the result of a shard's probe, unless it was abandoned. A probe that failed
// is repeated when the shard has answered a health check.
func (s *Store) recordProbe(st *shardState, p *probe, err error) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	if st.probe != p {
		return
	}
	missing := isNotInstalled(sqlState(err))
	switch {
	case missing:
		s.failures.Warn().Err(err).Msg("shards cannot be probed for commits: run coupond migrate --proxy")
	case err != nil:
		s.failures.Warn().Err(err).Int("shard", st.Number).Msg("a probe of the shard failed; it will be repeated")
	}
	if err == nil || missing {
		st.suspect, st.notCommitting = false, false
		if errors.Is(st.refusal, errNotCommitting) {
			s.setShard(st, "", nil)
		}
	} else {
		s.setNotCommitting(st)
	}
	st.endProbe()
}

// setShard records the reason why a shard is not healthy ("": it is), sets which calls are refused
// (see shardState.refusal) and logs a change of the reason. The caller holds s.shards.mu.
func (s *Store) setShard(st *shardState, reason string, refusal error) {
	if s.shards.states[st.Number] != st {
		return // st belongs to an old map
	}
	before := st.Reason
	st.checked, st.Reason, st.refusal = true, reason, refusal
	var answer error // of the refused calls
	switch {
	case errors.Is(refusal, errNotCommitting):
		answer = fmt.Errorf("%w: shard %d: %w", ErrUnavailable, st.Number, errNotCommitting)
	case refusal != nil:
		answer = fmt.Errorf("%w: shard %d: %s", ErrUnavailable, st.Number, reason)
	}
	s.batchers.setRefusal(st.Number, answer)
	switch reason {
	case before:
	case "":
		s.log.Info().Int("shard", st.Number).Msg("the shard is healthy again")
	default:
		s.log.Warn().Err(refusal).Int("shard", st.Number).Str("reason", reason).Bool("refused", answer != nil).Msg("the shard is not healthy")
	}
}
