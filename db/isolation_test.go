package db_test

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// spec is an isolation test of testdata/isolation.txt, which explains it.
type spec struct {
	name     string
	coupons  map[string]string // the stock by name
	users    map[string]string // the user by session
	byHand   bool              // claims are inserted by hand, and do not change the stock
	sessions []string          // the steps of each session: "A: begin x commit"
	results  []result
}

// result is the result at one or several isolation levels: for each permutation that is possible,
// the traces that it may have.
type result struct {
	levels []string
	traces [][]string
}

func readSpecs(t *testing.T) []*spec {
	t.Helper()
	text, err := os.ReadFile("testdata/isolation.txt")
	if err != nil {
		t.Fatal(err)
	}
	var specs []*spec
	var s *spec
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		key, rest, _ := strings.Cut(line, " ")
		trace, isTrace := strings.CutPrefix(line, "  ")
		other, isOther := strings.CutPrefix(trace, "or ")
		switch {
		case line == "", key == "#":
		case isTrace && isOther:
			traces := s.results[len(s.results)-1].traces
			traces[len(traces)-1] = append(traces[len(traces)-1], other)
		case isTrace:
			last := &s.results[len(s.results)-1]
			last.traces = append(last.traces, []string{trace})
		case key == "spec":
			s = &spec{name: rest}
			specs = append(specs, s)
		case key == "coupons":
			s.coupons = pairs(rest)
		case key == "users":
			s.users = pairs(rest)
		case line == "claims by hand":
			s.byHand = true
		case strings.HasSuffix(key, ":"):
			s.sessions = append(s.sessions, line)
		default:
			s.results = append(s.results, result{levels: strings.Split(line, ", ")})
		}
	}
	return specs
}

// pairs parses "x=1 y=2".
func pairs(text string) map[string]string {
	all := map[string]string{}
	for pair := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(pair, "=")
		all[key] = value
	}
	return all
}

// claimFunctions are three ways to claim one coupon for one user. Every spec has the same results
// with each.
var claimFunctions = map[string]string{
	"claim_coupon":  "select coupond.claim_coupon('%s', '%s')",
	"claim_coupons": "select (coupond.claim_coupons(array['%s'], '%s'))[1]",
	"claim_batch":   "select status from coupond.claim_batch(array['%s'], array['%s'], array[1])",
}

// TestIsolation runs every permutation of the steps of each spec that is possible: the next step of
// a session that waits cannot run before the waiting step returns.
func TestIsolation(t *testing.T) {
	t.Parallel()
	testers := make(chan *isolationTester, runtime.GOMAXPROCS(0))
	for range cap(testers) {
		testers <- newIsolationTester(t, pgtest.New(t), "A", "B", "C")
	}
	for _, spec := range readSpecs(t) {
		for _, result := range spec.results {
			for _, level := range result.levels {
				t.Run(spec.name+", "+level, func(t *testing.T) {
					t.Parallel()
					tester := <-testers
					defer func() { testers <- tester }()
					for function, call := range claimFunctions {
						if spec.byHand && function != "claim_coupon" {
							continue // no step calls it
						}
						got := spec.run(tester.on(t), level, call)
						if !slices.EqualFunc(got, result.traces, func(trace string, any []string) bool { return slices.Contains(any, trace) }) {
							t.Errorf("%s: got\n%s\nwant\n%s", function, strings.Join(got, "\n"), strings.Join(slices.Concat(result.traces...), "\n"))
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
	for _, spec := range readSpecs(t) {
		for _, result := range spec.results {
			all = append(all, slices.Concat(result.traces...)...)
		}
	}
	shown := 0
	for part := range strings.SplitSeq(string(page), "```text\n") {
		traces, _, isBlock := strings.Cut(part, "```")
		if !isBlock || strings.HasPrefix(part, "#") {
			continue // the text before the first block
		}
		for trace := range strings.Lines(traces) {
			trace, _, _ = strings.Cut(trace, "#")
			if trace = strings.TrimSpace(trace); trace == "" {
				continue
			}
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

// run runs every permutation and returns the trace of each. call is one of claimFunctions.
func (s spec) run(it *isolationTester, level, call string) []string {
	it.t.Helper()
	var sessions [][]string
	for _, session := range s.sessions {
		name, steps, _ := strings.Cut(session, ": ")
		var own []string
		for step := range strings.FieldsSeq(steps) {
			own = append(own, name+":"+step)
		}
		sessions = append(sessions, own)
	}
	setup := "delete from coupond.claims; delete from coupond.coupons"
	for _, name := range slices.Sorted(maps.Keys(s.coupons)) {
		setup += fmt.Sprintf("; select coupond.create_coupon('%s', %s)", name, s.coupons[name])
	}

	var traces []string
	var impossible []string // a prefix of steps that cannot run
	for _, permutation := range permutations(sessions) {
		if impossible != nil && len(permutation) >= len(impossible) && slices.Equal(permutation[:len(impossible)], impossible) {
			continue
		}
		impossible = nil
		it.reset()
		it.control.exec(setup)
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
	var stored string
	var wrong, inexact int
	err := control.QueryRow(bounded(control.t), `
		select
		  (
		    select count(*)
		    from coupond.claims as k
		    left join coupond.coupons as c on c.name = k.coupon_name
		    where k.claim_number <= c.amount is not true
		  ),
		  count(*) filter (where (k.number, k.number) <> (k.last, c.amount - c.remaining_amount)),
		  coalesce(string_agg(' ' || c.name || ':' || k.users, '' order by c.name), '')
		from coupond.coupons as c
		cross join lateral (
		  select count(*) as number, coalesce(max(claim_number), 0) as last, coalesce(string_agg(user_id, ',' order by claim_number), '') as users
		  from coupond.claims
		  where coupon_name = c.name
		) as k`).Scan(&wrong, &inexact, &stored)
	if err != nil || wrong > 0 || (inexact > 0 && !s.byHand) {
		control.t.Errorf("%d claims without a coupon, or above its amount; %d coupons whose claim numbers or stock do not match their claims; %v", wrong, inexact, err)
	}
	return stored
}

// actionSQL is the SQL of actions such as "commit" and "delete-COUPON".
var actionSQL = map[string]string{
	"commit":    "commit",
	"rollback":  "rollback",
	"savepoint": "savepoint s",
	"back":      "rollback to savepoint s",
	"truncate":  "truncate coupond.coupons",
	"create":    "select coupond.create_coupon('COUPON', 1)",
	"delete":    "delete from coupond.coupons where name = 'COUPON'",
	"rename":    "update coupond.coupons set name = 'renamed' where name = 'COUPON'",
	"lower":     "update coupond.coupons set amount = amount - 1, remaining_amount = remaining_amount - 1 where name = 'COUPON'",
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
		verb, coupon, _ := strings.Cut(action, "-")
		sql := strings.ReplaceAll(actionSQL[verb], "COUPON", coupon)
		switch {
		case sql != "":
		case action == "begin":
			sql = "begin isolation level " + level
		case strings.HasPrefix(action, "?"):
			sql = "select remaining_amount from coupond.get_coupon('" + action[1:] + "')"
		case verb == "insert":
			coupon, number, _ := strings.Cut(coupon, "-")
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
