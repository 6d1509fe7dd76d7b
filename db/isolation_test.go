package db_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// play is what several sessions do, in every order there is.
//
// A step is "begin", "commit", "rollback", "x" (claim coupon x for the session's user), "x,y" (both in one claim_batch), "?x"
// (look what is left of x), "savepoint", "back" (to the savepoint), "create-z" or "delete-x" (a coupon); "begin+x" are two
// statements in one step. A step outside of a transaction is one of its own, read committed.
type play struct {
	name    string
	coupons map[string]int    // what is on sale
	users   map[string]string // whose the claims of a session are; else that of its name in lower case
	scripts []string          // for each session its steps, "A: begin x commit"
	tables  []table
}

// table is what happens at one or several isolation levels of "begin", comma-separated: all orders, what each step answers, and
// who has the coupons in the end, in claim order.
type table struct{ levels, traces string }

// TestIsolation steps the sessions of each play through every order that can happen: where a session waits, its next step
// cannot come before its answer. "x..." begins to wait; "x=…" is the answer.
func TestIsolation(t *testing.T) {
	t.Parallel()
	for _, p := range plays {
		for _, table := range p.tables {
			for level := range strings.SplitSeq(table.levels, ", ") {
				t.Run(p.name+", "+level, func(t *testing.T) {
					t.Parallel()
					got, want := p.perform(t, level), lines(table.traces)
					if !slices.Equal(got, want) {
						t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				})
			}
		}
	}
}

// What docs/transactions.md shows are lines of the plays.
func TestTransactionsAreToldAsTheyAre(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/transactions.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range plays {
		for _, table := range p.tables {
			all = append(all, lines(table.traces)...)
		}
	}
	shown := 0
	for part := range strings.SplitSeq(string(page), "```text\n") {
		traces, _, isBlock := strings.Cut(part, "```")
		if !isBlock || strings.HasPrefix(part, "#") {
			continue // what stands before the first one
		}
		for _, trace := range lines(traces) {
			shown++
			if !slices.Contains(all, trace) {
				t.Errorf("no play goes like this: %s", trace)
			}
		}
	}
	if shown < 15 {
		t.Errorf("found %d traces on the page", shown)
	}
}

// perform plays every order and returns the trace of each.
func (p play) perform(t *testing.T, level string) []string {
	t.Helper()
	var scripts [][]string
	var actors []string
	for _, script := range p.scripts {
		name, steps, _ := strings.Cut(script, ": ")
		actors = append(actors, name)
		var own []string
		for step := range strings.FieldsSeq(steps) {
			own = append(own, name+":"+step)
		}
		scripts = append(scripts, own)
	}

	database := pgtest.New(t)
	s := newStage(t, database, actors...)
	var traces []string
	var impossible []string
	for _, order := range shuffles(scripts) {
		if impossible != nil && len(order) >= len(impossible) && slices.Equal(order[:len(impossible)], impossible) {
			continue
		}
		impossible = nil
		s.clear()
		s.watcher.exec("truncate public.claims, public.coupons")
		for _, name := range sortedKeys(p.coupons) {
			s.watcher.create(name, p.coupons[name])
		}
		for i, step := range order {
			if !s.play(step, p.statements(step, level)...) {
				impossible = order[:i+1]
				break
			}
		}
		if impossible == nil {
			traces = append(traces, strings.Join(s.trace, " ")+" |"+p.outcome(s.watcher))
		}
	}
	s.clear()
	return traces
}

// outcome tells who has which coupon, after a look at the numbers.
func (p play) outcome(s *session) string {
	s.t.Helper()
	var all strings.Builder
	for _, coupon := range list[string](s, "select name from public.coupons order by name") {
		fmt.Fprintf(&all, " %s:%s", coupon, strings.Join(s.claims(coupon), ","))
	}
	return all.String()
}

func (p play) statements(step, level string) []string {
	session, actions, _ := strings.Cut(step, ":")
	user := p.users[session]
	if user == "" {
		user = strings.ToLower(session)
	}
	var all []string
	for action := range strings.SplitSeq(actions, "+") {
		var sql string
		switch {
		case action == "begin":
			sql = "begin isolation level " + level
		case action == "commit", action == "rollback":
			sql = action
		case action == "savepoint":
			sql = "savepoint s"
		case action == "back":
			sql = "rollback to savepoint s"
		case strings.HasPrefix(action, "?"):
			sql = "select remaining_amount from public.get_coupon('" + action[1:] + "')"
		case strings.HasPrefix(action, "create-"):
			sql = "select public.create_coupon('" + action[7:] + "', 1)"
		case strings.HasPrefix(action, "delete-"):
			sql = "delete from public.coupons where name = '" + action[7:] + "'"
		case strings.Contains(action, ","):
			coupons := strings.ReplaceAll(action, ",", "', '")
			users := strings.Join(same(user, strings.Count(action, ",")+1), "', '")
			sql = "select status from public.claim_batch(array['" + users + "'], array['" + coupons + "'], array[1, 2])"
		default:
			sql = "select public.claim_coupon('" + user + "', '" + action + "')"
		}
		all = append(all, sql)
	}
	return all
}

func sortedKeys[V any](m map[string]V) []string {
	var all []string
	for key := range m {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}
