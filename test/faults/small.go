package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
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
	maxAttempts    = 3 // of an operation without a conclusive answer
)

// useSmallCoupons uses one small coupon after another until starting ends.
func (t *faultTest) useSmallCoupons(ctx, starting context.Context, group int) {
	clients := t.newClients(groupClients, smallClientStream, group)
	defer closeAll(clients)
	random := t.random(smallCouponStream, group)
	for n := 0; starting.Err() == nil && ctx.Err() == nil; n++ {
		t.useSmallCoupon(ctx, fmt.Sprintf("small-%d-%d", group, n), clients, random)
	}
}

// useSmallCoupon runs the clients' operations on a new coupon, reads it at the end, and checks the
// history.
func (t *faultTest) useSmallCoupon(ctx context.Context, coupon string, clients []*client, random *rand.Rand) {
	amount := 1 + random.IntN(maxSmallAmount)
	checker := newStorageChecker(coupon, amount, smallUsers)
	history := newHistory(time.Now())

	var all sync.WaitGroup
	for i, c := range clients {
		operations := drawOperations(i, amount, random)
		all.Go(func() {
			for _, in := range operations {
				t.perform(ctx, c, i, coupon, in, checker, history)
			}
		})
	}
	all.Wait()
	// Without a read at the end, claims that were executed but not answered would not show in the
	// history.
	last := input{kind: read}
	for ctx.Err() == nil && !isConclusive(t.attempt(ctx, clients[0], 0, coupon, last, checker, history)) {
		clients[0].backOff(ctx)
	}
	t.addChecker(checker)

	switch history.check() {
	case porcupine.Ok:
	case porcupine.Illegal:
		t.violations.notLinearizable.add("%s: %s", coupon, history)
		if path, err := t.drawingPath(coupon); err == nil {
			t.printf("%s is not linearizable: %s", coupon, path)
			_ = history.draw(path) // the report has the history in words
		}
	case porcupine.Unknown:
		t.violations.undecided.add("%s: %s", coupon, history)
	}
	t.count.history(len(history.operations))
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

// perform attempts an operation until the answer is conclusive, at most maxAttempts times.
func (t *faultTest) perform(ctx context.Context, c *client, id int, coupon string, in input, s *storageChecker, h *history) {
	c.failures = 0
	for range maxAttempts {
		if isConclusive(t.attempt(ctx, c, id, coupon, in, s, h)) || ctx.Err() != nil {
			return
		}
		c.backOff(ctx)
	}
}

// attempt sends a request and records the answer.
func (t *faultTest) attempt(ctx context.Context, c *client, id int, coupon string, in input, s *storageChecker, h *history) load.Answer {
	var answer load.Answer
	var response load.Response
	out := output{}
	switch in.kind {
	case create:
		answer, response = c.create(ctx, coupon, in.amount)
		s.addCreation(answer)
	case claim:
		answer, response = c.claim(ctx, in.user, coupon)
		s.addClaim(userNumber(in.user), answer)
	case read:
		answer, response = c.read(ctx, coupon)
		if answer == load.ReadOK {
			var err error
			if out.coupon, err = parseCoupon(coupon, response); err != nil {
				t.violations.contradiction.add("a read of %s: %v", coupon, err)
			}
		}
	}
	out.answer = answer
	h.add(id, in, out, response.Sent, response.Answered)
	return answer
}

// parseCoupon parses the answer to a read of a small coupon. The whole body was kept.
func parseCoupon(name string, r load.Response) (couponmodel.Coupon, error) {
	if int64(len(r.Body)) != r.Length {
		return couponmodel.Coupon{}, fmt.Errorf("%d bytes are too many for a small coupon", r.Length)
	}
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
