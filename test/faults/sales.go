package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/load"
)

const (
	// A small coupon has so few operations that porcupine can decide whether its history is
	// linearizable.
	groupClients   = 4 // of a small coupon
	maxOperations  = 5 // claims and reads of one client
	smallUsers     = 6 // users, which the clients share
	maxSmallAmount = 5
	maxAttempts    = 3 // of an operation without a definite answer

	// Users of a sale: too many for porcupine.
	minUsers = 4_000
	maxUsers = 20_000
)

// useSmallCoupons uses one small coupon after another until starting ends.
func (t *faultTest) useSmallCoupons(ctx, starting context.Context, group int) {
	clients := make([]*client, groupClients)
	for i := range clients {
		clients[i] = t.newClient(i)
	}
	random := t.random(smallCouponStream, group)
	for n := 0; starting.Err() == nil; n++ {
		t.useSmallCoupon(ctx, fmt.Sprintf("small-%d-%d", group, n), clients, random)
	}
	for _, c := range clients {
		c.close()
	}
}

// useSmallCoupon runs the clients' operations on a new coupon, reads it at the end, and checks the
// history.
func (t *faultTest) useSmallCoupon(ctx context.Context, name string, clients []*client, random *rand.Rand) {
	one := t.newCoupon(name, 1+random.IntN(maxSmallAmount))
	one.history = &history{began: time.Now()}
	var all sync.WaitGroup
	for i, c := range clients {
		operations := drawOperations(i, one.amount, random)
		all.Go(func() {
			for _, in := range operations {
				c.perform(ctx, one, in, maxAttempts)
			}
		})
	}
	all.Wait()
	// Without a read at the end, claims that were executed but not answered would not show in the
	// history.
	clients[0].untilDefinite(ctx, one, input{kind: read})
	if result := one.history.check(); result != porcupine.Ok {
		t.violated(notLinearizable, "%s, %s: %s", name, result, one.history)
	}
	t.count("histories of small coupons, checked for linearizability", 1)
	t.count("operations in these histories", len(one.history.operations))
}

// drawOperations draws the operations of one client, in this order. The first client creates the
// coupon, while the others use it already.
func drawOperations(client, amount int, random *rand.Rand) []input {
	operations := make([]input, 2+random.IntN(maxOperations-1))
	for i := range operations {
		operations[i] = input{kind: claim, user: userName(random.IntN(smallUsers))}
		if random.IntN(5) == 0 {
			operations[i] = input{kind: read}
		}
	}
	creation := input{kind: create, amount: amount}
	switch {
	case client == 0:
		return slices.Insert(operations, 0, creation)
	case random.IntN(8) == 0:
		return slices.Insert(operations, len(operations), creation)
	}
	return operations
}

// sell holds one sale after another until starting ends.
func (t *faultTest) sell(ctx, starting context.Context, series, connections int) {
	random := t.random(saleStream, series)
	for n := 0; starting.Err() == nil; n++ {
		users := minUsers + random.IntN(maxUsers-minUsers)
		// From a fifth of the users to more than there are.
		one := t.newCoupon(fmt.Sprintf("sale-%d-%d", series, n), users/5+random.IntN(users))
		order := load.Order(users, 10, random.Uint64()) // one user in ten claims twice
		if err := t.holdSale(ctx, one, order, connections); err != nil {
			t.violated(notRecovered, "sale %s: %v", one.name, err)
		}
	}
}

// holdSale sells a coupon to users in this order. Each retries until the answer is definite.
func (t *faultTest) holdSale(ctx context.Context, one coupon, order []int32, connections int) error {
	creator := t.newClient(0)
	creator.untilDefinite(ctx, one, input{kind: create})
	creator.close()
	var next atomic.Int64
	stop, wait := t.startClients(ctx, connections, func(ctx context.Context, _ int, c *client) {
		for n := next.Add(1) - 1; n < int64(len(order)) && ctx.Err() == nil; n = next.Add(1) - 1 {
			c.untilDefinite(ctx, one, input{kind: claim, user: userName(int(order[n]))})
		}
	})
	wait()
	stop()
	if ctx.Err() != nil {
		return nil // run reports it
	}
	reading, cancel := context.WithTimeout(ctx, recoveryTimeout) // a fault may be active
	defer cancel()
	for i := 0; ; i++ {
		service := load.Service{Address: t.env.instances[i%instances].address, Timeout: answerTimeout}
		reported, err := service.Coupon(reading, one.name)
		if err == nil {
			// All kinds: every user has claimed until the answer was definite.
			for _, v := range one.Check(reported).Violations {
				t.violated(v.Kind, "%s: %d: %q", one.name, v.Count, v.Examples)
			}
			t.count("sales, answers checked against each other", 1)
			return nil
		}
		if pause(reading, 100*time.Millisecond); reading.Err() != nil {
			return err
		}
	}
}
