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
	user           int
	answer         load.Answer
	sent, answered int
}

// The users are a, b and c, and the stock is 2.
func TestChecker_Check(t *testing.T) {
	var (
		internal = load.Answer{Status: 500, Code: "INTERNAL"}
		correct  = []answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 6, 16}}
		report   = func(remaining int, claimedBy ...string) load.Coupon {
			return load.Coupon{Name: "sale", Amount: 2, Remaining: remaining, ClaimedBy: claimedBy}
		}
		with = func(a []answer, more ...answer) []answer { return append(slices.Clone(a), more...) }
	)
	tests := map[string]struct {
		answers  []answer
		reported load.Coupon
		want     []string // all violations
	}{
		"correct":                  {correct, report(0, "a", "b"), nil},
		"in the other order":       {correct, report(0, "b", "a"), nil},
		"repeated claims":          {with(correct, answer{0, load.AlreadyClaimed, 11, 12}, answer{2, load.OutOfStock, 17, 18}), report(0, "a", "b"), nil},
		"concurrent claims":        {with(correct, answer{0, load.AlreadyClaimed, 1, 2}), report(0, "a", "b"), nil},
		"retried claims":           {with(correct, answer{2, load.Overloaded, 0, 1}, answer{2, load.Unavailable, 2, 3}, answer{2, load.NotSent, 4, 5}), report(0, "a", "b"), nil},
		"no answer, committed":     {[]answer{{0, load.Claimed, 0, 10}, {1, load.Cut, 0, 5}, {1, load.AlreadyClaimed, 6, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "b", "a"), nil},
		"no answer, not committed": {with(correct, answer{2, load.TimedOut, 0, 5}, answer{1, load.OutcomeUnknown, 0, 4}), report(0, "a", "b"), nil},

		"one too many": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.Claimed, 6, 16}}, report(-1, "a", "b", "c"),
			[]string{"exactly 2 users won: 3 won"},
		},
		"one too few": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.OutOfStock, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(1, "a"),
			[]string{"exactly 2 users won: 1 won"},
		},
		"one user twice": {
			with(correct, answer{0, load.Claimed, 1, 11}), report(0, "a", "b"),
			[]string{"no user won twice: a got 201 2 times"},
		},
		"listed twice": {
			correct, report(-1, "a", "b", "a"),
			[]string{"no user won twice: a is in claimed_by twice"},
		},
		"no definite answer": {
			with(correct[:2], answer{2, load.Overloaded, 0, 1}), report(0, "a", "b"),
			[]string{"every user got a definite answer: c got none"},
		},
		"no definite answer, committed": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.OutcomeUnknown, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "a", "b"),
			[]string{"exactly 2 users won: 1 won", "every user got a definite answer: b got none"},
		},
		"sold out for a winner": {
			with(correct, answer{0, load.OutOfStock, 20, 21}), report(0, "a", "b"),
			[]string{"no answer contradicts another: a got OUT_OF_STOCK, and 201 or ALREADY_CLAIMED", "the service reports the same winners: claimed_by has a, and their answers say that they did not win"},
		},
		"already claimed without a claim": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.AlreadyClaimed, 6, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: c got ALREADY_CLAIMED, and none of their claims can have succeeded", "the service reports the same winners: c got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		},
		"already claimed before the claim": {
			[]answer{{0, load.AlreadyClaimed, 0, 5}, {0, load.Claimed, 6, 10}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 7, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: a got ALREADY_CLAIMED before they sent the claim that succeeded"},
		},
		"stock that grew": {
			[]answer{{2, load.OutOfStock, 0, 4}, {0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: b got 201 for a claim sent after the first OUT_OF_STOCK"},
		},
		"internal error": {
			with(correct, answer{2, internal, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c got 500 INTERNAL"},
		},
		"coupon not found": {
			with(correct, answer{2, load.CouponNotFound, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c got 404 COUPON_NOT_FOUND"},
		},
		"not HTTP": {
			with(correct, answer{2, load.Malformed, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c got no answer (MALFORMED)"},
		},
		"a winner is missing": {
			correct, report(1, "a"),
			[]string{"the service reports the same winners: b got 201 or ALREADY_CLAIMED, and is not in claimed_by"},
		},
		"a loser is listed": {
			correct, report(-1, "a", "b", "c"),
			[]string{"the service reports the same winners: claimed_by has c, and their answers say that they did not win"},
		},
		"a loser is listed, after no answer": {
			with(correct, answer{2, load.Cut, 0, 1}), report(-1, "a", "b", "c"),
			[]string{"the service reports the same winners: claimed_by has c, and their answers say that they did not win"},
		},
		"an unknown user": {
			correct, report(-1, "a", "b", "mallory"),
			[]string{`the service reports the same winners: claimed_by has "mallory", which is not a user of this sale`},
		},
		"out of order": {
			[]answer{{0, load.Claimed, 0, 4}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "b", "a"),
			[]string{"the service reports the same winners: a is number 2 in claimed_by, and was answered 201 before an earlier winner sent their claim"},
		},
		"stock that does not add up": {
			correct, report(1, "a", "b"),
			[]string{"the service reports the same winners: remaining_amount is 1, want 0 with 2 users in claimed_by"},
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
			for _, g := range r.Guarantees {
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

func TestChecker_ambiguous(t *testing.T) {
	c := New("sale", 3, []string{"a", "b", "c", "d", "e"})
	now := time.Now()
	for _, a := range []answer{
		{0, load.Cut, 0, 0}, {0, load.AlreadyClaimed, 0, 0}, // committed
		{1, load.TimedOut, 0, 0}, {1, load.Claimed, 0, 0}, // not committed, and then claimed
		{2, load.OutcomeUnknown, 0, 0}, {2, load.OutOfStock, 0, 0}, // not committed
		{3, load.OutcomeUnknown, 0, 0}, // unresolved
		{4, load.OutOfStock, 0, 0},
	} {
		c.Record(a.user, a.answer, now, now)
	}
	r := c.Check(load.Coupon{})
	if r.Ambiguous != 4 || r.AmbiguousWon != 1 || r.Unresolved != 1 || r.Winners != 2 {
		t.Errorf("%+v", r)
	}
}

func TestGuarantee_maxExamples(t *testing.T) {
	c := New("sale", 1, load.Users(1000))
	r := c.Check(load.Coupon{Name: "sale", Amount: 1, Remaining: 1, ClaimedBy: []string{}})
	if g := r.Guarantees[2]; g.Text != "every user got a definite answer" || g.Violations != 1000 || len(g.Examples) != maxExamples {
		t.Errorf("%+v", g)
	}
}
