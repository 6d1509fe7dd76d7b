package pgstore

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// readySQL checks what Ready can find out by reading.
//
//go:embed ready.sql
var readySQL string

// readyTimeout bounds Ready. A health check usually waits for 2 s; Ready returns before that, with
// the reason.
const readyTimeout = 1500 * time.Millisecond

// recentResult is how long the result of a check is returned to other callers of Ready, so that
// their number does not matter.
const recentResult = 100 * time.Millisecond

// notReadyError is why claims cannot be made.
type notReadyError struct {
	reason string // one sentence without secrets, which may be shown to clients
	cause  error  // for the log; may be nil
}

func (e *notReadyError) Error() string { return e.reason }
func (e *notReadyError) Unwrap() error { return e.cause }

// readiness is the newest check that has ended, and the running one.
type readiness struct {
	mu            sync.Mutex
	last, running *readyCheck // nil: none

	schemaVersion atomic.Int32 // of the database, as last seen; 0: not seen yet
}

// readyCheck is a check that several callers of Ready wait for. Its fields are set when done is
// closed.
type readyCheck struct {
	done   chan struct{}
	ended  time.Time
	result *notReadyError // nil: ready
}

// Ready returns nil if claims can be made: the database answers, commits complete, the role is
// right and the schema is not too old. Otherwise its error is one sentence without secrets: what
// is wrong and, where it helps, what to do. shards is the state of each server behind a proxy,
// which may not be healthy although err is nil; none without a proxy.
//
// Ready returns when ctx ends, and after 1.5 s at the latest. Concurrent callers get the result of
// one check. It uses a connection of its own, so that it does not wait for claims (with MaxConns 1
// it shares theirs).
func (s *Store) Ready(ctx context.Context) (shards []Shard, err error) {
	check := s.currentCheck(ctx)
	select {
	case <-check.done:
		if check.result != nil {
			err = check.result
		}
	case <-ctx.Done():
		err = &notReadyError{"the database" + silentReason, context.Cause(ctx)}
	}
	return s.proxy.states(), err
}

// currentCheck returns a check that has ended not long ago, or the running one, or a new one.
func (s *Store) currentCheck(ctx context.Context) *readyCheck {
	r := &s.readiness
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running != nil {
		return r.running
	}
	if r.last != nil && time.Since(r.last.ended) < recentResult {
		return r.last
	}
	check := &readyCheck{done: make(chan struct{})}
	id := requestID(ctx)
	if s.background.start(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		check.result = s.checkReady(ctx)
		s.recordReadiness(id, check)
	}) {
		r.running = check
	} else {
		check.result = &notReadyError{reason: "the service is stopping"}
		close(check.done)
	}
	return check
}

// recordReadiness ends a check, and logs its result if it has changed. id is that of the request
// that has started the check.
func (s *Store) recordReadiness(id string, check *readyCheck) {
	r := &s.readiness
	r.mu.Lock()
	before := "not checked yet"
	if r.last != nil {
		before = r.last.reason()
	}
	check.ended = time.Now()
	r.last, r.running = check, nil
	r.mu.Unlock()
	switch {
	case check.reason() == before:
	case check.result == nil:
		s.log.Info().Func(withID(id)).Msg("the database is ready")
	default:
		s.log.Warn().Err(check.result.cause).Func(withID(id)).Str("reason", check.reason()).Msg("the database is not ready")
	}
	close(check.done)
}

func (c *readyCheck) reason() string {
	if c.result == nil {
		return ""
	}
	return c.result.reason
}

// checkReady returns why claims cannot be made; nil: they can.
func (s *Store) checkReady(ctx context.Context) *notReadyError {
	// Behind a proxy, this server stands for all until the map is known. The shards are not asked.
	srv := s.serverOf("")
	single := len(s.proxy.all()) == 0
	if single {
		if _, reason := srv.settled(ctx, true); reason != "" {
			return &notReadyError{reason: reason}
		}
	}
	var notReady *notReadyError
	for range 2 { // the first connection may have been closed while it was idle
		conn, err := s.healthPool.Acquire(ctx)
		if err != nil {
			return &notReadyError{ConnectProblem(err), err}
		}
		notReady = s.checkByReading(ctx, conn)
		if notReady == nil && single {
			notReady = srv.tryClaim(ctx, conn)
		}
		broken := conn.Conn().IsClosed()
		conn.Release()
		if notReady == nil || !broken || ctx.Err() != nil || notReady.cause == nil {
			break
		}
	}
	return notReady
}

// trialSQL creates a coupon and claims it. It is rolled back.
const trialSQL = `select coupond.create_coupon($1, 1), coupond.claim_coupon($2, $1)`

// tryClaim makes a claim and rolls it back, if a write has failed with an error that other writes
// may meet too (a full disk, a missing privilege) and no trial has succeeded since.
func (s *server) tryClaim(ctx context.Context, conn *pgxpool.Conn) *notReadyError {
	if serverConnOf(conn.Conn()).kind == kindProxy || !s.defective.Swap(false) {
		return nil // nothing can be rolled back on a shard
	}
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
	s.defective.Store(true)
	return &notReadyError{"claims cannot be made: " + callProblem(err), err}
}

// checkByReading returns why claims cannot be made, as far as a read can find out.
func (s *Store) checkByReading(ctx context.Context, conn *pgxpool.Conn) *notReadyError {
	var version *int32 // null: the schema has no version yet
	var inRole, complete bool
	var sessionProblem, missingPrivilege *string // null: none
	err := conn.QueryRow(ctx, readySQL).Scan(&version, &inRole, &sessionProblem, &complete, &missingPrivilege)
	if version != nil {
		s.readiness.schemaVersion.Store(*version)
	}
	switch {
	case sqlState(err) == pgerrcode.InsufficientPrivilege:
		return &notReadyError{callProblem(err) + "; run coupond migrate", err}
	case err != nil && !isNotInstalled(sqlState(err)):
		return &notReadyError{callProblem(err), err}
	case err != nil || version == nil:
		return &notReadyError{"the database does not have the coupon schema: run coupond migrate", err}
	case !inRole:
		_ = conn.Conn().Close(ctx) // the next one may have the role
		return &notReadyError{reason: "the database session has the privileges of the login, not those of " + serviceRole +
			": a pooler drops the parameter role; alter role <login> set role = " + serviceRole}
	case sessionProblem != nil:
		_ = conn.Conn().Close(ctx) // the next one may have other settings, or be to another host
		return &notReadyError{reason: "the database session cannot be used: " + oneLine(*sessionProblem)}
	case *version < s.schemaVersion:
		return &notReadyError{reason: fmt.Sprintf(
			"the database's schema has version %d, and this program needs %d: run coupond migrate", *version, s.schemaVersion)}
	case !complete && *version > s.schemaVersion:
		return &notReadyError{reason: fmt.Sprintf(
			"the database's schema has version %d and lacks functions that this program, made for version %d, calls: run a newer program",
			*version, s.schemaVersion)}
	case !complete:
		return &notReadyError{reason: "the database lacks functions of the coupon schema: run coupond migrate"}
	case missingPrivilege != nil:
		return &notReadyError{reason: "the database cannot execute the functions of the coupon schema: " + oneLine(*missingPrivilege) +
			"; run coupond migrate"}
	}
	return nil
}

// callProblem returns why a call of Ready or of a probe failed.
func callProblem(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return "the database answers with an error: " + serverReason(pgErr)
	}
	return "the database" + silentReason
}
