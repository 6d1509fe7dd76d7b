// Package check compares the answers to claims with each other and with what is stored.
//
// The rules follow from three facts of the contract: a user gets a coupon at most once, stock never
// grows, and claims are never deleted. So a user with the answer OUT_OF_STOCK does not have the
// coupon and never gets it; a claim that is sent after the first OUT_OF_STOCK answer cannot
// succeed; and ALREADY_CLAIMED needs an earlier claim of the same user that succeeded, whether or
// not its answer arrived. Ambiguous answers excuse what they can explain and nothing else.
package check

import (
	"math"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/load"
)

// Checker records the answers about one coupon. Make it with New. Its methods may be called
// concurrently.
type Checker struct {
	coupon  string
	stock   int
	started time.Time

	mu      sync.Mutex
	users   []*user
	byName  map[string]*user
	answers Result // has the violations by answers that no claim may get

	creating     bool          // RecordCreation was called, so that the coupon may not exist
	maybeCreated bool          // an answer left open whether it was created
	created      time.Duration // when its existence was first confirmed, or never
	firstSoldOut time.Duration // when OUT_OF_STOCK was first answered, or never
	notFound     time.Duration // when the last claim was sent that found no coupon
	notFoundBy   string
}

// user is what one user was answered. Times are since Checker.started.
type user struct {
	name                                 string
	claimed, already, soldOut, ambiguous uint32 // numbers of answers

	claimSent     time.Duration // of the first claim answered 201: it was committed after this …
	claimAnswered time.Duration // … and before this
	firstAlready  time.Duration // when the first ALREADY_CLAIMED was answered, or never
}

const never = time.Duration(math.MaxInt64)

// New returns a Checker for a coupon that is created with this stock. users are those that must get
// a definite answer, besides those with a recorded answer. Call it before the first claim.
func New(coupon string, stock int, users []string) *Checker {
	c := &Checker{
		coupon: coupon, stock: stock, started: time.Now(), byName: make(map[string]*user, len(users)), created: never, firstSoldOut: never,
	}
	for _, name := range users {
		c.user(name)
	}
	return c
}

// user returns the user of this name. It adds one that is new.
func (c *Checker) user(name string) *user {
	u := c.byName[name]
	if u == nil {
		u = &user{name: name, firstAlready: never}
		c.byName[name] = u
		c.users = append(c.users, u)
	}
	return u
}

// Record records the answer to a claim of this user, and when the claim was sent and answered. The
// answers to one user may be recorded in any order. The times may be zero for all claims; their
// order is not checked then.
func (c *Checker) Record(name string, answer load.Answer, sent, answered time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, since, at := c.user(name), sent.Sub(c.started), answered.Sub(c.started)
	switch answer {
	case load.Claimed:
		if u.claimed++; u.claimed == 1 {
			u.claimSent, u.claimAnswered = since, at
		}
	case load.AlreadyClaimed:
		u.already++
		u.firstAlready = min(u.firstAlready, at)
	case load.OutOfStock:
		u.soldOut++
		c.firstSoldOut = min(c.firstSoldOut, at)
	case load.CouponNotFound:
		if c.notFoundBy == "" || since > c.notFound {
			c.notFound, c.notFoundBy = since, u.name
		}
	case load.OutcomeUnknown, load.Cut, load.TimedOut:
		u.ambiguous++
	case load.Overloaded, load.Unavailable, load.NotSent: // not executed
	default:
		c.answers.violated(Contradiction, "%s got %v", u.name, answer)
		if answer.Ambiguous() {
			u.ambiguous++
		}
	}
}

// RecordCreation records the answer to a creation of the coupon. Without it, the coupon exists
// before the first claim.
func (c *Checker) RecordCreation(answer load.Answer, answered time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.creating = true
	switch {
	case answer == load.Created || answer == load.CouponExists:
		c.created = min(c.created, answered.Sub(c.started))
	case answer.Ambiguous():
		c.maybeCreated = true
	}
}

// Check compares the recorded answers with each other and with the coupon that is stored after the
// last answer. The zero Coupon is one that is not stored.
func (c *Checker) Check(stored load.Coupon) Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := Result{coupon: c.coupon, expected: min(c.stock, len(c.users))}
	r.merge(c.answers, "")
	c.checkUsers(&r)
	if stored.Name != "" {
		c.checkState(&r, stored)
	} else if !c.creating || c.created != never {
		r.violated(Lost, "the coupon exists according to its answers, and is not stored")
	}
	c.checkClaims(&r, stored.ClaimedBy)
	return r
}

