// Package books keeps what each user of a sale was told, and compares it with what the service reports afterwards.
//
// The rules follow from three facts of the contract: a user gets a coupon at most once, stock never grows again, and a
// claim is never taken back. So a user who was told "sold out" can neither have had the coupon nor ever get it; after
// the first "sold out" nobody who asks later may win; "already claimed" needs a claim that won, told or lost on its way.
// Answers that leave it open whether the claim was carried out (see [load.Answer.Ambiguous]) excuse what they can
// explain and nothing else.
package check

import (
	"fmt"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"scalable-coupon-system/bench/load"
)

// Checker is open while a sale of one coupon goes on.
type Checker struct {
	coupon string
	stock  int
	users  []string
	opened time.Time

	mu     sync.Mutex
	told   []told
	odd    Guarantee     // answers that no valid claim on an existing coupon may get
	closed time.Duration // when the first "sold out" was answered; never: forever
}

// told is what one user was told; the times run from when the book was opened.
type told struct {
	claimed, already, soldOut, uncertain uint16

	claimSent     time.Duration // of the first claim answered 201: it won after this …
	claimAnswered time.Duration // … and before this
	firstAlready  time.Duration // when the first 409 was answered
}

const forever = time.Duration(1<<63 - 1)

// New opens the book for a coupon with so much stock, before the first of users asks for it.
func New(coupon string, stock int, users []string) *Checker {
	b := &Checker{coupon: coupon, stock: stock, users: users, opened: time.Now(), told: make([]told, len(users)), closed: forever}
	for i := range b.told {
		b.told[i].firstAlready = forever
	}
	return b
}

// Record notes what the user of this index was told, and when the claim was sent and answered. Many goroutines may
// call it at once, and for one user in any order.
func (b *Checker) Record(user int, answer load.Answer, sent, answered time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, at := &b.told[user], answered.Sub(b.opened)
	switch {
	case answer == load.Claimed:
		if increment(&u.claimed) == 1 {
			u.claimSent, u.claimAnswered = sent.Sub(b.opened), at
		}
	case answer == load.AlreadyClaimed:
		increment(&u.already)
		u.firstAlready = min(u.firstAlready, at)
	case answer == load.OutOfStock:
		increment(&u.soldOut)
		b.closed = min(b.closed, at)
	case answer.Ambiguous():
		increment(&u.uncertain)
		if answer != load.OutcomeUnknown && answer.Status != 0 || answer == load.Malformed {
			b.odd.broke("%s was answered %v", b.users[user], answer)
		}
	case answer != load.Overloaded && answer != load.Unavailable && answer != load.NotSent:
		b.odd.broke("%s was answered %v", b.users[user], answer)
	}
}

// increment stops at the most there can be: all that matters is none, one or more.
func increment(n *uint16) uint16 {
	if *n < 1<<16-1 {
		*n++
	}
	return *n
}

// Result is what the books say.
type Result struct {
	// Winners is how many users know that they have the coupon.
	Winners int
	// Guarantees in the order in which they are read out.
	Guarantees []Guarantee
	// Ambiguous is how many users were left without knowing at least once (no answer, or OUTCOME_UNKNOWN); of them AmbiguousWon
	// found out by a 409 that they had won, and Unresolved never found out.
	Ambiguous, AmbiguousWon, Unresolved int
}

// Guarantee is one of the promises of a sale.
type Guarantee struct {
	// Text says what was promised.
	Text string
	// Violations is how often it was broken, Examples are the first few times.
	Violations int
	Examples   []string
}

const maxExamples = 3

func (p *Guarantee) broke(format string, args ...any) {
	p.Violations++
	if len(p.Examples) < maxExamples {
		p.Examples = append(p.Examples, fmt.Sprintf(format, args...))
	}
}

// OK says whether every promise was.
func (v Result) OK() bool {
	for _, p := range v.Guarantees {
		if p.Violations > 0 {
			return false
		}
	}
	return true
}

