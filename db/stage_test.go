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

// stage steps several sessions through a play, one step at a time, and writes down what each step answers, as PostgreSQL's own
// isolation tests do. It knows when a step waits for another session: PostgreSQL says so (pg_blocking_pids). No sleep proves
// anything here.
type stage struct {
	t       tester
	watcher *session
	actors  map[string]*actor
	waiting []*actor // in the order in which they began to wait
	trace   []string
}

// actor is one session on the stage.
type actor struct {
	name string
	conn *pgx.Conn
	pid  uint32
	step string      // what it is at, "" for nothing
	done chan string // the answer of step
}

func newStage(t testing.TB, d *pgtest.Database, actors ...string) *stage {
	t.Helper()
	s := &stage{t: t, watcher: owner(t, d), actors: map[string]*actor{}}
	for _, name := range actors {
		conn := d.Connect(t)
		s.actors[name] = &actor{name: name, conn: conn, pid: conn.PgConn().PID(), done: make(chan string, 1)}
	}
	return s
}

// play performs a step, such as "A:x", by statements of which the last one answers, and goes on until every session either
// has its answer or waits for one that has. It is false when that session is not free to do anything: it waits.
func (s *stage) play(step string, statements ...string) bool {
	s.t.Helper()
	name, _, _ := strings.Cut(step, ":")
	a := s.actors[name]
	if a.step != "" {
		return false
	}
	// Of the sessions in a deadlock, the one whose timeout ends first is the victim: it is the one that closes the circle.
	timeout := "1h"
	if len(s.waiting) > 0 {
		timeout = "1ms"
	}
	a.step = step
	s.waiting = append(s.waiting, a)
	ctx := bounded(s.t)
	go func() {
		// In a transaction that has failed this fails, too, and then it is of no use.
		_, _ = a.conn.Exec(ctx, "set deadlock_timeout = '"+timeout+"'")
		var answer string
		for _, statement := range statements {
			answer = perform(ctx, a.conn, statement)
		}
		a.done <- answer
	}()
	s.settle()
	return true
}

// perform runs a statement and tells its answer: the values, the SQLSTATE, or nothing for a command that did what it says.
func perform(ctx context.Context, conn *pgx.Conn, statement string) string {
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

// settle waits until whoever has not answered waits for a session that does nothing, and writes down what happens: first to
// the step just played, then to those it has let go.
func (s *stage) settle() {
	s.t.Helper()
	answers := map[*actor]string{}
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Microsecond) {
		for _, a := range s.waiting {
			select {
			case answer := <-a.done:
				answers[a] = a.step + strings.TrimRight("="+answer, "=")
				a.step = ""
			default:
			}
		}
		if s.standStill() {
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("neither an answer nor a lock to wait for: %v", s.trace)
		}
	}
	last := s.waiting[len(s.waiting)-1]
	if _, answered := answers[last]; !answered {
		s.trace = append(s.trace, last.step+"...")
	} else {
		s.trace = append(s.trace, answers[last])
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(a *actor) bool {
		answer, answered := answers[a]
		if answered && a != last {
			s.trace = append(s.trace, answer)
		}
		return answered
	})
}

// standStill says whether all who wait do so, directly or through others, for a session that does nothing. (If not, somebody
// still works, or they wait for each other, which PostgreSQL will end.)
func (s *stage) standStill() bool {
	s.t.Helper()
	idle := map[uint32]bool{}
	for _, a := range s.actors {
		idle[a.pid] = a.step == ""
	}
	for _, a := range s.waiting {
		if a.step == "" {
			continue
		}
		// The blockers of the blockers, and so on.
		seen := map[uint32]bool{}
		for next := []uint32{a.pid}; len(next) > 0; {
			pid := next[0]
			next = next[1:]
			if !seen[pid] {
				seen[pid] = true
				next = append(next, get[[]uint32](s.watcher, "select pg_catalog.pg_blocking_pids($1)::bigint[]", pid)...)
			}
		}
		if !slices.ContainsFunc(sorted(seen), func(pid uint32) bool { return idle[pid] }) {
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

// clear ends what is going on, so that another play may begin.
func (s *stage) clear() {
	s.t.Helper()
	for len(s.waiting) > 0 || slices.ContainsFunc(s.all(), func(a *actor) bool { return a.conn.PgConn().TxStatus() != 'I' }) {
		for _, a := range s.all() {
			if a.step == "" {
				s.play(a.name+":rollback", "rollback")
			}
		}
	}
	s.trace = nil
}

func (s *stage) all() []*actor {
	var all []*actor
	for _, a := range s.actors {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b *actor) int { return strings.Compare(a.name, b.name) })
	return all
}

// shuffles are all ways to riffle scripts together: the steps of each stay in their order.
func shuffles(scripts [][]string) [][]string {
	var all [][]string
	for i, script := range scripts {
		if len(script) == 0 {
			continue
		}
		rest := slices.Clone(scripts)
		rest[i] = script[1:]
		for _, tail := range shuffles(rest) {
			all = append(all, append([]string{script[0]}, tail...))
		}
	}
	if all == nil {
		return [][]string{nil}
	}
	return all
}
