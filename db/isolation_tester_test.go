package db_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/pgtest"
)

// isolationTester runs steps in several sessions, one step at a time, and records what each step
// returns, like PostgreSQL's own isolation tester (src/test/isolation). A step waits if PostgreSQL
// says that another session blocks it (pg_blocking_pids), so no test depends on timing.
type isolationTester struct {
	t        testingTB
	control  *session // for the setup and for pg_blocking_pids
	sessions map[string]*testerSession
	waiting  []*testerSession // in the order in which their steps began
	trace    []string
}

// testerSession is a session of an isolationTester.
type testerSession struct {
	name string
	conn *pgx.Conn
	pid  uint32
	step string      // the step that runs, "" if the session is idle
	done chan string // receives the result of step
}

func newIsolationTester(t testing.TB, d *pgtest.Database, sessions ...string) *isolationTester {
	t.Helper()
	it := &isolationTester{t: t, control: owner(t, d), sessions: map[string]*testerSession{}}
	for _, name := range sessions {
		conn := d.Connect(t)
		it.sessions[name] = &testerSession{name: name, conn: conn, pid: conn.PgConn().PID(), done: make(chan string, 1)}
	}
	return it
}

// run runs a step, such as "A:x", and records the result of its last statement. It returns when
// every session has finished its step or waits for an idle session. It returns false, and runs
// nothing, if the step's session is waiting.
func (it *isolationTester) run(step string, statements ...string) bool {
	it.t.Helper()
	name, _, _ := strings.Cut(step, ":")
	s := it.sessions[name]
	if s.step != "" {
		return false
	}
	// In a deadlock, PostgreSQL aborts the session that detects it: the one with the shortest timeout.
	// Let that be the session that completes the cycle.
	timeout := "1h"
	if len(it.waiting) > 0 {
		timeout = "1ms"
	}
	s.step = step
	it.waiting = append(it.waiting, s)
	ctx := bounded(it.t)
	go func() {
		// This fails in an aborted transaction, which cannot deadlock.
		_, _ = s.conn.Exec(ctx, "set deadlock_timeout = '"+timeout+"'")
		var result string
		for _, statement := range statements {
			result = execute(ctx, s.conn, statement)
		}
		s.done <- result
	}()
	it.settle()
	return true
}

// execute runs a statement and returns its result: its values, its SQLSTATE, or "" for a command
// that succeeded.
func execute(ctx context.Context, conn *pgx.Conn, statement string) string {
	rows, err := conn.Query(ctx, statement)
	if err == nil {
		var all []string
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				return err.Error()
			}
			all = append(all, fmt.Sprint(values...))
		}
		err = rows.Err()
		if tag := rows.CommandTag().String(); err == nil && tag == "ROLLBACK" && strings.HasPrefix(statement, "commit") {
			return "rolled_back"
		}
		if err == nil {
			return strings.Join(all, ",")
		}
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return err.Error()
}

// settle waits until every running step has finished or waits for an idle session, and records what
// happened: first the step that began last, then the steps that it released.
func (it *isolationTester) settle() {
	it.t.Helper()
	results := map[*testerSession]string{}
	for deadline := time.Now().Add(testTimeout); ; time.Sleep(200 * time.Microsecond) {
		for _, s := range it.waiting {
			select {
			case result := <-s.done:
				results[s] = s.step + strings.TrimRight("="+result, "=")
				s.step = ""
			default:
			}
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
	idle := map[uint32]bool{}
	for _, s := range it.sessions {
		idle[s.pid] = s.step == ""
	}
	for _, s := range it.waiting {
		if s.step == "" {
			continue
		}
		// The sessions that block it, those that block them, and so on.
		blockers := map[uint32]bool{}
		for next := []uint32{s.pid}; len(next) > 0; {
			pid := next[0]
			next = next[1:]
			if !blockers[pid] {
				blockers[pid] = true
				next = append(next, get[[]uint32](it.control, "select pg_catalog.pg_blocking_pids($1)::bigint[]", pid)...)
			}
		}
		if !slices.ContainsFunc(sorted(blockers), func(pid uint32) bool { return idle[pid] }) {
			return false
		}
	}
	return true
}

func sorted(set map[uint32]bool) []uint32 {
	var all []uint32
	for pid := range set {
		all = append(all, pid)
	}
	slices.Sort(all)
	return all
}

// reset rolls back all transactions and clears the trace, so that the next permutation can run.
func (it *isolationTester) reset() {
	it.t.Helper()
	inTransaction := func(s *testerSession) bool { return s.conn.PgConn().TxStatus() != 'I' }
	for len(it.waiting) > 0 || slices.ContainsFunc(it.all(), inTransaction) {
		for _, s := range it.all() {
			if s.step == "" {
				it.run(s.name+":rollback", "rollback")
			}
		}
	}
	it.trace = nil
}

// all returns the sessions in order of their names.
func (it *isolationTester) all() []*testerSession {
	var all []*testerSession
	for _, s := range it.sessions {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *testerSession) int { return strings.Compare(a.name, b.name) })
	return all
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
