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
	return &pgconn.PgError{Severity: "übersetzt", SeverityUnlocalized: severity, Code: code, Message: "no text is ever read"}
}

func direct() bool  { return false }
func proxied() bool { return true }

// What each error of a sent call says about it. fault: PostgreSQL will refuse it
// again.
func TestFailed(t *testing.T) {
	for _, test := range []struct {
		name   string
		err    error
		surely bool
		fault  bool
	}{
		// Proven rollbacks.
		{"lock_timeout", pgError("ERROR", "55P03"), true, false},
		{"class 55", pgError("ERROR", "55000"), true, false},
		{"serialization_failure", pgError("ERROR", "40001"), true, false},
		{"deadlock_detected", pgError("ERROR", "40P01"), true, false},
		{"transaction_rollback", pgError("ERROR", "40000"), true, false},
		{"statement_timeout", pgError("ERROR", "57014"), true, false},
		{"read_only_sql_transaction, of a standby", pgError("ERROR", "25006"), true, false},
		// Class 40 that is none.
		{"statement_completion_unknown", pgError("ERROR", "40003"), false, false},
		// The end of the session can come after the commit, whatever its code.
		{"admin_shutdown", pgError("FATAL", "57P01"), false, false},
		{"crash_shutdown", pgError("FATAL", "57P02"), false, false},
		{"fatal with a code that proves a rollback otherwise", pgError("FATAL", "57014"), false, false},
		{"fatal 40", pgError("FATAL", "40001"), false, false},
		{"panic 55", pgError("PANIC", "55000"), false, false},
		// The weather.
		{"cannot_connect_now", pgError("FATAL", "57P03"), false, false},
		{"too_many_connections", pgError("FATAL", "53300"), false, false},
		{"out_of_memory", pgError("ERROR", "53200"), false, false},
		{"disk_full", pgError("ERROR", "53100"), false, false},
		{"io_error", pgError("ERROR", "58030"), false, false},
		{"connection_failure, of a proxy", pgError("ERROR", "08006"), false, false},
		{"internal_error, of a proxy", pgError("ERROR", "XX000"), false, false},
		{"cached plan must not change result type", pgError("ERROR", "0A000"), false, false},
		// A database before its migration.
		{"undefined_function", pgError("ERROR", "42883"), false, false},
		{"undefined_table", pgError("ERROR", "42P01"), false, false},
		{"invalid_schema_name", pgError("ERROR", "3F000"), false, false},
		{"insufficient_privilege", pgError("ERROR", "42501"), false, false},
		// Our mistakes.
		{"invalid_parameter_value", pgError("ERROR", "22023"), false, true},
		{"check_violation", pgError("ERROR", "23514"), false, true},
		{"syntax_error", pgError("ERROR", "42601"), false, true},
		{"raise_exception", pgError("ERROR", "P0001"), false, true},
		// The connection.
		{"end of the connection", io.ErrUnexpectedEOF, false, false},
		{"reset", &net.OpError{Op: "read", Err: errors.New("reset")}, false, false},
		{"deadline", context.DeadlineExceeded, false, false},
		// Answers that cannot be.
		{"a value of another type", pgx.ScanArgError{Err: errors.New("type")}, false, true},
		{"too few rows", fmt.Errorf("%w: 9 of 10", errContradiction), false, true},
		{"wrapped", fmt.Errorf("claims: %w", pgError("ERROR", "55P03")), true, false},
	} {
		f := failed(test.err, true, direct)
		if f.surely != test.surely || f.fault != test.fault {
			t.Errorf("%s: surely %v, fault %v; want %v, %v", test.name, f.surely, f.fault, test.surely, test.fault)
		}
		if f.cause != test.err {
			t.Errorf("%s: the cause is lost", test.name)
		}
		if f := failed(test.err, false, direct); !f.surely || f.fault != test.fault {
			t.Errorf("%s, never executed: surely %v, fault %v; want true, %v", test.name, f.surely, f.fault, test.fault)
		}
	}
}

