package db_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/pgtest"
)

// isolationTester runs steps in several sessions, one step at a time, and records what each step
// returns, like PostgreSQL's own isolation tester (src/test/isolation). A step waits if PostgreSQL
// says that another session blocks it (pg_blocking_pids), so no test depends on timing.
type isolationTester struct {
	t        testingTB
	control  *session // for the setup and for pg_blocking_pids
	sessions []*testerSession
	waiting  []*testerSession // in the order in which their steps began
	finished chan finished
	trace    []string
}

// testerSession is a session of an isolationTester.
type testerSession struct {
	name string
	conn *pgconn.PgConn
	step string // the step that runs, "" if the session is idle
}

// finished is the end of a session's step.
type finished struct {
	session *testerSession
	result  string
}

func newIsolationTester(t testing.TB, d *pgtest.Database, sessions ...string) *isolationTester {
	t.Helper()
	it := &isolationTester{t: t, control: owner(t, d), finished: make(chan finished, len(sessions))}
	for _, name := range sessions {
		it.sessions = append(it.sessions, &testerSession{name: name, conn: d.Connect(t).PgConn()})
	}
	return it
}

// on returns the tester for use in a part of the test. No step may be running.
func (it *isolationTester) on(t testingTB) *isolationTester {
	return &isolationTester{t: t, control: &session{it.control.Conn, t}, sessions: it.sessions, finished: it.finished}
}

// run runs a step, such as "A:x", and records the result of its last statement. It returns when
// every session has finished its step or waits for an idle session. It returns false, and runs
// nothing, if the step's session is waiting.
func (it *isolationTester) run(step string, statements ...string) bool {
	it.t.Helper()
	name, _, _ := strings.Cut(step, ":")
	s := it.sessions[slices.IndexFunc(it.sessions, func(s *testerSession) bool { return s.name == name })]
	if s.step != "" {
		return false
	}
	sql := strings.Join(statements, "; ")
	if s.conn.TxStatus() != 'E' { // an aborted transaction does not wait
		// In a deadlock, PostgreSQL aborts the session that detects it: the one with the shortest
		// timeout. Let that be the session that completes the cycle.
		timeout := "1h"
		if len(it.waiting) > 0 {
			timeout = "1ms"
		}
		sql = "set deadlock_timeout = '" + timeout + "'; " + sql
	}
	s.step = step
	it.waiting = append(it.waiting, s)
	ctx := bounded(it.t)
	go func() { it.finished <- finished{s, execute(ctx, s.conn, sql)} }()
	it.settle()
	return true
}

// execute executes statements and returns the result of the last one: its values, "" for a command
// that succeeded, or the SQLSTATE of the statement that failed.
func execute(ctx context.Context, conn *pgconn.PgConn, sql string) string {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	if err != nil {
		return err.Error()
	}
	last := results[len(results)-1]
	if last.CommandTag.String() == "ROLLBACK" && strings.HasSuffix(sql, "commit") {
		return "rolled_back"
	}
	var all []string
	for _, row := range last.Rows {
		for _, value := range row {
			all = append(all, string(value))
		}
	}
	return strings.Join(all, ",")
}

// settle waits until every running step has finished or waits for an idle session, and records what
// happened: first the step that began last, then the steps that it released.
func (it *isolationTester) settle() {
	it.t.Helper()
	results := map[*testerSession]string{}
	for deadline := time.Now().Add(testTimeout); ; {
		select {
		case f := <-it.finished:
			results[f.session] = f.session.step + strings.TrimRight("="+f.result, "=")
			f.session.step = ""
		case <-time.After(time.Millisecond):
		}
		if it.blocked() {
			break
		}
		if time.Now().After(deadline) {
			it.t.Fatalf("a step neither finished nor waits for a lock: %v", it.trace)
		}
	}
	last := it.waiting[len(it.waiting)-1]
	if _, finished := results[last]; !finished {
		it.trace = append(it.trace, last.step+"...")
	} else {
		it.trace = append(it.trace, results[last])
	}
	it.waiting = slices.DeleteFunc(it.waiting, func(s *testerSession) bool {
		result, finished := results[s]
		if finished && s != last {
			it.trace = append(it.trace, result)
		}
		return finished
	})
}

// blocked reports whether every running step waits, directly or through other sessions, for an idle
// session. If not, a step still runs, or steps wait for each other and PostgreSQL will abort one.
func (it *isolationTester) blocked() bool {
	it.t.Helper()
	var idle, running []uint32
	for _, s := range it.sessions {
		if s.step == "" {
			idle = append(idle, s.conn.PID())
		} else {
			running = append(running, s.conn.PID())
		}
	}
	return len(running) == 0 || get[bool](it.control, `
		with recursive blocker (waiting, pid) as (
		  select w, b
		  from pg_catalog.unnest($1::integer[]) as w, pg_catalog.unnest(pg_catalog.pg_blocking_pids(w)) as b
		  union
		  select r.waiting, b
		  from blocker as r, pg_catalog.unnest(pg_catalog.pg_blocking_pids(r.pid)) as b
		)
		select not exists (
		  select
		  from pg_catalog.unnest($1::integer[]) as w
		  where not exists (select from blocker where waiting = w and pid = any ($2::integer[]))
		)`, running, idle)
}

// reset rolls back all transactions and clears the trace, so that the next permutation can run.
func (it *isolationTester) reset() {
	it.t.Helper()
	for open := true; open; {
		open = false
		for _, s := range it.sessions {
			if s.step == "" && s.conn.TxStatus() != 'I' {
				it.run(s.name+":rollback", "rollback")
			}
			open = open || s.step != ""
		}
	}
	it.trace = nil
}

// permutations returns every interleaving of the sessions' steps: the steps of each session stay in
// order.
func permutations(sessions [][]string) [][]string {
	var all [][]string
	for i, steps := range sessions {
		if len(steps) == 0 {
			continue
		}
		rest := slices.Clone(sessions)
		rest[i] = steps[1:]
		for _, tail := range permutations(rest) {
			all = append(all, append([]string{steps[0]}, tail...))
		}
	}
	if all == nil {
		return [][]string{nil}
	}
	return all
}
