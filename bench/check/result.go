package check

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"

	"scalable-coupon-system/bench/load"
)

// Kind is a kind of violation.
type Kind string

// The kinds of violations. WrongCount and Undecided are violations only if all users claim until
// they get a definite answer.
const (
	WrongCount    Kind = "a number of winners other than the stock or the number of users"
	Duplicate     Kind = "a user that was granted the coupon twice, or has it twice"
	Undecided     Kind = "a user without a definite answer"
	Contradiction Kind = "answers that contradict each other or the contract"
	Lost          Kind = "a claim that was confirmed, and is not stored"
	Unrequested   Kind = "a claim that is stored, and was not made or answered as not executed"
	Oversold      Kind = "more claims stored than the stock"
	Inconsistent  Kind = "stored state that contradicts itself or the answers"
)

// Result is the result of a check.
type Result struct {
	// Winners is the number of users with answers that prove that they have the coupon.
	Winners int
	// Ambiguous is the number of users with an ambiguous answer (no answer, or OUTCOME_UNKNOWN). Of
	// them, AmbiguousWon learned from a later ALREADY_CLAIMED that they had won, and Unresolved
	// never got a definite answer.
	Ambiguous, AmbiguousWon, Unresolved int
	// Violations has each kind of violation that was found.
	Violations []Violation

	coupon   string
	expected int // winners
}

// Violation is a kind of violation that was found.
type Violation struct {
	Kind  Kind
	Count int
	// Examples describes the first few.
	Examples []string
}

// Guarantee is one of the guarantees of a sale.
type Guarantee struct {
	Text       string // says what is guaranteed
	Violations int    // how many there were
	Examples   []string
}

const maxExamples = 3 // of a kind

// OK reports whether nothing was violated.
func (r Result) OK() bool { return len(r.Violations) == 0 }

// Count returns the number of violations of these kinds.
func (r Result) Count(kinds ...Kind) (n int) {
	for _, v := range r.Violations {
		if slices.Contains(kinds, v.Kind) {
			n += v.Count
		}
	}
	return n
}

// Err returns an error with the violations, except those of the given kinds, or nil.
func (r Result) Err(except ...Kind) error {
	var errs []error
	for _, v := range r.Violations {
		if !slices.Contains(except, v.Kind) {
			errs = append(errs, fmt.Errorf("%d × %s: %s", v.Count, v.Kind, strings.Join(v.Examples, "; ")))
		}
	}
	return errors.Join(errs...)
}

// add adds the result of another coupon. Its examples then begin with the name of the coupon.
func (r *Result) add(other Result) {
	r.Winners += other.Winners
	r.Ambiguous += other.Ambiguous
	r.AmbiguousWon += other.AmbiguousWon
	r.Unresolved += other.Unresolved
	r.expected += other.expected
	r.merge(other, fmt.Sprintf("coupon %q: ", other.coupon))
}

// merge adds the violations of other. Its examples get a prefix.
func (r *Result) merge(other Result, prefix string) {
	for _, v := range other.Violations {
		i := slices.IndexFunc(r.Violations, func(mine Violation) bool { return mine.Kind == v.Kind })
		if i < 0 {
			i, r.Violations = len(r.Violations), append(r.Violations, Violation{Kind: v.Kind})
		}
		mine := &r.Violations[i]
		mine.Count += v.Count
		for _, e := range v.Examples[:min(len(v.Examples), maxExamples-len(mine.Examples))] {
			mine.Examples = append(mine.Examples, prefix+e)
		}
	}
}

func (r *Result) violated(kind Kind, format string, args ...any) {
	r.merge(Result{Violations: []Violation{{kind, 1, []string{fmt.Sprintf(format, args...)}}}}, "")
}

// Guarantees returns each guarantee of a sale, always in the same order.
func (r Result) Guarantees() []Guarantee {
	users := humanize.Comma(int64(r.expected)) + " " + english.PluralWord(r.expected, "user", "")
	return []Guarantee{
		r.guarantee("exactly "+users+" won", WrongCount),
		r.guarantee("no user won twice", Duplicate),
		r.guarantee("every user got a definite answer", Undecided),
		r.guarantee("no answer contradicts another", Contradiction),
		r.guarantee("the service reports the same winners", Lost, Unrequested, Oversold, Inconsistent),
	}
}

func (r Result) guarantee(text string, kinds ...Kind) Guarantee {
	g := Guarantee{Text: text}
	for _, v := range r.Violations {
		if slices.Contains(kinds, v.Kind) {
			g.Violations += v.Count
			g.Examples = append(g.Examples, v.Examples...)
		}
	}
	return g
}

// All checks several coupons, each against the one of its name in stored, and adds the results. A
// stored coupon without a Checker is a violation.
func All(checkers []*Checker, stored map[string]load.Coupon) Result {
	var r Result
	for _, c := range checkers {
		r.add(c.Check(stored[c.coupon]))
	}
	for _, name := range slices.Sorted(maps.Keys(stored)) {
		if !slices.ContainsFunc(checkers, func(c *Checker) bool { return c.coupon == name }) {
			r.violated(Unrequested, "coupon %q is stored, and was not created", name)
		}
	}
	return r
}

// Totals is the check for runs that are too large to record each answer. It compares the number of
// claims that were granted, and of those that may have been, with the claims that are stored, and
// checks that each coupon adds up and has no user twice.
func Totals(granted, ambiguous int, stored ...load.Coupon) error {
	var all Result
	claims := 0
	for _, coupon := range stored {
		r := Result{coupon: coupon.Name}
		checkStock(&r, coupon, coupon.Amount)
		users := slices.Clone(coupon.ClaimedBy)
		slices.Sort(users)
		if twice := len(users) - len(slices.Compact(users)); twice > 0 {
			r.violated(Duplicate, "%d users are in claimed_by twice", twice)
		}
		claims += len(coupon.ClaimedBy)
		all.add(r)
	}
	if claims < granted {
		all.violated(Lost, "%d claims were answered 201, and %d are stored", granted, claims)
	}
	if claims > granted+ambiguous {
		all.violated(Unrequested, "%d claims are stored, %d were answered 201, and %d more may have been committed", claims, granted, ambiguous)
	}
	return all.Err()
}
