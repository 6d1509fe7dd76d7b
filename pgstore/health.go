package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// readySQL also looks for the functions that we call: a newer schema may have dropped
// one, and then its version alone would let us call ourselves ready. And it looks for
// whom we work as: a pooler in between may have swallowed the parameter that says so,
// and then we would have the rights of our login.
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

// readyTimeout bounds Ready, so that it can still say what it waited for to a
// caller who wants his answer within 2 s.
const readyTimeout = 1500 * time.Millisecond

// notReadyError is why claims cannot be made: one sentence for everybody, and the cause
// for the log.
type notReadyError struct {
	sentence string
	cause    error
}

func (e *notReadyError) Error() string { return e.sentence }
func (e *notReadyError) Unwrap() error { return e.cause }

// readiness is what Ready found last, so that the log tells changes only.
type readiness struct {
	mu    sync.Mutex
	asked bool
	why   string // "": ready

	version atomic.Int32 // of the schema, as last seen; 0: not yet
}

// Ready returns nil when claims can be made: the database answers the service's
// role, and its schema is not too old. Else its error is one sentence that may be
// shown to anybody: it says what is wrong and, where it helps, what to do. Ready
// waits for ctx, but not longer than 1.5 s, and has a connection of its own, so that
// it is not kept waiting by a crowd (with MaxConns 1 there is none to spare).
func (s *Store) Ready(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()

	why := s.whyNotReady(bounded)
	// Who asks and does not wait for the answer (a health probe that is cut off) has
	// found nothing out about the database.
	if why == nil || ctx.Err() == nil {
		s.logReadiness(ctx, why)
	}
	if why == nil {
		return nil
	}
	return why
}

func (s *Store) whyNotReady(ctx context.Context) *notReadyError {
	if i := s.inquire(); i != nil {
		return i.await(ctx)
	}
	conn, err := s.watch.Acquire(ctx)
	if err != nil {
		return &notReadyError{whyNoConnection(err), err}
	}
	defer conn.Release()
	return s.whyNotReadable(ctx, conn)
}

// whyNotReadable is why claims cannot be made as far as reading tells.
func (s *Store) whyNotReadable(ctx context.Context, conn *pgxpool.Conn) *notReadyError {
	var version *int32 // null while there is no version yet
	var inRole, readOnly, complete bool
	err := conn.QueryRow(ctx, readySQL).Scan(&version, &inRole, &readOnly, &complete)
	if version != nil {
		s.state.version.Store(*version)
	}
	switch {
	case err != nil && !isNotInstalled(sqlState(err)):
		return &notReadyError{"the database does not answer", err}
	case err != nil || version == nil:
		return &notReadyError{"the database does not have the coupon schema: run coupond migrate", err}
	case !inRole:
		_ = conn.Conn().Close(ctx) // the next one may be right
		return &notReadyError{sentence: "the database lets us work with the rights of our login, not as " + serviceRole +
			": a pooler in between drops the parameter role; alter role <login> set role = " + serviceRole}
	case readOnly:
		_ = conn.Conn().Close(ctx) // the next one may be to another host, which is not
		return &notReadyError{sentence: "the database is read-only: it is a standby, or was set so"}
	case *version < s.schemaVersion:
		return &notReadyError{sentence: fmt.Sprintf(
			"the database's schema has version %d, and this program needs %d: run coupond migrate", *version, s.schemaVersion)}
	case !complete && *version > s.schemaVersion:
		return &notReadyError{sentence: fmt.Sprintf(
			"the database's schema has version %d and lacks functions that this program, made for version %d, calls: run a newer program",
			*version, s.schemaVersion)}
	case !complete:
		return &notReadyError{sentence: "the database lacks functions of the coupon schema: run coupond migrate"}
	}
	return nil
}

// whyNoConnection tells the reasons apart for which PostgreSQL refuses a session.
func whyNoConnection(err error) string {
	switch sqlState(err) {
	case pgerrcode.InvalidParameterValue:
		return "the database has no role " + serviceRole + ": run coupond migrate"
	case pgerrcode.InsufficientPrivilege:
		return "the database does not let its login in, or not become " + serviceRole +
			": run coupond migrate, or grant " + serviceRole + " to the login"
	case pgerrcode.InvalidPassword, pgerrcode.InvalidAuthorizationSpecification:
		return "the database refuses the login: check the user and the password"
	case pgerrcode.InvalidCatalogName:
		return "the database server has no database of that name"
	case pgerrcode.TooManyConnections:
		return "the database has no connection left for us"
	case pgerrcode.CannotConnectNow:
		return "the database is starting up or shutting down"
	}
	return "the database does not answer"
}

// sqlState is the SQLSTATE of an error of PostgreSQL, "" for any other.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

func (s *Store) logReadiness(ctx context.Context, why *notReadyError) {
	sentence := ""
	if why != nil {
		sentence = why.sentence
	}
	s.state.mu.Lock()
	changed := !s.state.asked || s.state.why != sentence
	s.state.asked, s.state.why = true, sentence
	s.state.mu.Unlock()
	switch {
	case !changed:
	case why == nil:
		s.log.Info().Func(withRequestID(ctx)).Msg("the database is ready")
	default:
		s.log.Warn().Err(why.cause).Func(withRequestID(ctx)).Str("why", why.sentence).Msg("the database is not ready")
	}
}
