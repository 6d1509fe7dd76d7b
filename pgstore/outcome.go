package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// failedAttempt is a call to PostgreSQL that was not answered, or was answered with an error. This
// file decides what an error proves; conn.go recognises the one warning that makes an answer
// ambiguous. Both look at types and SQLSTATEs, never at texts (ADR 0014).
type failedAttempt struct {
	err error

	// notCommitted: nothing of the call was committed, nor will be. Otherwise it is ambiguous.
	notCommitted bool
	// rejected: PostgreSQL rejected the call for what it is, and would do so again. That is an
	// internal error, not an outage.
	rejected bool
	// lockTimeout: PostgreSQL gave up waiting for a lock.
	lockTimeout bool
	// refused: admit did not let the call be sent.
	refused bool
	// defective: PostgreSQL answered with an error that other calls of the same kind may meet too
	// (a full disk, a missing privilege), so Ready must find out.
	defective bool
}

// ambiguous reports whether the call may have been committed, or may still be.
func (f *failedAttempt) ambiguous() bool { return !f.notCommitted }

// notSent returns the failedAttempt of a call that was not sent: no connection could be made, or
// the server is known to be unreachable or not to commit.
func notSent(err error) *failedAttempt {
	_, refused := errors.AsType[refusedError](err)
	return &failedAttempt{err: err, notCommitted: true, refused: refused}
}

// classify decides what an error of a call proves. executed: the call got beyond preparing its
// statement. mayBeProxy: an error of a proxy does not prove what its shards have committed.
func classify(err error, executed, mayBeProxy bool) *failedAttempt {
	f := &failedAttempt{
		err:          err,
		notCommitted: !executed || pgconn.SafeToRetry(err), // SafeToRetry: nothing was written to the connection
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		f.notCommitted = f.notCommitted || provesRollback(pgErr) && !mayBeProxy
		// A proxy splits a call for many coupons by shard: another shard may have committed its
		// part.
		if _, manyCoupons := errors.AsType[manyCouponsError](err); pgErr.Code == notOwner {
			f.notCommitted = f.notCommitted || !manyCoupons || !mayBeProxy
		}
		f.lockTimeout = pgErr.Code == pgerrcode.LockNotAvailable
		f.rejected = rejectsCall(pgErr.Code)
		f.defective = isStatementError(pgErr) && !isContention(pgErr.Code) && pgErr.Code != notOwner
	}
	if _, ok := errors.AsType[pgx.ScanArgError](err); ok || errors.Is(err, errInconsistent) {
		f.rejected = true
	}
	return f
}

// errInconsistent: an answer contradicts an earlier one.
var errInconsistent = errors.New("inconsistent answer from PostgreSQL")

// errNotReplicated: the call was answered, but with a warning instead of the standby's
// confirmation.
var errNotReplicated = errors.New("committed on this server only: the wait for the synchronous standby was cancelled")

// notOwner is the SQLSTATE with which a shard rejects a coupon of another shard, before it has read
// or written anything (db/functions/check_shard.sql).
const notOwner = "SC421"

// manyCouponsError is an error of a call for many coupons.
type manyCouponsError struct{ error }

func (e manyCouponsError) Unwrap() error { return e.error }

// provesRollback reports whether err means that PostgreSQL rolled the statement back. That holds
// for every ERROR of a single server: each call is one statement in a transaction of its own, and
// PostgreSQL sends no ERROR after the commit. It does not hold for a proxy, nor for an error that
// also ends the session (FATAL, PANIC), which can come after the commit.
func provesRollback(err *pgconn.PgError) bool {
	return isStatementError(err) &&
		err.Code != pgerrcode.StatementCompletionUnknown &&
		!pgerrcode.IsConnectionException(err.Code) // a lost connection, maybe to another server
}

// isStatementError reports whether err is an ERROR of PostgreSQL itself. A pooler does not name a
// function of PostgreSQL's source.
func isStatementError(err *pgconn.PgError) bool {
	return err.SeverityUnlocalized == "ERROR" && err.Routine != ""
}

// isContention reports whether the call met other calls, or too little time.
func isContention(code string) bool {
	return pgerrcode.IsTransactionRollback(code) || code == pgerrcode.LockNotAvailable || code == pgerrcode.QueryCanceled
}

// rejectsCall reports whether the call or the schema's own code is wrong. A missing function, role
// or privilege does not count: that is a database that is not migrated yet.
func rejectsCall(code string) bool {
	return pgerrcode.IsDataException(code) ||
		pgerrcode.IsIntegrityConstraintViolation(code) ||
		pgerrcode.IsPLpgSQLError(code) ||
		pgerrcode.IsSyntaxErrororAccessRuleViolation(code) && !isNotInstalled(code)
}

// isNotInstalled reports whether what we call is missing, or not accessible to our role.
func isNotInstalled(code string) bool {
	switch code {
	case pgerrcode.UndefinedFunction,
		pgerrcode.UndefinedTable,
		pgerrcode.UndefinedObject,
		pgerrcode.InvalidSchemaName,
		pgerrcode.InsufficientPrivilege:
		return true
	}
	return false
}

// sqlState returns the SQLSTATE of an error from PostgreSQL, "" for any other error.
func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// bothFailed returns the error of a call after both of its attempts failed.
func bothFailed(first, second *failedAttempt) error {
	switch {
	case second.rejected && (first.rejected || first.notCommitted):
		return fmt.Errorf("PostgreSQL rejected the call: %w", second.err)
	case first.notCommitted && second.notCommitted:
		return fmt.Errorf("%w: %w", ErrUnavailable, second.err)
	}
	return fmt.Errorf("%w: %w; retry: %w", ErrOutcomeUnknown, first.err, second.err)
}

// readFailed returns the error of a failed call that changes nothing.
func readFailed(f *failedAttempt) error {
	if f.rejected {
		return fmt.Errorf("PostgreSQL rejected the call: %w", f.err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, f.err)
}

// outcomeUnknownAfter returns the error for an answer that may be the effect of our own first
// attempt, which failed with f.
func outcomeUnknownAfter(f *failedAttempt) error {
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, f.err)
}

// contextEnded returns the error of a call that was not sent because its ctx ended.
func contextEnded(ctx context.Context) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
}
