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
	return &pgconn.PgError{
		Severity: "übersetzt", SeverityUnlocalized: severity, Code: code, Message: "texts are never read", Routine: "SomeFunction",
	}
}

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		name         string
		err          error
		notCommitted bool
		rejected     bool
		defective    bool
	}{
		// An ERROR is a rollback.
		{"lock_timeout", pgError("ERROR", "55P03"), true, false, false},
		{"class 55", pgError("ERROR", "55000"), true, false, true},
		{"serialization_failure", pgError("ERROR", "40001"), true, false, false},
		{"deadlock_detected", pgError("ERROR", "40P01"), true, false, false},
		{"transaction_rollback", pgError("ERROR", "40000"), true, false, false},
		{"statement_timeout", pgError("ERROR", "57014"), true, false, false},
		{"read_only_sql_transaction, of a standby", pgError("ERROR", "25006"), true, false, true},
		{"out_of_memory", pgError("ERROR", "53200"), true, false, true},
		{"disk_full", pgError("ERROR", "53100"), true, false, true},
		{"io_error", pgError("ERROR", "58030"), true, false, true},
		{"data_corrupted", pgError("ERROR", "XX001"), true, false, true},
		{"cached plan must not change result type", pgError("ERROR", "0A000"), true, false, true},
		{"wrapped", fmt.Errorf("claims: %w", pgError("ERROR", "55P03")), true, false, false},
		// Except where it says that it is not, or that another server was involved.
		{"statement_completion_unknown", pgError("ERROR", "40003"), false, false, false},
		{"connection_failure, of a foreign table", pgError("ERROR", "08006"), false, false, true},
		// Except where it is not PostgreSQL's. These are PgBouncer's and Odyssey's.
		{"of a pooler, without a severity that is not translated", &pgconn.PgError{Severity: "ERROR", Code: "53100"}, false, false, false},
		{"of a pooler, without a routine", &pgconn.PgError{SeverityUnlocalized: "ERROR", Code: "58000"}, false, false, false},
		// The session can end after the commit, whatever the code is.
		{"admin_shutdown", pgError("FATAL", "57P01"), false, false, false},
		{"crash_shutdown", pgError("FATAL", "57P02"), false, false, false},
		{"FATAL with the code of a time-out", pgError("FATAL", "57014"), false, false, false},
		{"FATAL of class 40", pgError("FATAL", "40001"), false, false, false},
		{"PANIC of a full disk", pgError("PANIC", "53100"), false, false, false},
		{"cannot_connect_now", pgError("FATAL", "57P03"), false, false, false},
		{"too_many_connections", pgError("FATAL", "53300"), false, false, false},
		// A database that is not migrated yet.
		{"undefined_function", pgError("ERROR", "42883"), true, false, true},
		{"undefined_table", pgError("ERROR", "42P01"), true, false, true},
		{"invalid_schema_name", pgError("ERROR", "3F000"), true, false, true},
		{"insufficient_privilege", pgError("ERROR", "42501"), true, false, true},
		// Internal errors.
		{"invalid_parameter_value", pgError("ERROR", "22023"), true, true, true},
		{"check_violation", pgError("ERROR", "23514"), true, true, true},
		{"syntax_error", pgError("ERROR", "42601"), true, true, true},
		{"raise_exception", pgError("ERROR", "P0001"), true, true, true},
		// Errors of the connection.
		{"end of the connection", io.ErrUnexpectedEOF, false, false, false},
		{"reset", &net.OpError{Op: "read", Err: errors.New("reset")}, false, false, false},
		{"deadline", context.DeadlineExceeded, false, false, false},
		// Invalid answers.
		{"a value of another type", pgx.ScanArgError{Err: errors.New("type")}, false, true, false},
		{"too few rows", fmt.Errorf("%w: 9 of 10", errInconsistent), false, true, false},
	} {
		f := classify(test.err, true, false)
		if f.notCommitted != test.notCommitted || f.rejected != test.rejected || f.defective != test.defective {
			t.Errorf("%s: notCommitted %v, rejected %v, defective %v; want %v, %v, %v", test.name,
				f.notCommitted, f.rejected, f.defective, test.notCommitted, test.rejected, test.defective)
		}
		if f.err != test.err {
			t.Errorf("%s: error %v, want %v", test.name, f.err, test.err)
		}
		if f := classify(test.err, false, false); !f.notCommitted || f.rejected != test.rejected {
			t.Errorf("%s, not executed: notCommitted %v, rejected %v; want true, %v", test.name, f.notCommitted, f.rejected, test.rejected)
		}
	}
}

