package pgstore

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/singleflight"
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

// readiness is what Ready knows of its checks.
type readiness struct {
	checks        singleflight.Group
	last          atomic.Pointer[readyCheck] // the newest check that has ended; nil: none
	schemaVersion atomic.Int32               // of the database, as last seen; 0: not seen yet
}

// readyCheck is a check that has ended.
type readyCheck struct {
	ended  time.Time
	result error // nil: ready
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
	last := s.readiness.last.Load()
	if last != nil && time.Since(last.ended) < recentResult {
		return s.proxy.states(), last.result
	}
	id := requestID(ctx)
	check := s.readiness.checks.DoChan("", func() (any, error) { return nil, s.check(id) })
	select {
	case ended := <-check:
		err = ended.Err
	case <-ctx.Done():
		err = &notReadyError{"the database" + silentReason, context.Cause(ctx)}
	}
	return s.proxy.states(), err
}

// check returns why claims cannot be made, and logs it if it has changed. It does not end with the
// request that has started it, whose id is given, because other callers wait for it as well.
func (s *Store) check(id string) (result error) {
	ended := make(chan struct{})
	if !s.background.start(func(ctx context.Context) {
		defer close(ended)
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		result = s.checkReady(ctx)
		before := s.readiness.last.Swap(&readyCheck{time.Now(), result})
		switch {
		case before != nil && fmt.Sprint(before.result) == fmt.Sprint(result):
		case result == nil:
			s.log.Info().Func(withID(id)).Msg("the database is ready")
		default:
			s.log.Warn().Err(errors.Unwrap(result)).Func(withID(id)).Str("reason", result.Error()).Msg("the database is not ready")
		}
	}) {
		return &notReadyError{reason: "the service is stopping"}
	}
	<-ended
	return result
}

// checkReady returns why claims cannot be made; nil: they can.
func (s *Store) checkReady(ctx context.Context) error {
	// Behind a proxy, this server stands for all until the map is known. The shards are not asked.
	srv := s.serverOf("")
	single := len(s.proxy.all()) == 0
	if single {
		if _, reason := srv.settled(ctx, true); reason != "" {
			return &notReadyError{reason: reason}
		}
	}
	var notReady error
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
		if notReady == nil || !broken || ctx.Err() != nil || errors.Unwrap(notReady) == nil {
			break
		}
	}
	return notReady
}

// trialSQL creates a coupon and claims it. It is rolled back.
const trialSQL = `select coupond.create_coupon($1, 1), coupond.claim_coupon($2, $1)`

// tryClaim makes a claim and rolls it back, if a write has failed with an error that other writes
// may meet too (a full disk, a missing privilege) and no trial has succeeded since.
func (s *server) tryClaim(ctx context.Context, conn *pgxpool.Conn) error {
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
func (s *Store) checkByReading(ctx context.Context, conn *pgxpool.Conn) error {
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
