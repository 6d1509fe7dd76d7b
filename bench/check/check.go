// Package check compares the answers that the users of a sale got with each other and with what the
// service reports after the sale.
//
// The rules follow from three facts of the contract: a user gets a coupon at most once, stock never
// grows, and claims are never deleted. So a user with the answer OUT_OF_STOCK does not have the
// coupon and never gets it; a claim that is sent after the first OUT_OF_STOCK answer cannot
// succeed; and ALREADY_CLAIMED needs an earlier claim of the same user that succeeded, whether or
// not its answer arrived. Ambiguous answers (see [load.Answer.Ambiguous]) excuse what they can
// explain and nothing else.
package check

import (
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/load"
)

// Checker records the answers of a sale of one coupon. Make it with New.
type Checker struct {
	coupon  string
	stock   int
	users   []string
	started time.Time

	mu           sync.Mutex
	outcomes     []outcome     // by index of the user
	unexpected   Guarantee     // violated by answers that no claim of an existing coupon may get
	firstSoldOut time.Duration // when the first OUT_OF_STOCK was answered, or never
}

// outcome is what one user was answered. Times are since Checker.started.
type outcome struct {
	claimed, already, soldOut, ambiguous uint16 // numbers of answers

	claimSent     time.Duration // of the first claim answered 201: it was committed after this …
	claimAnswered time.Duration // … and before this
	firstAlready  time.Duration // when the first ALREADY_CLAIMED was answered, or never
}

const never = time.Duration(1<<63 - 1)

// New returns a Checker for a coupon with this stock. Call it before the first user claims.
func New(coupon string, stock int, users []string) *Checker {
	c := &Checker{
		coupon: coupon, stock: stock, users: users, started: time.Now(),
		outcomes: make([]outcome, len(users)), firstSoldOut: never,
	}
	for i := range c.outcomes {
		c.outcomes[i].firstAlready = never
	}
	return c
}

// Record records an answer to the user of this index, and when the claim was sent and answered. It
// may be called concurrently, and for one user in any order.
func (c *Checker) Record(user int, answer load.Answer, sent, answered time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, at := &c.outcomes[user], answered.Sub(c.started)
	switch {
	case answer == load.Claimed:
		if increment(&u.claimed) == 1 {
			u.claimSent, u.claimAnswered = sent.Sub(c.started), at
		}
	case answer == load.AlreadyClaimed:
		increment(&u.already)
		u.firstAlready = min(u.firstAlready, at)
	case answer == load.OutOfStock:
		increment(&u.soldOut)
		c.firstSoldOut = min(c.firstSoldOut, at)
	case answer.Ambiguous():
		increment(&u.ambiguous)
		if answer != load.OutcomeUnknown && answer.Status != 0 || answer == load.Malformed {
			c.unexpected.violated("%s got %v", c.users[user], answer)
		}
	case answer != load.Overloaded && answer != load.Unavailable && answer != load.NotSent:
		c.unexpected.violated("%s got %v", c.users[user], answer)
	}
}

// increment stops at the largest value: the checks compare with 0 and 1 only.
func increment(n *uint16) uint16 {
	if *n < 1<<16-1 {
		*n++
	}
	return *n
}

// Result is the result of a check.
type Result struct {
	// Winners is the number of users with answers that prove that they have the coupon.
	Winners int
	// Guarantees has each guarantee of a sale, always in the same order.
	Guarantees []Guarantee
	// Ambiguous is the number of users with an ambiguous answer (no answer, or OUTCOME_UNKNOWN). Of
	// them, AmbiguousWon learned from a later ALREADY_CLAIMED that they had won, and Unresolved
	// never got a definite answer.
	Ambiguous, AmbiguousWon, Unresolved int
}

// Guarantee is one of the guarantees of a sale.
type Guarantee struct {
	// Text says what is guaranteed.
	Text string
	// Violations is the number of violations. Examples describes the first few.
	Violations int
	Examples   []string
}

const maxExamples = 3

func (g *Guarantee) violated(format string, args ...any) {
	g.Violations++
	if len(g.Examples) < maxExamples {
		g.Examples = append(g.Examples, fmt.Sprintf(format, args...))
	}
}

// OK reports whether all guarantees hold.
func (r Result) OK() bool {
	for _, g := range r.Guarantees {
		if g.Violations > 0 {
			return false
		}
	}
	return true
}

