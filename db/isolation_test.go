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
// the savepoint) or "create-z" (a coupon). By hand, without our functions: "delete-x", "rename-x",
// "lower-x" (the amount, by one), "truncate" (the coupons), and "insert-x-2" (claim number 2 of x).
// "begin+x" is two statements in one step. A step outside of a transaction block is a transaction
// of its own, read committed.
type spec struct {
	name     string
	coupons  map[string]int    // the setup: coupons by name, with their stock
	users    map[string]string // the user of a session, if not its name in lower case
	sessions []string          // the steps of each session: "A: begin x commit"
	byHand   bool              // claims are inserted by hand, and do not change the stock
	results  []result
}

// claimFunctions are three ways to claim one coupon for one user. Every spec has the same results
// with each.
var claimFunctions = map[string]string{
	"claim_coupon":  "select coupond.claim_coupon('%s', '%s')",
	"claim_coupons": "select (coupond.claim_coupons(array['%s'], '%s'))[1]",
	"claim_batch":   "select status from coupond.claim_batch(array['%s'], array['%s'], array[1])",
}

// result is the expected result at one or several isolation levels of "begin", comma-separated: one
// line per permutation, with what each step returns and, in the last column, the users that have
// the coupons at the end, in claim order. A line that begins with "or" is another result of the line
// before it: of two sessions that wait for one row, PostgreSQL lets either go first, since the
// first in the queue gives up its place before it locks the new version of the row.
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
					database := pgtest.New(t)
					for function, call := range claimFunctions {
						if spec.byHand && function != "claim_coupon" {
							continue // no step calls it
						}
						got, want := spec.run(t, database, level, call), alternatives(result.traces)
						if !slices.EqualFunc(got, want, func(trace string, any []string) bool { return slices.Contains(any, trace) }) {
							t.Errorf("%s: got\n%s\nwant\n%s", function, strings.Join(got, "\n"), result.traces)
						}
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
			all = append(all, slices.Concat(alternatives(result.traces)...)...)
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

// alternatives returns the traces that each permutation may have.
func alternatives(traces string) [][]string {
	var all [][]string
	for _, line := range lines(traces) {
		if trace, isOther := strings.CutPrefix(line, "or "); isOther {
			all[len(all)-1] = append(all[len(all)-1], trace)
		} else {
			all = append(all, []string{line})
		}
	}
	return all
}

// run runs every permutation and returns the trace of each. call is one of claimFunctions.
func (s spec) run(t *testing.T, database *pgtest.Database, level, call string) []string {
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

	it := newIsolationTester(t, database, names...)
	var traces []string
	var impossible []string // a prefix of steps that cannot run
	for _, permutation := range permutations(sessions) {
		if impossible != nil && len(permutation) >= len(impossible) && slices.Equal(permutation[:len(impossible)], impossible) {
			continue
		}
		impossible = nil
		it.reset()
		it.control.exec("truncate coupond.claims, coupond.coupons")
		for _, name := range sortedKeys(s.coupons) {
			it.control.create(name, s.coupons[name])
		}
		for i, step := range permutation {
			if !it.run(step, s.statements(step, level, call)...) {
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

// claims returns the users that have each coupon. It checks that each claim's coupon exists and has
// its claim number, and, unless claims were inserted by hand, all claim numbers and the stock.
func (s spec) claims(control *session) string {
	control.t.Helper()
	if n := get[int](control, `
		select count(*)
		from coupond.claims as k
		left join coupond.coupons as c on c.name = k.coupon_name
		where k.claim_number <= c.amount is not true`); n != 0 {
		control.t.Errorf("%d claims without a coupon, or above its amount", n)
	}
	var all strings.Builder
	for _, coupon := range list[string](control, "select name from coupond.coupons order by name") {
		users := list[string](control, "select user_id from coupond.claims where coupon_name = $1 order by claim_number", coupon)
		if !s.byHand {
			users = control.claims(coupon)
		}
		fmt.Fprintf(&all, " %s:%s", coupon, strings.Join(users, ","))
	}
	return all.String()
}

// statements returns the SQL of a step such as "A:begin+x".
func (s spec) statements(step, level, call string) []string {
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
			sql = "select remaining_amount from coupond.get_coupon('" + action[1:] + "')"
		case strings.HasPrefix(action, "create-"):
			sql = "select coupond.create_coupon('" + action[7:] + "', 1)"
		case action == "truncate":
			sql = "truncate coupond.coupons"
		case strings.HasPrefix(action, "delete-"):
			sql = "delete from coupond.coupons where name = '" + action[7:] + "'"
		case strings.HasPrefix(action, "rename-"):
			sql = "update coupond.coupons set name = 'renamed' where name = '" + action[7:] + "'"
		case strings.HasPrefix(action, "lower-"):
			sql = "update coupond.coupons set amount = amount - 1, remaining_amount = remaining_amount - 1 where name = '" + action[6:] + "'"
		case strings.HasPrefix(action, "insert-"):
			coupon, number, _ := strings.Cut(action[7:], "-")
			sql = fmt.Sprintf("insert into coupond.claims (coupon_name, claim_number, user_id) values ('%s', %s, '%s')", coupon, number, user)
		case strings.Contains(action, ","):
			coupons := strings.ReplaceAll(action, ",", "', '")
			users := strings.Join(same(user, strings.Count(action, ",")+1), "', '")
			sql = "select status from coupond.claim_batch(array['" + users + "'], array['" + coupons + "'], array[1, 2])"
		default:
			sql = fmt.Sprintf(call, user, action)
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
