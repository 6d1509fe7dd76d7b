package check

import (
	"slices"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
)

// answer is an answer to record: the claim was sent and answered at these milliseconds.
type answer struct {
	user           string
	answer         load.Answer
	sent, answered int
}

// The users are a, b and c, and the stock is 2.
func TestChecker_Check(t *testing.T) {
	var (
		internal = load.Answer{Status: 500, Code: "INTERNAL"}
		correct  = []answer{{"a", load.Claimed, 0, 10}, {"b", load.Claimed, 5, 15}, {"c", load.OutOfStock, 6, 16}}
		report   = func(remaining int, claimedBy ...string) load.Coupon {
			return load.Coupon{Name: "sale", Amount: 2, Remaining: remaining, ClaimedBy: claimedBy}
		}
		with = func(a []answer, more ...answer) []answer { return append(slices.Clone(a), more...) }
	)
	const oversold = "the service reports the same winners: 3 users in claimed_by, for a stock of 2"
	tests := map[string]struct {
		answers  []answer
		reported load.Coupon
		want     []string // all violations
	}{
		"correct":                  {correct, report(0, "a", "b"), nil},
		"in the other order":       {correct, report(0, "b", "a"), nil},
		"repeated claims":          {with(correct, answer{"a", load.AlreadyClaimed, 11, 12}, answer{"c", load.OutOfStock, 17, 18}), report(0, "a", "b"), nil},
		"concurrent claims":        {with(correct, answer{"a", load.AlreadyClaimed, 1, 2}), report(0, "a", "b"), nil},
		"retried claims":           {with(correct, answer{"c", load.Overloaded, 0, 1}, answer{"c", load.Unavailable, 2, 3}, answer{"c", load.NotSent, 4, 5}), report(0, "a", "b"), nil},
		"no answer, committed":     {[]answer{{"a", load.Claimed, 0, 10}, {"b", load.Cut, 0, 5}, {"b", load.AlreadyClaimed, 6, 15}, {"c", load.OutOfStock, 6, 16}}, report(0, "b", "a"), nil},
		"no answer, not committed": {with(correct, answer{"c", load.TimedOut, 0, 5}, answer{"b", load.OutcomeUnknown, 0, 4}), report(0, "a", "b"), nil},

		"one too many": {
			[]answer{{"a", load.Claimed, 0, 10}, {"b", load.Claimed, 5, 15}, {"c", load.Claimed, 6, 16}}, report(-1, "a", "b", "c"),
			[]string{"exactly 2 users won: 3 won", oversold},
		},
		"one too few": {
			[]answer{{"a", load.Claimed, 0, 10}, {"b", load.OutOfStock, 5, 15}, {"c", load.OutOfStock, 6, 16}}, report(1, "a"),
			[]string{"exactly 2 users won: 1 won", "the service reports the same winners: OUT_OF_STOCK was answered, and 1 of 2 are claimed"},
		},
		"one user twice": {
			with(correct, answer{"a", load.Claimed, 1, 11}), report(0, "a", "b"),
			[]string{"no user won twice: a got 201 2 times"},
		},
		"listed twice": {
			correct, report(-1, "a", "b", "a"),
			[]string{"no user won twice: a is in claimed_by twice", oversold},
		},
		"no definite answer": {
			with(correct[:2], answer{"c", load.Overloaded, 0, 1}), report(0, "a", "b"),
			[]string{"every user got a definite answer: c got none"},
		},
		"no definite answer, committed": {
			[]answer{{"a", load.Claimed, 0, 10}, {"b", load.OutcomeUnknown, 5, 15}, {"c", load.OutOfStock, 6, 16}}, report(0, "a", "b"),
			[]string{"exactly 2 users won: 1 won", "every user got a definite answer: b got none"},
		},
		"sold out for a winner": {
			with(correct, answer{"a", load.OutOfStock, 20, 21}), report(0, "a", "b"),
			[]string{"no answer contradicts another: a got OUT_OF_STOCK, and 201 or ALREADY_CLAIMED", "the service reports the same winners: claimed_by has a, and their answers say that they did not win"},
		},
		"already claimed without a claim": {
			[]answer{{"a", load.Claimed, 0, 10}, {"b", load.Claimed, 5, 15}, {"c", load.AlreadyClaimed, 6, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: c got ALREADY_CLAIMED, and none of their claims can have succeeded", "the service reports the same winners: c got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		},
		"already claimed before the claim": {
			[]answer{{"a", load.AlreadyClaimed, 0, 5}, {"a", load.Claimed, 6, 10}, {"b", load.Claimed, 5, 15}, {"c", load.OutOfStock, 7, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: a got ALREADY_CLAIMED before they sent the claim that succeeded"},
		},
		"stock that grew": {
			[]answer{{"c", load.OutOfStock, 0, 4}, {"a", load.Claimed, 0, 10}, {"b", load.Claimed, 5, 15}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: b got 201 for a claim sent after the first OUT_OF_STOCK"},
		},
		"internal error": {
			with(correct, answer{"c", internal, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c got 500 INTERNAL"},
		},
		"coupon not found": {
			with(correct, answer{"c", load.CouponNotFound, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c got COUPON_NOT_FOUND for a claim sent when the coupon existed"},
		},
		"a winner is missing": {
			correct, report(1, "a"),
			[]string{"the service reports the same winners: OUT_OF_STOCK was answered, and 1 of 2 are claimed", "the service reports the same winners: b got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		},
		"a loser is listed": {
			correct, report(-1, "a", "b", "c"),
			[]string{oversold, "the service reports the same winners: claimed_by has c, and their answers say that they did not win"},
		},
		"a loser is listed, after no answer": {
			with(correct, answer{"c", load.Cut, 0, 1}), report(-1, "a", "b", "c"),
			[]string{oversold, "the service reports the same winners: claimed_by has c, and their answers say that they did not win"},
		},
		"an unknown user": {
			correct, report(-1, "a", "b", "mallory"),
			[]string{oversold, `the service reports the same winners: claimed_by has "mallory", which is not a user of this sale`},
		},
		"out of order": {
			[]answer{{"a", load.Claimed, 0, 4}, {"b", load.Claimed, 5, 15}, {"c", load.OutOfStock, 6, 16}}, report(0, "b", "a"),
			[]string{"the service reports the same winners: a is number 2 in claimed_by, and was answered 201 before an earlier winner sent their claim"},
		},
		"stock that does not add up": {
			correct, report(1, "a", "b"),
			[]string{"the service reports the same winners: remaining_amount is 1, want 0 with 2 users in claimed_by"},
		},
		"not stored": {
			correct, load.Coupon{},
			[]string{"the service reports the same winners: the coupon exists according to its answers, and is not stored",
				"the service reports the same winners: a got 201 or ALREADY_CLAIMED, and is not in claimed_by",
				"the service reports the same winners: b got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		},
		"another coupon": {
			correct, load.Coupon{Name: "Sale", Amount: 3, Remaining: 0, ClaimedBy: []string{"a", "b"}},
			[]string{`the service reports the same winners: name is "Sale", want "sale"`, "the service reports the same winners: amount is 3, want 2"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := New("sale", 2, []string{"a", "b", "c"})
			at := func(ms int) time.Time { return c.started.Add(time.Duration(ms) * time.Millisecond) }
			for _, a := range test.answers {
				c.Record(a.user, a.answer, at(a.sent), at(a.answered))
			}
			r := c.Check(test.reported)
			var got []string
			for _, g := range r.Guarantees() {
				for _, e := range g.Examples {
					got = append(got, g.Text+": "+e)
				}
				if g.Violations != len(g.Examples) {
					t.Errorf("%s: %d violations, %d examples", g.Text, g.Violations, len(g.Examples))
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("violations\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(test.want, "\n  "))
			}
			if r.OK() != (test.want == nil) {
				t.Errorf("OK is %v", r.OK())
			}
		})
	}
}

func TestResult_ambiguous(t *testing.T) {
	c := New("sale", 3, nil)
	for user, answers := range map[string][]load.Answer{
		"committed":              {load.Cut, load.AlreadyClaimed},
		"not committed, claimed": {load.TimedOut, load.Claimed},
		"not committed":          {load.OutcomeUnknown, load.OutOfStock},
		"unresolved":             {load.OutcomeUnknown},
		"never ambiguous":        {load.OutOfStock},
	} {
		for _, answer := range answers {
			c.Record(user, answer, time.Time{}, time.Time{})
		}
	}
	r := c.Check(load.Coupon{})
	if r.Ambiguous != 4 || r.AmbiguousWon != 1 || r.Unresolved != 1 || r.Winners != 2 {
		t.Errorf("%+v", r)
	}
}

// A coupon may be created while it is claimed.
func TestChecker_RecordCreation(t *testing.T) {
	type answers []load.Answer
	stored := load.Coupon{Name: "c", Amount: 2, Remaining: 1, ClaimedBy: []string{"u"}}
	const missing, notRequested = "the coupon exists according to its answers, and is not stored", "the coupon is stored, and its creation was answered as not executed"
	for name, test := range map[string]struct {
		creations, claims answers // the claims are sent after the creations
		stored            load.Coupon
		kind              Kind
		want              string
	}{
		"created":               {answers{load.Created}, answers{load.Claimed}, stored, "", ""},
		"created before":        {answers{load.Unavailable, load.CouponExists}, answers{load.Claimed}, stored, "", ""},
		"unknown, stored":       {answers{load.Cut}, answers{load.CouponNotFound, load.Claimed}, stored, "", ""},
		"unknown, not stored":   {answers{load.Cut}, answers{load.CouponNotFound}, load.Coupon{}, "", ""},
		"not created":           {answers{load.Unavailable}, answers{load.CouponNotFound}, load.Coupon{}, "", ""},
		"lost":                  {answers{load.Created}, answers{load.Cut}, load.Coupon{}, Lost, missing},
		"not requested":         {answers{load.Unavailable}, answers{load.Claimed}, stored, Unrequested, notRequested},
		"not found":             {answers{load.Created}, answers{load.CouponNotFound, load.Claimed}, stored, Contradiction, "u got COUPON_NOT_FOUND for a claim sent when the coupon existed"},
		"a lost claim":          {answers{load.Cut}, answers{load.Claimed}, load.Coupon{}, Lost, "u got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		"another stored amount": {answers{load.Created}, answers{load.Claimed}, load.Coupon{Name: "c", Amount: 3, Remaining: 1, ClaimedBy: []string{"u"}}, Inconsistent, "amount is 3, want 2"},
	} {
		t.Run(name, func(t *testing.T) {
			c := New("c", 2, nil)
			now := time.Now()
			for _, answer := range test.creations {
				c.RecordCreation(answer, now)
			}
			for _, answer := range test.claims {
				now = now.Add(time.Second)
				c.Record("u", answer, now, now)
			}
			r := c.Check(test.stored)
			err := r.Err(WrongCount, Undecided)
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (r.Count(test.kind) != 1 || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v, want %s: %s", err, test.kind, test.want)
			}
		})
	}
}

func TestAll(t *testing.T) {
	record := func(coupon string, stock int, user string, answer load.Answer) *Checker {
		c := New(coupon, stock, nil)
		c.Record(user, answer, time.Time{}, time.Time{})
		return c
	}
	checkers := []*Checker{record("a", 1, "u", load.Claimed), record("b", 1, "v", load.Claimed), record("c", 5, "w", load.Claimed)}
	stored := map[string]load.Coupon{
		"a": {Name: "a", Amount: 1, ClaimedBy: []string{"u"}},
		"b": {Name: "b", Amount: 1, ClaimedBy: []string{"v"}},
		"c": {Name: "c", Amount: 5, Remaining: 4, ClaimedBy: []string{"w"}},
	}
	if r := All(checkers, stored); !r.OK() || r.Winners != 3 || r.Guarantees()[0].Text != "exactly 3 users won" {
		t.Errorf("%+v", r)
	}
	stored["b"] = load.Coupon{Name: "b", Amount: 1, Remaining: 1}
	stored["d"] = load.Coupon{Name: "d", Amount: 1, Remaining: 1}
	r := All(checkers, stored)
	want := []string{`coupon "b": v got 201 or ALREADY_CLAIMED, and is not in claimed_by`, `coupon "d" is stored, and was not created`}
	if g := r.Guarantees()[4]; r.Count(Lost) != 1 || r.Count(Unrequested) != 1 || !slices.Equal(g.Examples, want) {
		t.Errorf("%+v", r)
	}
}

func TestTotals(t *testing.T) {
	coupon := func(remaining int, claimedBy ...string) load.Coupon {
		return load.Coupon{Name: "c", Amount: 3, Remaining: remaining, ClaimedBy: claimedBy}
	}
	for name, test := range map[string]struct {
		granted, ambiguous int
		stored             []load.Coupon
		want               string
	}{
		"equal":            {3, 0, []load.Coupon{coupon(1, "a", "b"), coupon(2, "c")}, ""},
		"ambiguous":        {1, 2, []load.Coupon{coupon(1, "a", "b")}, ""},
		"lost":             {3, 5, []load.Coupon{coupon(1, "a", "b")}, "3 claims were answered 201, and 2 are stored"},
		"not requested":    {1, 0, []load.Coupon{coupon(1, "a", "b")}, "2 claims are stored, 1 were answered 201"},
		"twice":            {2, 0, []load.Coupon{coupon(1, "a", "a")}, `coupon "c": 1 users are in claimed_by twice`},
		"more than it has": {4, 0, []load.Coupon{coupon(-1, "a", "b", "c", "d")}, "4 users in claimed_by, for a stock of 3"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Totals(test.granted, test.ambiguous, test.stored...)
			if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestResult_maxExamples(t *testing.T) {
	c := New("sale", 1, load.Users(1000))
	r := c.Check(load.Coupon{Name: "sale", Amount: 1, Remaining: 1, ClaimedBy: []string{}})
	if g := r.Guarantees()[2]; g.Text != "every user got a definite answer" || g.Violations != 1000 || len(g.Examples) != maxExamples {
		t.Errorf("%+v", g)
	}
}