// Check compares the recorded answers with each other and with reported, the coupon as the service
// reports it after the last answer.
func (c *Checker) Check(reported load.Coupon) Result {
	c.mu.Lock()
	defer c.mu.Unlock()

	var r Result
	expected := min(c.stock, len(c.users))
	winners := Guarantee{Text: "exactly " + humanize.Comma(int64(expected)) + " users won"}
	if expected == 1 {
		winners.Text = "exactly 1 user won"
	}
	once := Guarantee{Text: "no user won twice"}
	definite := Guarantee{Text: "every user got a definite answer"}
	consistent := c.unexpected
	consistent.Text = "no answer contradicts another"

	for i, name := range c.users {
		u := &c.outcomes[i]
		if u.won() {
			r.Winners++
		}
		if u.claimed > 1 {
			once.violated("%s got 201 %d times", name, u.claimed)
		}
		if u.claimed+u.already+u.soldOut == 0 {
			definite.violated("%s got none", name)
		}
		if u.ambiguous > 0 {
			r.Ambiguous++
			switch {
			case u.claimed == 0 && u.already > 0:
				r.AmbiguousWon++
			case u.claimed+u.already+u.soldOut == 0:
				r.Unresolved++
			}
		}
		c.checkConsistent(&consistent, name, u)
	}
	if r.Winners != expected {
		winners.violated("%s won", humanize.Comma(int64(r.Winners)))
	}
	same := c.checkReported(reported, &once)
	r.Guarantees = []Guarantee{winners, once, definite, consistent, same}
	return r
}

// won reports whether the answers prove that the user has the coupon. ALREADY_CLAIMED alone does
// not: an earlier claim must explain it.
func (u *outcome) won() bool { return u.claimed > 0 || u.already > 0 && u.ambiguous > 0 }

// checkConsistent compares the answers of one user with each other, and with the first
// OUT_OF_STOCK.
func (c *Checker) checkConsistent(g *Guarantee, name string, u *outcome) {
	if u.soldOut > 0 && u.claimed+u.already > 0 {
		g.violated("%s got OUT_OF_STOCK, and 201 or ALREADY_CLAIMED", name)
	}
	if u.already > 0 && u.claimed+u.ambiguous == 0 {
		g.violated("%s got ALREADY_CLAIMED, and none of their claims can have succeeded", name)
	}
	if u.claimed > 0 && u.firstAlready < u.claimSent {
		g.violated("%s got ALREADY_CLAIMED before they sent the claim that succeeded", name)
	}
	if u.claimed > 0 && c.firstSoldOut < u.claimSent {
		g.violated("%s got 201 for a claim sent after the first OUT_OF_STOCK", name)
	}
}

// checkReported compares the answers with what the service reports. A user that is listed twice won
// twice, which is a violation of once.
func (c *Checker) checkReported(reported load.Coupon, once *Guarantee) Guarantee {
	same := Guarantee{Text: "the service reports the same winners"}
	if reported.Name != c.coupon {
		same.violated("name is %q, want %q", reported.Name, c.coupon)
	}
	if reported.Amount != c.stock {
		same.violated("amount is %d, want %d", reported.Amount, c.stock)
	}
	if want := c.stock - len(reported.ClaimedBy); reported.Remaining != want {
		same.violated("remaining_amount is %d, want %d with %d users in claimed_by", reported.Remaining, want, len(reported.ClaimedBy))
	}

	index := make(map[string]int, len(c.users))
	for i, name := range c.users {
		index[name] = i
	}
	listed := make([]bool, len(c.users))
	var latest time.Duration // the latest claimSent of the users so far
	for position, name := range reported.ClaimedBy {
		i, known := index[name]
		if !known {
			same.violated("claimed_by has %q, which is not a user of this sale", name)
			continue
		}
		if listed[i] {
			once.violated("%s is in claimed_by twice", name)
			continue
		}
		listed[i] = true
		u := &c.outcomes[i]
		if !u.won() && u.ambiguous == 0 || u.soldOut > 0 {
			same.violated("claimed_by has %s, and their answers say that they did not win", name)
		}
		if u.claimed == 0 || u.ambiguous > 0 {
			continue // it is unknown which of their claims succeeded, and so when
		}
		if u.claimAnswered < latest {
			same.violated("%s is number %d in claimed_by, and was answered 201 before an earlier winner sent their claim", name, position+1)
		}
		latest = max(latest, u.claimSent)
	}
	for i, name := range c.users {
		if u := &c.outcomes[i]; !listed[i] && (u.claimed > 0 || u.already > 0) {
			same.violated("%s got 201 or ALREADY_CLAIMED, and is not in claimed_by", name)
		}
	}
	return same
}
