package main

import (
	"context"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
)

// storageChecker keeps all answers about one coupon, to compare them with the tables at the end of
// the run. It keeps no times, because there are some ten thousand of them; porcupine or bench/check
// have checked the times before.
type storageChecker struct {
	coupon string
	amount int

	mu          sync.Mutex
	created     bool      // an answer confirmed that the coupon exists
	maybe       bool      // an answer left open whether it was created
	userAnswers []answers // by the number of the user
}

// answers is the set of answers that one user got.
type answers uint8

const (
	gotClaimed answers = 1 << iota
	gotClaimedTwice
	gotAlreadyClaimed
	gotOutOfStock
	gotAmbiguous
)

// userName returns the name of a user by number; all coupons have the same names.
func userName(number int) string { return "u" + strconv.Itoa(number) }

// userNumber is the reverse of userName.
func userNumber(name string) int {
	number, err := strconv.Atoi(name[1:])
	if err != nil {
		panic("not a name from userName: " + name)
	}
	return number
}

// newStorageChecker returns the checker of a coupon that is created with amount and claimed by
// users 0 to users-1.
func newStorageChecker(coupon string, amount, users int) *storageChecker {
	return &storageChecker{coupon: coupon, amount: amount, userAnswers: make([]answers, users)}
}

// grow adds users, if there are fewer.
func (c *storageChecker) grow(users int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if missing := users - len(c.userAnswers); missing > 0 {
		c.userAnswers = append(c.userAnswers, make([]answers, missing)...)
	}
}

// addCreation adds the answer to a creation.
func (c *storageChecker) addCreation(a load.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.created = c.created || a == load.Created || a == load.CouponExists
	c.maybe = c.maybe || a.Ambiguous()
}

// addClaim adds the answer to a claim of a user.
func (c *storageChecker) addClaim(user int, a load.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := &c.userAnswers[user]
	switch {
	case a == load.Claimed && *got&gotClaimed != 0:
		*got |= gotClaimedTwice
	case a == load.Claimed:
		*got |= gotClaimed
	case a == load.AlreadyClaimed:
		*got |= gotAlreadyClaimed
	case a == load.OutOfStock:
		*got |= gotOutOfStock
	case a.Ambiguous():
		*got |= gotAmbiguous
	}
}

// storedCoupon is a coupon as stored in the tables.
type storedCoupon struct {
	name              string
	amount, remaining int
	numbers           []int32 // the claim numbers in ascending order
	users             []string
}

// storedCoupons reads all coupons with their claims from the tables, without the service and the
// proxy.
func (e *environment) storedCoupons(ctx context.Context) (map[string]*storedCoupon, error) {
	coupons := map[string]*storedCoupon{}
	err := e.asOwner(ctx, func(conn *pgx.Conn) error {
		var s storedCoupon
		rows, err := conn.Query(ctx, `select name, amount, remaining_amount from coupond.coupons`)
		if err != nil {
			return err
		}
		if _, err = pgx.ForEachRow(rows, []any{&s.name, &s.amount, &s.remaining}, func() error {
			coupons[s.name] = &storedCoupon{name: s.name, amount: s.amount, remaining: s.remaining}
			return nil
		}); err != nil {
			return err
		}

		var name, user string
		var number int32
		rows, err = conn.Query(ctx, `select coupon_name, claim_number, user_id from coupond.claims order by coupon_name, claim_number`)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&name, &number, &user}, func() error {
			c := coupons[name] // it exists, because of the trigger of claims
			c.numbers, c.users = append(c.numbers, number), append(c.users, user)
			return nil
		})
		return err
	})
	return coupons, err
}

// check compares the answers with the stored coupon; nil is one that is not stored.
func (c *storageChecker) check(s *storedCoupon, v *violations) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s == nil {
		if c.created {
			v.lost.add("coupon %s: created, but not stored", c.coupon)
		}
		return
	}
	if !c.created && !c.maybe {
		v.unrequested.add("coupon %s is stored, although its creation was answered as not executed", c.coupon)
	}
	if s.amount != c.amount {
		v.contradiction.add("%s has the amount %d, but was created with %d", s.name, s.amount, c.amount)
	}
	if len(s.users) > s.amount {
		v.oversold.add("%s: %d claims for an amount of %d", s.name, len(s.users), s.amount)
	}
	if len(s.users)+s.remaining != s.amount {
		v.contradiction.add("%s: %d claims and %d remaining do not add up to its amount, %d", s.name, len(s.users), s.remaining, s.amount)
	}
	for i, number := range s.numbers {
		if int(number) != i+1 {
			v.contradiction.add("%s: claim number %d instead of %d", s.name, number, i+1)
			break
		}
	}

	index := make(map[string]int, len(c.userAnswers))
	for user := range c.userAnswers {
		index[userName(user)] = user
	}
	stored := make([]bool, len(c.userAnswers))
	for _, name := range s.users {
		user, known := index[name]
		switch {
		case !known:
			v.unrequested.add("%s is claimed by %q, which is not one of its users", s.name, name)
		case stored[user]:
			v.duplicate.add("%s has %s twice", name, s.name)
		case c.userAnswers[user]&(gotClaimed|gotAlreadyClaimed|gotAmbiguous) == 0:
			v.unrequested.add("%s has %s, but all its claims were answered as not executed or as out of stock", name, s.name)
		}
		if known {
			stored[user] = true
		}
	}
	for user, got := range c.userAnswers {
		name := userName(user)
		if got&gotClaimedTwice != 0 {
			v.duplicate.add("%s was answered 201 for %s more than once", name, s.name)
		}
		if got&(gotClaimed|gotAlreadyClaimed) != 0 && !stored[user] {
			v.lost.add("%s was answered that it has %s, but the claim is not stored", name, s.name)
		}
		if got&gotOutOfStock != 0 && stored[user] {
			v.contradiction.add("%s was answered that %s is out of stock, but has it", name, s.name)
		}
		if got&gotAlreadyClaimed != 0 && got&(gotClaimed|gotAmbiguous) == 0 {
			v.contradiction.add("%s was answered 409 for %s, but none of its claims can have been granted", name, s.name)
		}
	}
}

// checkStorage compares all answers with all stored coupons.
func checkStorage(checkers []*storageChecker, coupons map[string]*storedCoupon, v *violations) {
	known := make(map[string]bool, len(checkers))
	for _, c := range checkers {
		known[c.coupon] = true
		c.check(coupons[c.coupon], v)
	}
	for name := range coupons {
		if !known[name] {
			v.unrequested.add("coupon %s is stored, but was never requested", name)
		}
	}
}
