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

// A cell is a coupon so small, asked for by so few at once, that porcupine can decide whether what they were told is the model's
// in some order. There are many of them: what one history is too small to show, another does.
const (
	members    = 4 // clients at a cell at once
	mostClaims = 5 // of each of them
	cellUsers  = 6 // who share them
	cellAmount = 5 // at most
	mostTries  = 3 // of a request without a clear answer
)

// party keeps cell after cell, until selling ends.
func (r *run) party(ctx context.Context, selling context.Context, number int) {
	clients := r.newClients(members, partyStream, number)
	defer closeAll(clients)
	random := r.random(cellStream, number)
	for n := 0; selling.Err() == nil && ctx.Err() == nil; n++ {
		r.cell(ctx, fmt.Sprintf("cell-%d-%d", number, n), clients, random)
	}
}

// cell lets the clients loose on a new coupon, reads it when they are done, and checks the history.
func (r *run) cell(ctx context.Context, coupon string, clients []*client, random *rand.Rand) {
	amount := 1 + random.IntN(cellAmount)
	ledger := newLedger(coupon, amount, cellUsers)
	history := newHistory(time.Now())

	var all sync.WaitGroup
	for i, c := range clients {
		wishes := wishesOf(i, amount, random)
		all.Go(func() {
			for _, wish := range wishes {
				r.wish(ctx, c, i, coupon, wish, ledger, history)
			}
		})
	}
	all.Wait()
	// The last read shows what is there, and is patient: without it, what was claimed and never told would go unseen.
	last := input{kind: read}
	for try := 0; ctx.Err() == nil && !isClear(r.once(ctx, clients[0], 0, coupon, last, ledger, history)); try++ {
		clients[0].rest(ctx)
	}
	r.keep(ledger)

	switch history.check() {
	case porcupine.Ok:
	case porcupine.Illegal:
		r.found.illegal.note("%s: %s", coupon, history)
		if path, err := r.drawing(coupon); err == nil {
			r.say("no order explains %s: %s", coupon, path)
			_ = history.draw(path) // the examples have it in words
		}
	case porcupine.Unknown:
		r.found.undecided.note("%s: %s", coupon, history)
	}
	r.count.history(len(history.operations))
}

// wishesOf is what one client asks for, in this order. The first creates the coupon, while the others ask for it already.
func wishesOf(member, amount int, random *rand.Rand) []input {
	var wishes []input
	for range 2 + random.IntN(mostClaims-1) {
		wish := input{kind: claim, user: userName(random.IntN(cellUsers))}
		if random.IntN(5) == 0 {
			wish = input{kind: read}
		}
		wishes = append(wishes, wish)
	}
	if creates := (input{kind: create, amount: amount}); member == 0 {
		wishes = slices.Insert(wishes, 0, creates)
	} else if random.IntN(8) == 0 {
		wishes = append(wishes, creates)
	}
	return wishes
}

// wish asks, and asks again a few times as long as there is no clear answer.
func (r *run) wish(ctx context.Context, c *client, member int, coupon string, wish input, l *ledger, h *history) {
	c.tries = 0
	for range mostTries {
		if isClear(r.once(ctx, c, member, coupon, wish, l, h)) || ctx.Err() != nil {
			return
		}
		c.rest(ctx)
	}
}

// once asks once and notes the answer.
func (r *run) once(ctx context.Context, c *client, member int, coupon string, wish input, l *ledger, h *history) load.Answer {
	var answer load.Answer
	var response load.Response
	out := output{}
	switch wish.kind {
	case create:
		answer, response = c.create(ctx, coupon, wish.amount)
		l.createdBy(answer)
	case claim:
		answer, response = c.claim(ctx, wish.user, coupon)
		l.claimedBy(userNumber(wish.user), answer)
	case read:
		answer, response = c.read(ctx, coupon)
		if answer == load.ReadOK {
			var err error
			if out.coupon, err = parseCoupon(coupon, response); err != nil {
				r.found.contradicted.note("a read of %s: %v", coupon, err)
			}
		}
	}
	out.answer = answer
	h.add(member, wish, out, response.Sent, response.Answered)
	return answer
}

// parseCoupon reads the body of a coupon so small that all of it was kept.
func parseCoupon(name string, r load.Response) (couponmodel.Coupon, error) {
	if int64(len(r.Body)) != r.Length {
		return couponmodel.Coupon{}, fmt.Errorf("%d bytes are too many for a cell", r.Length)
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
		return c, errors.New("its name or its sum is wrong: " + string(r.Body))
	}
	return c, nil
}