// Check closes the book: it compares what the users were told with each other and with what the service reports now
// that nothing is under way.
func (b *Checker) Check(reported load.Coupon) Result {
	b.mu.Lock()
	defer b.mu.Unlock()

	var v Result
	expected := min(b.stock, len(b.users))
	exactly := Guarantee{Text: "exactly " + humanize.Comma(int64(expected)) + " won"}
	twice := Guarantee{Text: "nobody won twice"}
	everybody := Guarantee{Text: "all " + humanize.Comma(int64(len(b.users))) + " users were told"}
	contradiction := b.odd
	contradiction.Text = "no answer contradicts another"

	for i, name := range b.users {
		u := &b.told[i]
		if u.won() {
			v.Winners++
		}
		if u.claimed > 1 {
			twice.broke("%s was told 201 %d times", name, u.claimed)
		}
		if u.claimed+u.already+u.soldOut == 0 {
			everybody.broke("%s never had a clear answer", name)
		}
		if u.uncertain > 0 {
			v.Ambiguous++
			switch {
			case u.claimed == 0 && u.already > 0:
				v.AmbiguousWon++
			case u.claimed+u.already+u.soldOut == 0:
				v.Unresolved++
			}
		}
		b.contradictions(&contradiction, name, u)
	}
	if v.Winners != expected {
		exactly.broke("%s did", humanize.Comma(int64(v.Winners)))
	}
	same := b.report(reported, &twice)
	v.Guarantees = []Guarantee{exactly, twice, everybody, contradiction, same}
	return v
}

// won says whether the user knows that he has the coupon. A 409 alone does not: it has to come from somewhere.
func (u *told) won() bool { return u.claimed > 0 || u.already > 0 && u.uncertain > 0 }

func (b *Checker) contradictions(p *Guarantee, name string, u *told) {
	if u.soldOut > 0 && u.claimed+u.already > 0 {
		p.broke("%s was told both that it is sold out and that he has it", name)
	}
	if u.already > 0 && u.claimed+u.uncertain == 0 {
		p.broke("%s was told 409 though no claim of his had won", name)
	}
	if u.claimed > 0 && u.firstAlready < u.claimSent {
		p.broke("%s was told 409 before he sent the claim that won", name)
	}
	if u.claimed > 0 && b.closed < u.claimSent {
		p.broke("%s won with a claim sent after somebody was told that it is sold out", name)
	}
}

// report compares with what the service reports; who stands in it twice has won twice.
func (b *Checker) report(reported load.Coupon, twice *Guarantee) Guarantee {
	same := Guarantee{Text: "the service reports the same"}
	if reported.Name != b.coupon {
		same.broke("its name is %q", reported.Name)
	}
	if reported.Amount != b.stock {
		same.broke("amount is %d", reported.Amount)
	}
	if want := b.stock - len(reported.ClaimedBy); reported.Remaining != want {
		same.broke("remaining_amount is %d and not %d, with %d in claimed_by", reported.Remaining, want, len(reported.ClaimedBy))
	}

	index := make(map[string]int, len(b.users))
	for i, name := range b.users {
		index[name] = i
	}
	listed := make([]bool, len(b.users))
	var latest time.Duration // when the last of those so far was sent at the earliest
	for position, name := range reported.ClaimedBy {
		i, known := index[name]
		if !known {
			same.broke("claimed_by has %q, who never asked", name)
			continue
		}
		if listed[i] {
			twice.broke("%s stands in claimed_by twice", name)
			continue
		}
		listed[i] = true
		u := &b.told[i]
		if !u.won() && u.uncertain == 0 || u.soldOut > 0 {
			same.broke("claimed_by has %s, who was never told so", name)
		}
		if u.claimed == 0 || u.uncertain > 0 {
			continue // which of his claims won, and so when, cannot be told
		}
		if u.claimAnswered < latest {
			same.broke("%s is number %d of claimed_by, but had won before one further up asked", name, position+1)
		}
		latest = max(latest, u.claimSent)
	}
	for i, name := range b.users {
		if u := &b.told[i]; !listed[i] && (u.claimed > 0 || u.already > 0) {
			same.broke("%s was told that he has it, and is not in claimed_by", name)
		}
	}
	return same
}
