package main

import (
	"strconv"
	"sync"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// ledger is what everybody was told about one coupon, for the comparison with the tables when all is over. It is small, because
// there are some ten thousand of them; what it forgets (when each was told) has been checked before: by a history, or by books.
type ledger struct {
	coupon string
	amount int

	mu      sync.Mutex
	created bool   // somebody was told that it is there
	asked   bool   // somebody asked for it, and it may be there
	told    []told // by the number of the user
}

// told is what one user was told.
type told uint8

const (
	toldClaimed told = 1 << iota
	toldAgain        // claimed, and so more than once
	toldAlready
	toldSoldOut
	toldNothing // without an answer, or with one that leaves it open
)

// userName is the name of the user of a number, in every coupon.
func userName(number int) string { return "u" + strconv.Itoa(number) }

// userNumber is the reverse.
func userNumber(name string) int {
	number, err := strconv.Atoi(name[1:])
	if err != nil {
		panic("no name of userName: " + name)
	}
	return number
}

func newLedger(coupon string, amount, users int) *ledger {
	return &ledger{coupon: coupon, amount: amount, told: make([]told, users)}
}

// createdBy notes the answer to a creation.
func (l *ledger) createdBy(a load.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.created = l.created || a == couponmodel.Created || a == couponmodel.CouponExists
	l.asked = l.asked || a.Ambiguous()
}

// claimedBy notes the answer to a claim.
func (l *ledger) claimedBy(user int, a load.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &l.told[user]
	switch {
	case a == load.Claimed && *t&toldClaimed != 0:
		*t |= toldAgain
	case a == load.Claimed:
		*t |= toldClaimed
	case a == load.AlreadyClaimed:
		*t |= toldAlready
	case a == load.OutOfStock:
		*t |= toldSoldOut
	case a.Ambiguous():
		*t |= toldNothing
	}
}

// stored is a coupon as it stands in the tables.
type stored struct {
	name              string
	amount, remaining int
	numbers           []int32 // in their order
	users             []string
}

// compare holds what was told against what is stored; nil is a coupon that is not there.
func (l *ledger) compare(s *stored, f *findings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s == nil {
		if l.created {
			f.lost.note("the coupon %s: created, and not there", l.coupon)
		}
		return
	}
	if !l.created && !l.asked {
		f.stray.note("the coupon %s is there, though its creation surely failed", l.coupon)
	}
	if s.amount != l.amount {
		f.contradicted.note("%s has the amount %d, and was created with %d", s.name, s.amount, l.amount)
	}
	if len(s.users) > s.amount {
		f.oversold.note("%s: %d claims for an amount of %d", s.name, len(s.users), s.amount)
	}
	if len(s.users)+s.remaining != s.amount {
		f.contradicted.note("%s: %d claims and %d remaining are not its amount, %d", s.name, len(s.users), s.remaining, s.amount)
	}
	for i, number := range s.numbers {
		if int(number) != i+1 {
			f.contradicted.note("%s: claim number %d stands where %d should", s.name, number, i+1)
			break
		}
	}

	index := make(map[string]int, len(l.told))
	for user := range l.told {
		index[userName(user)] = user
	}
	has := make([]bool, len(l.told))
	for _, name := range s.users {
		user, known := index[name]
		switch {
		case !known:
			f.stray.note("%s is claimed by %q, who never asked", s.name, name)
		case has[user]:
			f.doubled.note("%s has %s twice", name, s.name)
		case l.told[user]&(toldClaimed|toldAlready|toldNothing) == 0:
			f.stray.note("%s has %s, and was told only that surely nothing was done, or that it is sold out", name, s.name)
		}
		if known {
			has[user] = true
		}
	}
	for user, t := range l.told {
		name := userName(user)
		if t&toldAgain != 0 {
			f.doubled.note("%s was told 201 for %s more than once", name, s.name)
		}
		if t&(toldClaimed|toldAlready) != 0 && !has[user] {
			f.lost.note("%s was told that he has %s, and has not", name, s.name)
		}
		if t&toldSoldOut != 0 && has[user] {
			f.contradicted.note("%s was told that %s is sold out, and has it", name, s.name)
		}
		if t&toldAlready != 0 && t&(toldClaimed|toldNothing) == 0 {
			f.contradicted.note("%s was told 409 for %s, though no claim of his can have won", name, s.name)
		}
	}
}

// compareAll holds all ledgers against all that is stored.
func compareAll(ledgers []*ledger, all map[string]*stored, f *findings) {
	known := make(map[string]bool, len(ledgers))
	for _, l := range ledgers {
		known[l.coupon] = true
		l.compare(all[l.coupon], f)
	}
	for name := range all {
		if !known[name] {
			f.stray.note("the coupon %s is there, and nobody has asked for it", name)
		}
	}
}
