package pgstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func pgError(severity, code string) error {
	return &pgconn.PgError{Severity: "übersetzt", SeverityUnlocalized: severity, Code: code, Message: "texts are never read"}
}

func noProxy() bool   { return false }
func withProxy() bool { return true }

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		name         string
		err          error
		notCommitted bool
		rejected     bool
	}{
		// Proven rollbacks.
		{"lock_timeout", pgError("ERROR", "55P03"), true, false},
		{"class 55", pgError("ERROR", "55000"), true, false},
		{"serialization_failure", pgError("ERROR", "40001"), true, false},
		{"deadlock_detected", pgError("ERROR", "40P01"), true, false},
		{"transaction_rollback", pgError("ERROR", "40000"), true, false},
		{"statement_timeout", pgError("ERROR", "57014"), true, false},
		{"read_only_sql_transaction, of a standby", pgError("ERROR", "25006"), true, false},
		// In class 40, but not a rollback.
		{"statement_completion_unknown", pgError("ERROR", "40003"), false, false},
		// The session can end after the commit, whatever the code is.
		{"admin_shutdown", pgError("FATAL", "57P01"), false, false},
		{"crash_shutdown", pgError("FATAL", "57P02"), false, false},
		{"FATAL with a code that proves a rollback as an ERROR", pgError("FATAL", "57014"), false, false},
		{"FATAL of class 40", pgError("FATAL", "40001"), false, false},
		{"PANIC of class 55", pgError("PANIC", "55000"), false, false},
		// Outages.
		{"cannot_connect_now", pgError("FATAL", "57P03"), false, false},
		{"too_many_connections", pgError("FATAL", "53300"), false, false},
		{"out_of_memory", pgError("ERROR", "53200"), false, false},
		{"disk_full", pgError("ERROR", "53100"), false, false},
		{"io_error", pgError("ERROR", "58030"), false, false},
		{"connection_failure, of a proxy", pgError("ERROR", "08006"), false, false},
		{"internal_error, of a proxy", pgError("ERROR", "XX000"), false, false},
		{"cached plan must not change result type", pgError("ERROR", "0A000"), false, false},
		// A database that is not migrated yet.
		{"undefined_function", pgError("ERROR", "42883"), false, false},
		{"undefined_table", pgError("ERROR", "42P01"), false, false},
		{"invalid_schema_name", pgError("ERROR", "3F000"), false, false},
		{"insufficient_privilege", pgError("ERROR", "42501"), false, false},
		// Internal errors.
		{"invalid_parameter_value", pgError("ERROR", "22023"), false, true},
		{"check_violation", pgError("ERROR", "23514"), false, true},
		{"syntax_error", pgError("ERROR", "42601"), false, true},
		{"raise_exception", pgError("ERROR", "P0001"), false, true},
		// Errors of the connection.
		{"end of the connection", io.ErrUnexpectedEOF, false, false},
		{"reset", &net.OpError{Op: "read", Err: errors.New("reset")}, false, false},
		{"deadline", context.DeadlineExceeded, false, false},
		// Invalid answers.
		{"a value of another type", pgx.ScanArgError{Err: errors.New("type")}, false, true},
		{"too few rows", fmt.Errorf("%w: 9 of 10", errInconsistent), false, true},
		{"wrapped", fmt.Errorf("claims: %w", pgError("ERROR", "55P03")), true, false},
	} {
		f := classify(test.err, true, noProxy)
		if f.notCommitted != test.notCommitted || f.rejected != test.rejected {
			t.Errorf("%s: notCommitted %v, rejected %v; want %v, %v", test.name, f.notCommitted, f.rejected, test.notCommitted, test.rejected)
		}
		if f.err != test.err {
			t.Errorf("%s: error %v, want %v", test.name, f.err, test.err)
		}
		if f := classify(test.err, false, noProxy); !f.notCommitted || f.rejected != test.rejected {
			t.Errorf("%s, not executed: notCommitted %v, rejected %v; want true, %v", test.name, f.notCommitted, f.rejected, test.rejected)
		}
	}
}

