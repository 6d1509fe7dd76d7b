package db_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// spec is an isolation test: sessions, each with steps, that run in every permutation.
//
// A step is "begin", "commit", "rollback", "x" (claim coupon x for the session's user), "x,y"
// (claim both in one claim_batch), "?x" (read what is left of x), "savepoint", "back" (roll back to
// the savepoint), "create-z" or "delete-x" (a coupon). "begin+x" is two statements in one step. A
// step outside of a transaction block is a transaction of its own, read committed.
type spec struct {
	name     string
	coupons  map[string]int    // the setup: coupons by name, with their stock
	users    map[string]string // the user of a session, if not its name in lower case
	sessions []string          // the steps of each session: "A: begin x commit"
	results  []result
}

// result is the expected result at one or several isolation levels of "begin", comma-separated: one
// line per permutation, with what each step returns and, in the last column, the users that have
// the coupons at the end, in claim order.
type result struct{ levels, traces string }

// TestIsolation runs every permutation of the steps of each spec that is possible: the next step of
// a session that waits cannot run before the waiting step returns. "x..." means that step x waits,
// and "x=…" is what it returns.
func TestIsolation(t *testing.T) {
	t.Parallel()
	for _, spec := range specs {
		for _, result := range spec.results {
			for level := range strings.SplitSeq(result.levels, ", ") {
				t.Run(spec.name+", "+level, func(t *testing.T) {
					t.Parallel()
					got, want := spec.run(t, level), lines(result.traces)
					if !slices.Equal(got, want) {
						t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				})
			}
		}
	}
}

// Every trace in docs/transactions.md is a line of the specs.
func TestIsolation_documentedTraces(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/transactions.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, spec := range specs {
		for _, result := range spec.results {
			all = append(all, lines(result.traces)...)
		}
	}
	shown := 0
	for part := range strings.SplitSeq(string(page), "```text\n") {
		traces, _, isBlock := strings.Cut(part, "```")
		if !isBlock || strings.HasPrefix(part, "#") {
			continue // the text before the first block
		}
		for _, trace := range lines(traces) {
			shown++
			if !slices.Contains(all, trace) {
				t.Errorf("not a line of any spec: %s", trace)
			}
		}
	}
	if shown < 15 {
		t.Errorf("found %d traces on the page, want at least 15", shown)
	}
}

// run runs every permutation and returns the trace of each.
func (s spec) run(t *testing.T, level string) []string {
	t.Helper()
	var sessions [][]string
	var names []string
	for _, session := range s.sessions {
		name, steps, _ := strings.Cut(session, ": ")
		names = append(names, name)
		var own []string
		for step := range strings.FieldsSeq(steps) {
			own = append(own, name+":"+step)
		}
		sessions = append(sessions, own)
	}

	it := newIsolationTester(t, pgtest.New(t), names...)
	var traces []string
	var impossible []string // a prefix of steps that cannot run
	for _, permutation := range permutations(sessions) {
		if impossible != nil && len(permutation) >= len(impossible) && slices.Equal(permutation[:len(impossible)], impossible) {
			continue
		}
		impossible = nil
		it.reset()
		it.control.exec("truncate public.claims, public.coupons")
		for _, name := range sortedKeys(s.coupons) {
			it.control.create(name, s.coupons[name])
		}
		for i, step := range permutation {
			if !it.run(step, s.statements(step, level)...) {
				impossible = permutation[:i+1]
				break
			}
		}
		if impossible == nil {
			traces = append(traces, strings.Join(it.trace, " ")+" |"+s.claims(it.control))
		}
	}
	it.reset()
	return traces
}

// claims returns the users that have each coupon, and checks the claim numbers and the stock.
func (s spec) claims(control *session) string {
	control.t.Helper()
	var all strings.Builder
	for _, coupon := range list[string](control, "select name from public.coupons order by name") {
		fmt.Fprintf(&all, " %s:%s", coupon, strings.Join(control.claims(coupon), ","))
	}
	return all.String()
}

// statements returns the SQL of a step such as "A:begin+x".
func (s spec) statements(step, level string) []string {
	session, actions, _ := strings.Cut(step, ":")
	user := s.users[session]
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