// checkUsers compares the answers of each user with each other, and with the first OUT_OF_STOCK.
func (c *Checker) checkUsers(r *Result) {
	for _, u := range c.users {
		if u.won() {
			r.Winners++
		}
		definite := u.claimed+u.already+u.soldOut > 0
		switch {
		case u.ambiguous > 0 && !definite:
			r.Unresolved++
		case u.ambiguous > 0 && u.claimed == 0 && u.already > 0:
			r.AmbiguousWon++
		}
		if u.ambiguous > 0 {
			r.Ambiguous++
		}
		if !definite {
			r.violated(Undecided, "%s got none", u.name)
		}
		if u.claimed > 1 {
			r.violated(Duplicate, "%s got 201 %d times", u.name, u.claimed)
		}
		if u.soldOut > 0 && u.claimed+u.already > 0 {
			r.violated(Contradiction, "%s got OUT_OF_STOCK, and 201 or ALREADY_CLAIMED", u.name)
		}
		if u.already > 0 && u.claimed+u.ambiguous == 0 {
			r.violated(Contradiction, "%s got ALREADY_CLAIMED, and none of their claims can have succeeded", u.name)
		}
		if u.claimed > 0 && u.firstAlready < u.claimSent {
			r.violated(Contradiction, "%s got ALREADY_CLAIMED before they sent the claim that succeeded", u.name)
		}
		if u.claimed > 0 && c.firstSoldOut < u.claimSent {
			r.violated(Contradiction, "%s got 201 for a claim sent after the first OUT_OF_STOCK", u.name)
		}
	}
	if r.Winners != r.expected {
		r.violated(WrongCount, "%s won", humanize.Comma(int64(r.Winners)))
	}
	if c.notFoundBy != "" && (!c.creating || c.notFound > c.created) {
		r.violated(Contradiction, "%s got COUPON_NOT_FOUND for a claim sent when the coupon existed", c.notFoundBy)
	}
}

// won reports whether the answers prove that the user has the coupon. ALREADY_CLAIMED alone does
// not: an earlier claim must explain it.
func (u *user) won() bool { return u.claimed > 0 || u.already > 0 && u.ambiguous > 0 }

// checkState checks all of a stored coupon but its users.
func (c *Checker) checkState(r *Result, stored load.Coupon) {
	if c.creating && c.created == never && !c.maybeCreated {
		r.violated(Unrequested, "the coupon is stored, and its creation was answered as not executed")
	}
	if stored.Name != c.coupon {
		r.violated(Inconsistent, "name is %q, want %q", stored.Name, c.coupon)
	}
	if stored.Amount != c.stock {
		r.violated(Inconsistent, "amount is %d, want %d", stored.Amount, c.stock)
	}
	checkStock(r, stored, c.stock)
	if c.firstSoldOut != never && len(stored.ClaimedBy) < c.stock {
		r.violated(Inconsistent, "OUT_OF_STOCK was answered, and %d of %d are claimed", len(stored.ClaimedBy), c.stock)
	}
}

// checkStock compares the number of claims with the stock.
func checkStock(r *Result, stored load.Coupon, stock int) {
	if n := len(stored.ClaimedBy); n > stock {
		r.violated(Oversold, "%d users in claimed_by, for a stock of %d", n, stock)
	}
	if want := stock - len(stored.ClaimedBy); stored.Remaining != want {
		r.violated(Inconsistent, "remaining_amount is %d, want %d with %d users in claimed_by", stored.Remaining, want, len(stored.ClaimedBy))
	}
}

// checkClaims compares the answers of each user with the stored claims, which are in their order.
func (c *Checker) checkClaims(r *Result, claimedBy []string) {
	listed := map[*user]bool{}
	latest := time.Duration(math.MinInt64) // the latest claimSent of the users so far
	for position, name := range claimedBy {
		u := c.byName[name]
		if u == nil {
			r.violated(Unrequested, "claimed_by has %q, which is not a user of this sale", name)
			continue
		}
		if listed[u] {
			r.violated(Duplicate, "%s is in claimed_by twice", name)
			continue
		}
		listed[u] = true
		if !u.won() && u.ambiguous == 0 || u.soldOut > 0 {
			r.violated(Unrequested, "claimed_by has %s, and their answers say that they did not win", name)
		}
		if u.claimed == 0 || u.ambiguous > 0 {
			continue // it is unknown which of their claims succeeded, and so when
		}
		if u.claimAnswered < latest {
			r.violated(Inconsistent, "%s is number %d in claimed_by, and was answered 201 before an earlier winner sent their claim", name, position+1)
		}
		latest = max(latest, u.claimSent)
	}
	for _, u := range c.users {
		if !listed[u] && (u.claimed > 0 || u.already > 0) {
			r.violated(Lost, "%s got 201 or ALREADY_CLAIMED, and is not in claimed_by", u.name)
		}
	}
}
