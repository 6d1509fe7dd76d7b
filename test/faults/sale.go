package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// A sale is one coupon with thousands of users, too many operations for porcupine. bench/check
// compares the answers with each other and with the order of the claims.
const (
	minUsers = 4_000
	maxUsers = 20_000
)

// sell holds one sale after another until starting ends. Each user retries until the answer is
// conclusive.
func (t *faultTest) sell(ctx, starting context.Context, series, connections int) {
	clients := t.newClients(connections, saleClientStream, series)
	defer closeAll(clients)
	random := t.random(saleStream, series)
	for n := 0; starting.Err() == nil && ctx.Err() == nil; n++ {
		users := minUsers + random.IntN(maxUsers-minUsers)
		// From a fifth of the users to more than there are.
		stock := users/5 + random.IntN(users)
		t.holdSale(ctx, fmt.Sprintf("sale-%d-%d", series, n), stock, users, random.Uint64(), clients)
	}
}

func (t *faultTest) holdSale(ctx context.Context, coupon string, stock, users int, seed uint64, clients []*client) {
	storage := newStorageChecker(coupon, stock, users)
	defer t.addChecker(storage)
	for {
		answer, _ := clients[0].create(ctx, coupon, stock)
		storage.addCreation(answer)
		if isConclusive(answer) || ctx.Err() != nil {
			break
		}
		clients[0].backOff(ctx)
	}
	t.env.saleCoupon.Store(&coupon)

	order := load.Order(users, 10, seed) // one user in ten claims twice
	userNames := make([]string, users)
	for i := range userNames {
		userNames[i] = userName(i)
	}
	checker := check.New(coupon, stock, userNames)
	var next atomic.Int64
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(order) {
					return
				}
				user := int(order[i])
				for c.failures = 0; ctx.Err() == nil; c.backOff(ctx) {
					answer, response := c.claim(ctx, userNames[user], coupon)
					checker.Record(user, answer, response.Sent, response.Answered)
					storage.addClaim(user, answer)
					if isConclusive(answer) {
						break
					}
				}
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return
	}
	reported, err := t.readSale(ctx, coupon)
	if err != nil {
		t.violations.notRecovered.add("cannot read the coupon of sale %s: %v", coupon, err)
		return
	}
	for _, guarantee := range checker.Check(reported).Guarantees {
		t.violations.contradiction.addN(guarantee.Violations, "sale %s, %s: %s", coupon, guarantee.Text, strings.Join(guarantee.Examples, "; "))
	}
	t.count.sale()
}

// readSale reads the coupon of a sale. It retries until recoveryTimeout, because faults may be
// active.
func (t *faultTest) readSale(ctx context.Context, coupon string) (reported load.Coupon, err error) {
	for deadline := time.Now().Add(recoveryTimeout); ctx.Err() == nil && time.Now().Before(deadline); pause(ctx, 100*time.Millisecond) {
		for _, i := range t.env.instances {
			if reported, err = (load.Service{Address: i.address, Timeout: answerTimeout}).Coupon(ctx, coupon); err == nil {
				return reported, nil
			}
		}
	}
	return reported, err
}
