package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// failure is a call to PostgreSQL that brought no answer. All that is ever decided
// about the driver's errors is decided in this file, by their type and SQLSTATE,
// never by their text.
type failure struct {
	cause error

	// surely: nothing of the call was committed, nor ever will be.
	surely bool
	// fault: PostgreSQL refused the call for what it is, and will again. It is our
	// mistake, not the weather.
	fault bool
}

// notSent is the failure of a call that was not sent: there was no connection for it, its
// shard is away, or commits do not come back.
func notSent(err error) *failure {
	return &failure{cause: err, surely: true}
}

// failed judges an error that came back from a connection. executed: the call got
// beyond the preparing of its statement. proxied tells, where it matters, whether the
// connection is to a proxy, whose errors say nothing of what its shards have committed.
func failed(err error, executed bool, proxied func() bool) *failure {
	f := &failure{
		cause:  err,
		surely: !executed || pgconn.SafeToRetry(err), // the latter was never written to the connection
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		f.surely = f.surely || provesRollback(pgErr) && !proxied()
		// Of a batch, a proxy sends each shard its part: another one may have committed it.
		if _, batch := errors.AsType[batchError](err); pgErr.Code == notOwner {
			f.surely = f.surely || !batch || !proxied()
		}
		f.fault = isFault(pgErr.Code)
	}
	if _, ok := errors.AsType[pgx.ScanArgError](err); ok || errors.Is(err, errContradiction) {
		f.fault = true
	}
	return f
}

// errContradiction is an answer that cannot be.
var errContradiction = errors.New("PostgreSQL contradicts itself")

// errInDoubt is the failure of a call that was answered with a warning instead of
// the synchronous standby's word.
var errInDoubt = errors.New("committed on this server only: the wait for the synchronous standby was cancelled")

// notOwner is the SQLSTATE with which a shard refuses a coupon of another one, before
// it has looked or written anything (db/functions/guard_ownership.sql).
const notOwner = "SC421"

// batchError is an error of a call for several coupons.
type batchError struct{ error }

func (e batchError) Unwrap() error { return e.error }

// provesRollback: PostgreSQL itself ended the statement and rolled it back. That
// holds where PostgreSQL is one server. An error that ends the session as well
// (FATAL) can come after the commit and proves nothing.
func provesRollback(err *pgconn.PgError) bool {
	if err.SeverityUnlocalized != "ERROR" {
		return false
	}
	switch {
	case err.Code == pgerrcode.StatementCompletionUnknown: // class 40 by number only
		return false
	case pgerrcode.IsTransactionRollback(err.Code),
		pgerrcode.IsObjectNotInPrerequisiteState(err.Code), // lock_timeout is one of these
		err.Code == pgerrcode.QueryCanceled,                // statement_timeout, or somebody's cancel
		err.Code == pgerrcode.ReadOnlySQLTransaction:       // a standby, which cannot write
		return true
	}
	return false
}

// isFault: the call, or the schema's own code, is wrong. A missing function, role
// or right is not: that is a database before its migration.
func isFault(code string) bool {
	return pgerrcode.IsDataException(code) ||
		pgerrcode.IsIntegrityConstraintViolation(code) ||
		pgerrcode.IsPLpgSQLError(code) ||
		pgerrcode.IsSyntaxErrororAccessRuleViolation(code) && !isNotInstalled(code)
}

// isNotInstalled: what we call is not there, or not for our role.
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

// verdict is the error for the caller of a call that failed twice.
func verdict(first, second *failure) error {
	switch {
	case second.fault && (first.fault || first.surely):
		return fmt.Errorf("PostgreSQL refuses the call: %w", second.cause)
	case first.surely && second.surely:
		return fmt.Errorf("%w: %w", ErrUnavailable, second.cause)
	}
	return fmt.Errorf("%w: %w; asked again: %w", ErrOutcomeUnknown, first.cause, second.cause)
}

// readVerdict is verdict for a call that changes nothing.
func readVerdict(f *failure) error {
	if f.fault {
		return fmt.Errorf("PostgreSQL refuses the call: %w", f.cause)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, f.cause)
}

// unknownAfter is the error for an answer that may be the echo of our own first
// try, which failed with f.
func unknownAfter(f *failure) error {
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, f.cause)
}

// gaveUp is the error for a caller whose ctx ended before he was served, and
// before anything was sent for him.
func gaveUp(ctx context.Context) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
}
