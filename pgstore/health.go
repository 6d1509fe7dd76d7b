package pgstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgxpool"
)

// readySQL checks the schema version, the role, whether the server is read-only, and whether all
// functions that we call are there. The role, because a pooler may drop the parameter that sets it,
// and the session would have the privileges of the login. The functions, because a newer schema may
// have dropped one.
const readySQL = `
select
  public.coupon_schema_version(),
  current_user = '` + serviceRole + `',
  pg_catalog.current_setting('transaction_read_only') = 'on',
  not exists (
    select from pg_catalog.unnest(array[
      'public.claim_coupons(text[], text)',
      'public.claim_batch(text[], text[], integer[])',
      'public.create_coupon(text, bigint)',
      'public.get_coupon(text)',
      'public.coupon_claimers(text, integer, integer)'
    ]) as f (signature)
    where pg_catalog.has_function_privilege(pg_catalog.to_regprocedure(f.signature), 'execute') is not true
  )`

// readyTimeout bounds Ready. A health check usually waits for 2 s; Ready returns before that, with
// the reason.
const readyTimeout = 1500 * time.Millisecond

// notReadyError is why claims cannot be made.
type notReadyError struct {
	reason string // one sentence without secrets, which may be shown to clients
	cause  error  // for the log; may be nil
}

func (e *notReadyError) Error() string { return e.reason }
func (e *notReadyError) Unwrap() error { return e.cause }

// readiness is the result of the last Ready.
type readiness struct {
	mu      sync.Mutex
	checked bool
	reason  string // "": ready

	schemaVersion atomic.Int32 // of the database, as last seen; 0: not seen yet
}

// Ready returns nil if claims can be made: the database answers, commits complete, the role is
// right and the schema is not too old. Otherwise its error is one sentence without secrets: what is
// wrong and, where it helps, what to do. Ready returns when ctx ends, and after 1.5 s at the
// latest. It uses a connection of its own, so that it does not wait for claims (with MaxConns 1 it
// shares theirs).
func (s *Store) Ready(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()

	notReady := s.checkReady(bounded)
	// If the caller gave up (a health check with a short time-out), the result says nothing about the
	// database.
	if notReady == nil || ctx.Err() == nil {
		s.recordReadiness(ctx, notReady)
	}
	if notReady == nil {
		return nil
	}
	return notReady
}

func (s *Store) checkReady(ctx context.Context) *notReadyError {
	if p := s.probeIfSuspect(); p != nil {
		return p.wait(ctx)
	}
	conn, err := s.healthPool.Acquire(ctx)
	if err != nil {
		return &notReadyError{explainConnectError(err), err}
	}
	defer conn.Release()
	return s.checkByReading(ctx, conn)
}

// checkByReading returns why claims cannot be made, as far as a read can find out.
func (s *Store) checkByReading(ctx context.Context, conn *pgxpool.Conn) *notReadyError {
	var version *int32 // null: the schema has no version yet
	var inRole, readOnly, complete bool
	err := conn.QueryRow(ctx, readySQL).Scan(&version, &inRole, &readOnly, &complete)
	if version != nil {
		s.readiness.schemaVersion.Store(*version)
	}
	switch {
	case err != nil && !isNotInstalled(sqlState(err)):
		return &notReadyError{"the database does not answer", err}
	case err != nil || version == nil:
		return &notReadyError{"the database does not have the coupon schema: run coupond migrate", err}
	case !inRole:
		_ = conn.Conn().Close(ctx) // the next one may have the role
		return &notReadyError{reason: "the database session has the privileges of the login, not as " + serviceRole +
			": a pooler drops the parameter role; alter role <login> set role = " + serviceRole}
	case readOnly:
		_ = conn.Conn().Close(ctx) // the next one may be to another host, which is not read-only
		return &notReadyError{reason: "the database is read-only: it is a standby, or configured as read-only"}
	case *version < s.schemaVersion:
		return &notReadyError{reason: fmt.Sprintf(
			"the database's schema has version %d, and this program needs %d: run coupond migrate", *version, s.schemaVersion)}
	case !complete && *version > s.schemaVersion:
		return &notReadyError{reason: fmt.Sprintf(
			"the database's schema has version %d and lacks functions that this program, made for version %d, calls: run a newer program",
			*version, s.schemaVersion)}
	case !complete:
		return &notReadyError{reason: "the database lacks functions of the coupon schema: run coupond migrate"}
	}
	return nil
}

// explainConnectError returns the reason why a session could not be started.
func explainConnectError(err error) string {
	switch sqlState(err) {
	case pgerrcode.InvalidParameterValue:
		return "the database has no role " + serviceRole + ": run coupond migrate"
	case pgerrcode.InsufficientPrivilege:
		return "the database refuses the login, or does not let it become " + serviceRole +
			": run coupond migrate, or grant " + serviceRole + " to the login"
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		return "the database refuses the login: check the user and the password"
	case pgerrcode.InvalidCatalogName:
		return "the database server has no database of that name"
	case pgerrcode.TooManyConnections:
		return "the database has no connection left"
	case pgerrcode.CannotConnectNow:
		return "the database is starting up or shutting down"
	}
	return "the database does not answer"
}

// recordReadiness stores the result of Ready and logs it if it has changed.
func (s *Store) recordReadiness(ctx context.Context, notReady *notReadyError) {
	reason := ""
	if notReady != nil {
		reason = notReady.reason
	}
	s.readiness.mu.Lock()
	changed := !s.readiness.checked || s.readiness.reason != reason
	s.readiness.checked, s.readiness.reason = true, reason
	s.readiness.mu.Unlock()
	switch {
	case !changed:
	case notReady == nil:
		s.log.Info().Func(withRequestID(ctx)).Msg("the database is ready")
	default:
		s.log.Warn().Err(notReady.cause).Func(withRequestID(ctx)).Str("reason", reason).Msg("the database is not ready")
	}
}