// Through a proxy no error proves a rollback: PL/Proxy turns a shard's FATAL into an ERROR of the
// same SQLSTATE, and its own time-out does not end a shard's transaction. The exception is a shard
// that rejects the call's only coupon because it does not own it.
func TestClassify_proxy(t *testing.T) {
	for _, code := range []string{"XX000", "57P01", "57014", "08006", "55P03", "40001", "40P01", "25006", "53300", "53100", "42501"} {
		if f := classify(pgError("ERROR", code), true, true); f.notCommitted || f.rejected {
			t.Errorf("%s: notCommitted %v, rejected %v; want false, false", code, f.notCommitted, f.rejected)
		}
		if f := classify(pgError("ERROR", code), false, true); !f.notCommitted {
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
		if f := classify(err, true, test.proxy); f.notCommitted != test.notCommitted || f.rejected {
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

// Only the warning that a commit did not wait for the standby makes a call ambiguous.
func TestServerConn_notice(t *testing.T) {
	const (
		remoteDetail  = "Remote detail: Die Transaktion wurde lokal bereits committet."
		remoteContext = "Remote context: PL/pgSQL function audit() line 3 at RAISE"
	)
	for _, test := range []struct {
		code, routine, detail, where string
		ambiguous                    bool
	}{
		{code: "01000", routine: "SyncRepWaitForLSN", ambiguous: true},
		{code: "57P01", routine: "SyncRepWaitForLSN", ambiguous: true},
		{code: "01000", ambiguous: true}, // something that does not name the function
		{code: "01000", routine: "plproxy_remote_error", detail: remoteDetail, ambiguous: true},
		{code: "57P01", routine: "plproxy_remote_error", detail: remoteDetail, ambiguous: true},

		{code: "01000", routine: "exec_stmt_raise"}, // RAISE WARNING
		{code: "57P01", routine: "exec_stmt_raise"},
		{code: "01000", routine: "explain_ExecutorEnd"}, // auto_explain
		{code: "01000", routine: "GetNewTransactionId"}, // wraparound is near
		{code: "01000", routine: "GetNewMultiXactId"},
		{code: "01000", routine: "check_old_conn"},                                                   // PL/Proxy drops an idle connection to a shard
		{code: "01000", routine: "plproxy_remote_error"},                                             // auto_explain on a shard
		{code: "01000", routine: "plproxy_remote_error", detail: remoteDetail, where: remoteContext}, // RAISE WARNING on a shard
		{code: "00000", routine: "exec_stmt_raise"},                                                  // RAISE NOTICE
		{code: "01003", routine: "SyncRepWaitForLSN"},
	} {
		sc := new(serverConn)
		sc.notice(nil, &pgconn.Notice{
			Severity: "WARNUNG", SeverityUnlocalized: "WARNING", Code: test.code, Routine: test.routine,
			Message: "Warten auf synchrone Replikation wird storniert", Detail: test.detail, Where: test.where,
		})
		if sc.ambiguous != test.ambiguous {
			t.Errorf("%+v: ambiguous %v", test, sc.ambiguous)
		}
	}
}

// A call of which nothing was sent is not committed, whatever its error is.
func TestAttempt_notSent(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 1)
	failed := errors.New("failed before it was sent")
	for name, call := range map[string]callFunc{
		"nothing sent": func(context.Context, *pgx.Conn) error { return failed },
		"only prepared": func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Prepare(ctx, "mine", `select 1`)
			return errors.Join(err, failed)
		},
	} {
		f := s.serverOf("c").attempt(t.Context(), callKind{write: true}, call)
		if f == nil || !errors.Is(f.err, failed) || !f.notCommitted {
			t.Errorf("%s: %+v; want notCommitted", name, f)
		}
	}
	f := s.serverOf("c").attempt(t.Context(), callKind{write: true}, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, claimCouponSQL, "u", "c")
		return errors.Join(err, failed)
	})
	if f == nil || !errors.Is(f.err, failed) || f.notCommitted {
		t.Errorf("sent: %+v; want ambiguous", f)
	}
}
