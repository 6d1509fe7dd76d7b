package pgstore

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// probeSQL commits a record of the write-ahead log that has no effect.
const probeSQL = `select pg_catalog.pg_logical_emit_message(true, 'coupond', '')`

// trialSQL creates a coupon and claims it. It is rolled back.
const trialSQL = `select coupond.create_coupon($1, 1), coupond.claim_coupon($2, $1)`

// prober finds out whether the server completes commits, and whether claims can be made. Behind a
// proxy each shard has its own state and probe instead (shards.go).
//
// A server that has lost its synchronous standbys, or that waits for its disk, still answers reads,
// but its commits hang. So a server that does not answer a writing call in time is suspect, and a
// probe commits something that has no effect. Until that commit returns, Ready returns an error,
// and writing calls wait for the probe or are not sent. While the server is not suspect, all of
// this costs a check per call.
//
// A server may also answer a writing call with an error that does not depend on what it asks for: a
// full disk, a missing privilege. Then the server is suspect too, and the probe makes a trial: a
// claim that is rolled back.
//
// PostgreSQL does not notice that a client has disconnected while its commit waits for a
// synchronous standby: each call that is given up leaves a session behind. Without a bound these
// sessions would use up max_connections. So there is one probe at a time, which waits as long as
// its commit does, and the sessions left behind are those of the calls in flight when the server
// became suspect: at most one per connection of the pool.
type prober struct {
	mu      sync.Mutex
	suspect bool   // a write was not answered, and no commit has completed since
	trial   bool   // a write failed with an error that others may meet too, and no trial has succeeded since
	probe   *probe // nil: none is running

	closing context.Context
	close   context.CancelFunc
}

// probe is one check whether a server completes commits.
type probe struct {
	began time.Time
	ended chan struct{} // closed when it has ended

	// Only for a single server:
	trial      bool           // it makes a trial
	committing atomic.Bool    // the server answers, and the commit was sent
	result     *notReadyError // nil: the commit completed; set before ended is closed
}

// errNotCommitting: a writing call was not sent because the server does not complete commits.
var errNotCommitting = errors.New("not sent: the server does not complete commits")

// markSuspect notes that a writing call for coupon was not answered in time, or that its commit did
// not wait for the standby, and starts a probe: of the coupon's shard behind a proxy, else of the
// server.
func (s *Store) markSuspect(coupon string) {
	if s.markShardSuspect(coupon) {
		return
	}
	s.prober.mu.Lock()
	s.prober.suspect = true
	s.prober.mu.Unlock()
	s.probeIfSuspect()
}

// markDefective notes that PostgreSQL answered a writing call with an error that others may meet
// too, and starts a probe that makes a trial. Behind a proxy nothing can be rolled back on a shard.
func (s *Store) markDefective() {
	if s.kind.isProxy() {
		return
	}
	s.prober.mu.Lock()
	s.prober.suspect, s.prober.trial = true, true
	s.prober.mu.Unlock()
	s.probeIfSuspect()
}

// probeIfSuspect returns the running probe, and starts one if the server is suspect. nil: the
// server is not suspect.
func (s *Store) probeIfSuspect() *probe {
	pr := &s.prober
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if pr.probe != nil || !pr.suspect {
		return pr.probe
	}
	p := &probe{began: time.Now(), ended: make(chan struct{}), trial: pr.trial}
	pr.probe = p
	go func() {
		result := s.runProbe(p)
		pr.mu.Lock()
		// What was noted meanwhile needs another probe only if this one made no trial.
		pr.trial = pr.trial && (result != nil || !p.trial)
		pr.probe, pr.suspect, p.result = nil, result != nil || pr.trial, result
		pr.mu.Unlock()
		close(p.ended)
	}()
	return p
}

// notCommittingReason is the predicate of a sentence about the database or a shard.
const notCommittingReason = "answers, but its commits do not complete: it waits for a synchronous standby or for its disk"

// runProbe returns nil if a commit completed on the server, and the trial, if one is made,
// succeeded. A server that does not answer reads is given up after readyTimeout, because another
// one may take its place. The commit is waited for until the store is closed.
func (s *Store) runProbe(p *probe) *notReadyError {
	ctx, cancel := context.WithTimeout(s.prober.closing, readyTimeout)
	defer cancel()
	conn, err := s.healthPool.Acquire(ctx)
	if err != nil {
		return &notReadyError{ConnectProblem(err), err}
	}
	defer conn.Release()
	if notReady := s.checkByReading(ctx, conn); notReady != nil {
		return notReady
	}
	p.committing.Store(true)
	err = execCommit(s.prober.closing, conn, probeSQL)
	p.committing.Store(false)
	switch {
	case sqlState(err) != "":
		return &notReadyError{callProblem(err), err}
	case err != nil:
		return &notReadyError{"the database " + notCommittingReason, err}
	case p.trial:
		return s.tryClaim(conn)
	}
	return nil
}