// Through a proxy no error proves a rollback: PL/Proxy turns a shard's FATAL into an ERROR of the
// same SQLSTATE, and its own time-out does not end a shard's transaction. The exception is a shard
// that rejects the call's only coupon because it does not own it.
func TestClassify_proxy(t *testing.T) {
	for _, code := range []string{"XX000", "57P01", "57014", "08006", "55P03", "40001", "40P01", "25006", "53300"} {
		if f := classify(pgError("ERROR", code), true, withProxy); f.notCommitted || f.rejected {
			t.Errorf("%s: notCommitted %v, rejected %v; want false, false", code, f.notCommitted, f.rejected)
		}
		if f := classify(pgError("ERROR", code), false, withProxy); !f.notCommitted {
			t.Errorf("%s, not executed: notCommitted false, want true", code)
		}
	}
	for _, test := range []struct{ proxy, manyCoupons, notCommitted bool }{
		{false, false, true}, {false, true, true}, {true, false, true}, {true, true, false},
	} {
		err := pgError("ERROR", notOwner)
		if test.manyCoupons {
			err = manyCouponsError{err}
		}
		if f := classify(err, true, func() bool { return test.proxy }); f.notCommitted != test.notCommitted || f.rejected {
			t.Errorf("not the owner, %+v: notCommitted %v, rejected %v", test, f.notCommitted, f.rejected)
		}
	}
}

func TestBothFailed(t *testing.T) {
	cause := errors.New("cause")
	notCommitted := &failedAttempt{err: cause, notCommitted: true}
	ambiguous := &failedAttempt{err: cause}
	rejected := &failedAttempt{err: cause, rejected: true}
	rejectedNotCommitted := &failedAttempt{err: cause, rejected: true, notCommitted: true}

	for _, test := range []struct {
		first, second *failedAttempt
		want          error // nil: an internal error
	}{
		{notCommitted, notCommitted, ErrUnavailable},
		{notCommitted, ambiguous, ErrOutcomeUnknown},
		{ambiguous, notCommitted, ErrOutcomeUnknown},
		{ambiguous, ambiguous, ErrOutcomeUnknown},
		{rejected, rejected, nil},
		{notCommitted, rejected, nil},
		{rejectedNotCommitted, rejectedNotCommitted, nil},
		{ambiguous, rejected, ErrOutcomeUnknown},
		{rejected, notCommitted, ErrOutcomeUnknown},
		{rejected, ambiguous, ErrOutcomeUnknown},
	} {
		err := bothFailed(test.first, test.second)
		for _, sentinel := range []error{ErrUnavailable, ErrOverloaded, ErrOutcomeUnknown} {
			if is := errors.Is(err, sentinel); is != (sentinel == test.want) {
				t.Errorf("%+v, then %+v: errors.Is(%q, %q) is %v", *test.first, *test.second, err, sentinel, is)
			}
		}
		if !errors.Is(err, cause) {
			t.Errorf("%+v, then %+v: %q does not wrap the cause", *test.first, *test.second, err)
		}
	}

	if err := readFailed(ambiguous); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a read that failed: %v, want %v", err, ErrUnavailable)
	}
	if err := readFailed(rejected); errors.Is(err, ErrUnavailable) || !errors.Is(err, cause) {
		t.Errorf("a read that was rejected: %v, want an internal error", err)
	}
}

// The warnings that make a call ambiguous.
func TestServerConn_notice(t *testing.T) {
	for _, test := range []struct {
		code, routine string
		ambiguous     bool
	}{
		{"01000", "SyncRepWaitForLSN", true},
		{"57P01", "SyncRepWaitForLSN", true},
		{"01000", "", true}, // through a proxy that does not name the routine
		{"01000", "plproxy_remote_error", true},
		{"01000", "check_old_conn", false},
		{"01000", "GetNewTransactionId", false},
		{"01000", "GetNewMultiXactId", false},
		{"00000", "exec_stmt_raise", false}, // a NOTICE
	} {
		sc := new(serverConn)
		sc.notice(nil, &pgconn.Notice{SeverityUnlocalized: "WARNING", Code: test.code, Routine: test.routine})
		if sc.ambiguous != test.ambiguous {
			t.Errorf("%s of %q: ambiguous %v, want %v", test.code, test.routine, sc.ambiguous, test.ambiguous)
		}
	}
}
