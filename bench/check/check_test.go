package check

import (
	"slices"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
)

// answer is one line of a book: user was answered so, having asked and having been answered at these milliseconds.
type answer struct {
	user     int
	what     load.Answer
	from, to int
}

// The users of these tests are a, b and c, the stock is 2, and nothing is said where the sale was exact.
func TestCompare(t *testing.T) {
	var (
		internal = load.Answer{Status: 500, Code: "INTERNAL"}
		exact    = []answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 6, 16}}
		report   = func(remaining int, claimedBy ...string) load.Coupon {
			return load.Coupon{Name: "sale", Amount: 2, Remaining: remaining, ClaimedBy: claimedBy}
		}
		with = func(a []answer, more ...answer) []answer { return append(slices.Clone(a), more...) }
	)
	tests := map[string]struct {
		answers  []answer
		reported load.Coupon
		broken   []string // what must be said, and nothing else
	}{
		"exact":                 {exact, report(0, "a", "b"), nil},
		"in the other order":    {exact, report(0, "b", "a"), nil},
		"asked again and again": {with(exact, answer{0, load.AlreadyClaimed, 11, 12}, answer{2, load.OutOfStock, 17, 18}), report(0, "a", "b"), nil},
		"asked twice at once":   {with(exact, answer{0, load.AlreadyClaimed, 1, 2}), report(0, "a", "b"), nil},
		"refused for a while":   {with(exact, answer{2, load.Overloaded, 0, 1}, answer{2, load.Unavailable, 2, 3}, answer{2, load.NotSent, 4, 5}), report(0, "a", "b"), nil},
		"lost, and it had won":  {[]answer{{0, load.Claimed, 0, 10}, {1, load.Cut, 0, 5}, {1, load.AlreadyClaimed, 6, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "b", "a"), nil},
		"lost, and it had not":  {with(exact, answer{2, load.TimedOut, 0, 5}, answer{1, load.OutcomeUnknown, 0, 4}), report(0, "a", "b"), nil},

		"one too many": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.Claimed, 6, 16}}, report(-1, "a", "b", "c"),
			[]string{"exactly 2 won: 3 did"},
		},
		"one too few": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.OutOfStock, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(1, "a"),
			[]string{"exactly 2 won: 1 did"},
		},
		"one user twice": {
			with(exact, answer{0, load.Claimed, 1, 11}), report(0, "a", "b"),
			[]string{"nobody won twice: a was told 201 2 times"},
		},
		"listed twice": {
			exact, report(-1, "a", "b", "a"),
			[]string{"nobody won twice: a stands in claimed_by twice"},
		},
		"never told": {
			with(exact[:2], answer{2, load.Overloaded, 0, 1}), report(0, "a", "b"),
			[]string{"all 3 users were told: c never had a clear answer"},
		},
		"never told, and it had won": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.OutcomeUnknown, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "a", "b"),
			[]string{"exactly 2 won: 1 did", "all 3 users were told: b never had a clear answer"},
		},
		"sold out to a winner": {
			with(exact, answer{0, load.OutOfStock, 20, 21}), report(0, "a", "b"),
			[]string{"no answer contradicts another: a was told both that it is sold out and that he has it", "the service reports the same: claimed_by has a, who was never told so"},
		},
		"already, out of nothing": {
			[]answer{{0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}, {2, load.AlreadyClaimed, 6, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: c was told 409 though no claim of his had won", "the service reports the same: c was told that he has it, and is not in claimed_by"},
		},
		"already, before it won": {
			[]answer{{0, load.AlreadyClaimed, 0, 5}, {0, load.Claimed, 6, 10}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 7, 16}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: a was told 409 before he sent the claim that won"},
		},
		"stock that grew again": {
			[]answer{{2, load.OutOfStock, 0, 4}, {0, load.Claimed, 0, 10}, {1, load.Claimed, 5, 15}}, report(0, "a", "b"),
			[]string{"no answer contradicts another: b won with a claim sent after somebody was told that it is sold out"},
		},
		"a fault of theirs": {
			with(exact, answer{2, internal, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c was answered 500 INTERNAL"},
		},
		"no such coupon": {
			with(exact, answer{2, load.CouponNotFound, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c was answered 404 COUPON_NOT_FOUND"},
		},
		"no HTTP": {
			with(exact, answer{2, load.Malformed, 0, 1}), report(0, "a", "b"),
			[]string{"no answer contradicts another: c was answered no answer (MALFORMED)"},
		},
		"a winner lost": {
			exact, report(1, "a"),
			[]string{"the service reports the same: b was told that he has it, and is not in claimed_by"},
		},
		"a loser listed": {
			exact, report(-1, "a", "b", "c"),
			[]string{"the service reports the same: claimed_by has c, who was never told so"},
		},
		"a loser listed, lost or not": {
			with(exact, answer{2, load.Cut, 0, 1}), report(-1, "a", "b", "c"),
			[]string{"the service reports the same: claimed_by has c, who was never told so"},
		},
		"a stranger": {
			exact, report(-1, "a", "b", "mallory"),
			[]string{`the service reports the same: claimed_by has "mallory", who never asked`},
		},
		"out of order": {
			[]answer{{0, load.Claimed, 0, 4}, {1, load.Claimed, 5, 15}, {2, load.OutOfStock, 6, 16}}, report(0, "b", "a"),
			[]string{"the service reports the same: a is number 2 of claimed_by, but had won before one further up asked"},
		},
		"stock that does not add up": {
			exact, report(1, "a", "b"),
			[]string{"the service reports the same: remaining_amount is 1 and not 0, with 2 in claimed_by"},
		},
		"another coupon": {
			exact, load.Coupon{Name: "Sale", Amount: 3, Remaining: 0, ClaimedBy: []string{"a", "b"}},
			[]string{`the service reports the same: its name is "Sale"`, "the service reports the same: amount is 3"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := New("sale", 2, []string{"a", "b", "c"})
			at := func(ms int) time.Time { return b.opened.Add(time.Duration(ms) * time.Millisecond) }
			for _, a := range test.answers {
				b.Record(a.user, a.what, at(a.from), at(a.to))
			}
			v := b.Check(test.reported)
			var said []string
			for _, p := range v.Guarantees {
				for _, e := range p.Examples {
					said = append(said, p.Text+": "+e)
				}
				if p.Violations != len(p.Examples) {
					t.Errorf("%s: broken %d times, %d examples", p.Text, p.Violations, len(p.Examples))
				}
			}
			if !slices.Equal(said, test.broken) {
				t.Errorf("said\n  %s\nwant\n  %s", strings.Join(said, "\n  "), strings.Join(test.broken, "\n  "))
			}
			if v.OK() != (test.broken == nil) {
				t.Errorf("kept: %v", v.OK())
			}
		})
	}
}

func TestCompareCountsTheUnsure(t *testing.T) {
	b := New("sale", 3, []string{"a", "b", "c", "d", "e"})
	now := time.Now()
	for _, a := range []answer{
		{0, load.Cut, 0, 0}, {0, load.AlreadyClaimed, 0, 0}, // had won
		{1, load.TimedOut, 0, 0}, {1, load.Claimed, 0, 0}, // had not, won now
		{2, load.OutcomeUnknown, 0, 0}, {2, load.OutOfStock, 0, 0}, // had not
		{3, load.OutcomeUnknown, 0, 0}, // never found out
		{4, load.OutOfStock, 0, 0},
	} {
		b.Record(a.user, a.what, now, now)
	}
	v := b.Check(load.Coupon{})
	if v.Ambiguous != 4 || v.AmbiguousWon != 1 || v.Unresolved != 1 || v.Winners != 2 {
		t.Errorf("%+v", v)
	}
}

func TestExamplesAreFew(t *testing.T) {
	b := New("sale", 1, load.Users(1000))
	v := b.Check(load.Coupon{Name: "sale", Amount: 1, Remaining: 1, ClaimedBy: []string{}})
	if p := v.Guarantees[2]; p.Text != "all 1,000 users were told" || p.Violations != 1000 || len(p.Examples) != maxExamples {
		t.Errorf("%+v", p)
	}
}