// tryClaim makes a claim and rolls it back. It returns why that failed.
func (s *Store) tryClaim(conn *pgxpool.Conn) *notReadyError {
	ctx, cancel := context.WithTimeout(s.prober.closing, readyTimeout)
	defer cancel()
	// Long names, so that it does not fit where other claims do not.
	name := rand.Text()
	name = strings.Repeat(name, 10)[:255]
	tx, err := conn.Begin(ctx)
	if err == nil {
		_, err = tx.Exec(ctx, trialSQL, name, name)
		_ = tx.Rollback(ctx) // a connection that fails here is closed
	}
	if err == nil || sqlState(err) == notOwner { // a shard without its proxy
		return nil
	}
	return &notReadyError{"claims cannot be made: " + callProblem(err), err}
}

// execCommit executes SQL that commits. It returns errNotReplicated if the commit did not wait for
// the synchronous standby.
func execCommit(ctx context.Context, conn *pgxpool.Conn, sql string, args ...any) error {
	sc := beginCall(conn.Conn())
	_, err := conn.Exec(ctx, sql, args...)
	if err == nil && sc.ambiguous {
		err = errNotReplicated
	}
	return err
}

// wait returns the probe's result, or an error that says how far it is when ctx ends.
func (p *probe) wait(ctx context.Context) *notReadyError {
	select {
	case <-p.ended:
		return p.result
	case <-ctx.Done():
	}
	if p.committing.Load() {
		return &notReadyError{"the database " + notCommittingReason, context.Cause(ctx)}
	}
	return &notReadyError{"the database does not answer", context.Cause(ctx)}
}

// waitForWrite returns true when the probe has ended, and false if ctx ends first or the probe has
// been running for readyTimeout.
func (p *probe) waitForWrite(ctx context.Context) bool {
	bounded, cancel := context.WithDeadline(ctx, p.began.Add(readyTimeout))
	defer cancel()
	select {
	case <-p.ended:
		return true
	case <-bounded.Done():
		return false
	}
}

// attemptWrite is attempt for a call that commits. While a probe of the coupon's server is running
// it waits; if the probe takes too long, the call is not sent. If the call is not answered in time,
// or meets a sign that commits hang, attemptWrite marks the server suspect.
func (s *Store) attemptWrite(ctx context.Context, coupon string, waitForServer bool, call callFunc) *failedAttempt {
	if err := s.ensureKindKnown(ctx); err != nil { // sessions on a proxy have other parameters (setProxyParams)
		return notSent(err)
	}
	for {
		if err := s.batchers.refusal(coupon); err != nil {
			return notSent(err)
		}
		if p := s.runningProbe(coupon); p != nil && !p.waitForWrite(ctx) {
			return notSent(errNotCommitting)
		}
		failed := s.attempt(ctx, coupon, waitForServer, func(ctx context.Context, conn *pgx.Conn) error {
			// A probe may have started while we waited for the connection, which a call that was given up
			// may have returned to the pool.
			if s.runningProbe(coupon) != nil || s.batchers.refusal(coupon) != nil {
				return errNotCommitting
			}
			err := call(ctx, conn)
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				s.markSuspect(coupon) // before the connection is released and another call uses its place
			}
			return err
		})
		switch {
		case failed == nil:
			return nil
		case errors.Is(failed.err, errNotCommitting):
			continue
		// While the commit of another instance's claim hangs, the coupon stays locked.
		case sqlState(failed.err) == pgerrcode.LockNotAvailable, errors.Is(failed.err, errNotReplicated):
			s.markSuspect(coupon)
		case failed.defective:
			s.markDefective()
		}
		return failed
	}
}

// runningProbe returns the running probe of the server that has the coupon; nil: none is running.
func (s *Store) runningProbe(coupon string) *probe {
	if p := s.shards.runningProbe(coupon); p != nil {
		return p
	}
	return s.prober.running()
}

func (pr *prober) running() *probe {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.probe
}
