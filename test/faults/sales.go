package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/go-json-experiment/json"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// A small coupon has so few concurrent operations that porcupine can decide whether its history is
// linearizable. A run uses thousands of them, one after another.
const (
	groupClients   = 4 // clients of a small coupon
	maxOperations  = 5 // claims and reads of one client
	smallUsers     = 6 // users, which the clients share
	maxSmallAmount = 5
	maxAttempts    = 3 // of an operation without a definite answer
)

// A sale is one coupon with thousands of users, too many operations for porcupine. bench/check
// compares the answers with each other and with the order of the claims.
const (
	minUsers = 4_000
	maxUsers = 20_000
)

// useSmallCoupons uses one small coupon after another until starting ends.
func (t *faultTest) useSmallCoupons(ctx, starting context.Context, group int) {
	clients := t.newClients(groupClients)
	defer closeAll(clients)
	random := t.random(smallCouponStream, group)
	for n := 0; starting.Err() == nil && ctx.Err() == nil; n++ {
		t.useSmallCoupon(ctx, fmt.Sprintf("small-%d-%d", group, n), clients, random)
	}
}

// useSmallCoupon runs the clients' operations on a new coupon, reads it at the end, and checks the
// history.
func (t *faultTest) useSmallCoupon(ctx context.Context, name string, clients []*client, random *rand.Rand) {
	one := t.newCoupon(name, 1+random.IntN(maxSmallAmount))
	history := newHistory(time.Now())
	var all sync.WaitGroup
	for i, c := range clients {
		operations := drawOperations(i, one.amount, random)
		all.Go(func() {
			for _, in := range operations {
				t.perform(ctx, maxAttempts, c, i, one, in, history)
			}
		})
	}
	all.Wait()
	// Without a read at the end, claims that were executed but not answered would not show in the
	// history.
	t.perform(ctx, 0, clients[0], 0, one, input{kind: read}, history)
	if result := history.check(); result != porcupine.Ok {
		t.results.violated(notLinearizable, "%s, %s: %s", name, result, history)
	}
	t.results.count("histories of small coupons, checked for linearizability", 1)
	t.results.count("operations in these histories", len(history.operations))
}

// drawOperations draws the operations of one client, in this order. The first client creates the
// coupon, while the others use it already.
func drawOperations(client, amount int, random *rand.Rand) []input {
	var operations []input
	for range 2 + random.IntN(maxOperations-1) {
		in := input{kind: claim, user: userName(random.IntN(smallUsers))}
		if random.IntN(5) == 0 {
			in = input{kind: read}
		}
		operations = append(operations, in)
	}
	if creation := (input{kind: create, amount: amount}); client == 0 {
		operations = slices.Insert(operations, 0, creation)
	} else if random.IntN(8) == 0 {
		operations = append(operations, creation)
	}
	return operations
}

// perform attempts an operation until the answer is definite, at most attempts times (0: no limit),
// and adds each attempt to the history.
func (t *faultTest) perform(ctx context.Context, attempts int, c *client, id int, one coupon, in input, h *history) {
	trying, giveUp := context.WithCancel(ctx)
	defer giveUp()
	attempt := 0
	load.UntilDefinite(trying, func() (load.Answer, load.Response) {
		if attempt++; attempt == attempts {
			giveUp()
		}
		out := output{}
		var response load.Response
		switch in.kind {
		case create:
			out.answer, response = c.create(ctx, one)
		case claim:
			out.answer, response = c.claim(ctx, in.user, one)
		case read:
			out.answer, response = c.read(ctx, one.name)
			if out.answer == load.ReadOK {
				var err error
				if out.coupon, err = parseCoupon(one.name, response); err != nil {
					t.results.violated(notAllowed, "a read of %s: %v", one.name, err)
				}
			}
		}
		h.add(id, in, out, response.Sent, response.Answered)
		return impatient(out.answer, response)
	})
}

// parseCoupon parses the answer to a read of a small coupon. The whole body was kept.
func parseCoupon(name string, r load.Response) (couponmodel.Coupon, error) {
	var body struct {
		Name      string   `json:"name"`
		Amount    int      `json:"amount"`
		Remaining int      `json:"remaining_amount"`
		ClaimedBy []string `json:"claimed_by"`
	}
	if err := json.Unmarshal(r.Body, &body, json.RejectUnknownMembers(true)); err != nil {
		return couponmodel.Coupon{}, err
	}
	c := couponmodel.Coupon{Amount: body.Amount, ClaimedBy: body.ClaimedBy}
	if body.Name != name || c.Remaining() != body.Remaining {
		return c, errors.New("the name or the remaining amount is wrong: " + string(r.Body))
	}
	return c, nil
}

// sell holds one sale after another until starting ends.
func (t *faultTest) sell(ctx, starting context.Context, series, connections int) {
	clients := t.newClients(connections)
	defer closeAll(clients)
	random := t.random(saleStream, series)
	for n := 0; starting.Err() == nil && ctx.Err() == nil; n++ {
		users := minUsers + random.IntN(maxUsers-minUsers)
		// From a fifth of the users to more than there are.
		one := t.newCoupon(fmt.Sprintf("sale-%d-%d", series, n), users/5+random.IntN(users))
		if err := t.holdSale(ctx, one, load.Order(users, 10, random.Uint64()), clients); err != nil { // one user in ten claims twice
			t.results.violated(notRecovered, "sale %s: %v", one.name, err)
		}
	}
}

// holdSale sells a coupon to users in this order. Each retries until the answer is definite.
func (t *faultTest) holdSale(ctx context.Context, one coupon, order []int32, clients []*client) error {
	clients[0].createUntilDefinite(ctx, one)
	t.env.saleCoupon.Store(&one.name)
	var next atomic.Int64
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(order) {
					return
				}
				c.claimUntilDefinite(ctx, userName(int(order[i])), one)
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil // run reports it
	}
	reading, stop := context.WithTimeout(ctx, recoveryTimeout) // a fault may be active
	defer stop()
	for instance := 0; ; instance++ {
		service := load.Service{Address: t.env.instances[instance%instances].address, Timeout: answerTimeout}
		reported, err := service.Coupon(reading, one.name)
		if err == nil {
			// All kinds: every user has claimed until the answer was definite.
			for _, v := range one.Check(reported).Violations {
				t.results.addViolation(v)
			}
			t.results.count("sales, answers checked against each other", 1)
			return nil
		}
		if pause(reading, 100*time.Millisecond); reading.Err() != nil {
			return err
		}
	}
}