// Through a proxy no error proves a rollback: PL/Proxy turns a shard's FATAL into an
// ERROR of the same SQLSTATE, and its own time-out ends no transaction of a shard. The
// one exception is the refusal of a shard that does not own the call's only coupon.
func TestFailedThroughAProxy(t *testing.T) {
	for _, code := range []string{"XX000", "57P01", "57014", "08006", "55P03", "40001", "40P01", "25006", "53300"} {
		if f := failed(pgError("ERROR", code), true, proxied); f.surely || f.fault {
			t.Errorf("%s: surely %v, fault %v; want neither", code, f.surely, f.fault)
		}
		if f := failed(pgError("ERROR", code), false, proxied); !f.surely {
			t.Errorf("%s, never executed: not surely", code)
		}
	}
	for _, test := range []struct{ proxied, batch, surely bool }{
		{false, false, true}, {false, true, true}, {true, false, true}, {true, true, false},
	} {
		err := pgError("ERROR", notOwner)
		if test.batch {
			err = batchError{err}
		}
		if f := failed(err, true, func() bool { return test.proxied }); f.surely != test.surely || f.fault {
			t.Errorf("not the owner, %+v: surely %v, fault %v", test, f.surely, f.fault)
		}
	}
}

// What a caller is told when both of his calls failed.
func TestVerdict(t *testing.T) {
	cause := errors.New("cause")
	surely := &failure{cause: cause, surely: true}
	maybe := &failure{cause: cause}
	fault := &failure{cause: cause, fault: true}
	sureFault := &failure{cause: cause, fault: true, surely: true}

	for _, test := range []struct {
		first, second *failure
		want          error // nil: a fault of ours
	}{
		{surely, surely, ErrUnavailable},
		{surely, maybe, ErrOutcomeUnknown},
		{maybe, surely, ErrOutcomeUnknown},
		{maybe, maybe, ErrOutcomeUnknown},
		{fault, fault, nil},
		{surely, fault, nil},
		{sureFault, sureFault, nil},
		{maybe, fault, ErrOutcomeUnknown},
		{fault, surely, ErrOutcomeUnknown},
		{fault, maybe, ErrOutcomeUnknown},
	} {
		err := verdict(test.first, test.second)
		for _, sentinel := range []error{ErrUnavailable, ErrOverloaded, ErrOutcomeUnknown} {
			if is := errors.Is(err, sentinel); is != (sentinel == test.want) {
				t.Errorf("%+v, then %+v: errors.Is(%q, %q) is %v", *test.first, *test.second, err, sentinel, is)
			}
		}
		if !errors.Is(err, cause) {
			t.Errorf("the cause is lost: %v", err)
		}
	}

	if err := readVerdict(maybe); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a read that failed: %v", err)
	}
	if err := readVerdict(fault); errors.Is(err, ErrUnavailable) || !errors.Is(err, cause) {
		t.Errorf("a read that is refused: %v", err)
	}
}

// Warnings that make the call under way doubtful.
func TestNotice(t *testing.T) {
	for _, test := range []struct {
		code, routine string
		inDoubt       bool
	}{
		{"01000", "SyncRepWaitForLSN", true},
		{"57P01", "SyncRepWaitForLSN", true},
		{"01000", "", true}, // by way of a proxy that does not say who warned
		{"01000", "plproxy_remote_error", true},
		{"01000", "check_old_conn", false},
		{"01000", "GetNewTransactionId", false},
		{"01000", "GetNewMultiXactId", false},
		{"00000", "exec_stmt_raise", false}, // a NOTICE
	} {
		w := new(wire)
		w.notice(nil, &pgconn.Notice{SeverityUnlocalized: "WARNING", Code: test.code, Routine: test.routine})
		if w.inDoubt != test.inDoubt {
			t.Errorf("%s of %q: in doubt %v, want %v", test.code, test.routine, w.inDoubt, test.inDoubt)
		}
	}
}
