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

// A sale is a hot coupon: thousands ask for it at once, far too many for a search of all orders. It is checked by the books
// (bench/check): who was told what, and the order of the winners against the times of their claims.
const (
	leastUsers = 4_000
	mostUsers  = 20_000
)

// hot holds sale after sale, until selling ends. Every user of a sale asks until he has a clear answer.
func (r *run) hot(ctx context.Context, selling context.Context, number, connections int) {
	clients := r.newClients(connections, shopperStream, number)
	defer closeAll(clients)
	random := r.random(saleStream, number)
	for n := 0; selling.Err() == nil && ctx.Err() == nil; n++ {
		users := leastUsers + random.IntN(mostUsers-leastUsers)
		// From a fifth of what is wanted to more than that.
		stock := users/5 + random.IntN(users)
		r.sale(ctx, fmt.Sprintf("hot-%d-%d", number, n), stock, users, random.Uint64(), clients)
	}
}

// sale holds one.
func (r *run) sale(ctx context.Context, coupon string, stock, users int, seed uint64, clients []*client) {
	ledger := newLedger(coupon, stock, users)
	defer r.keep(ledger)
	for {
		answer, _ := clients[0].create(ctx, coupon, stock)
		ledger.createdBy(answer)
		if isClear(answer) || ctx.Err() != nil {
			break
		}
		clients[0].rest(ctx)
	}
	r.world.onSale.Store(&coupon)

	order := load.Order(users, 10, seed) // one in ten asks twice
	userNames := make([]string, users)
	for i := range userNames {
		userNames[i] = userName(i)
	}
	book := check.New(coupon, stock, userNames)
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
				for c.tries = 0; ctx.Err() == nil; c.rest(ctx) {
					answer, response := c.claim(ctx, userNames[user], coupon)
					book.Record(user, answer, response.Sent, response.Answered)
					ledger.claimedBy(user, answer)
					if isClear(answer) {
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
	reported, err := r.readBig(ctx, coupon)
	if err != nil {
		r.found.broken.note("the sale %s cannot be read: %v", coupon, err)
		return
	}
	for _, promise := range book.Check(reported).Guarantees {
		r.found.contradicted.noteTimes(promise.Violations, "the sale %s, %s: %s", coupon, promise.Text, strings.Join(promise.Examples, "; "))
	}
	r.count.sale()
}

// readBig reads a coupon of a sale, however long that takes in this weather.
func (r *run) readBig(ctx context.Context, coupon string) (reported load.Coupon, err error) {
	for deadline := time.Now().Add(comeBackWithin); ctx.Err() == nil && time.Now().Before(deadline); pause(ctx, 100*time.Millisecond) {
		for _, i := range r.world.instances {
			if reported, err = (load.Service{Address: i.address, Timeout: askWithin}).Coupon(ctx, coupon); err == nil {
				return reported, nil
			}
		}
	}
	return reported, err
}
