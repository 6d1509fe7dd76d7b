package main

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// kind is the kind of an operation.
type kind int

const (
	create kind = iota
	claim
	read
)

// input is what an operation asks for.
type input struct {
	kind   kind
	user   string // of a claim
	amount int    // of a creation
}

// output is the answer to an operation.
type output struct {
	answer load.Answer
	open   bool               // it may be executed at any time after it was sent, or never
	coupon couponmodel.Coupon // of a read
}

// sequential is the model as porcupine needs it. A history has the operations of one coupon.
var sequential = porcupine.Model{
	Init: func() any { return couponmodel.Coupon{} },
	Step: func(state, in, out any) (bool, any) {
		c, i, o := state.(couponmodel.Coupon), in.(input), out.(output)
		next, outcome := c, c.Read()
		switch i.kind {
		case create:
			next, outcome = c.Create(i.amount)
		case claim:
			next, outcome = c.Claim(i.user)
		case read:
			if outcome == couponmodel.Found && !c.Equal(o.coupon) {
				return false, c
			}
		}
		return o.open || load.AnswerFor(outcome) == o.answer, next
	},
	Equal: func(a, b any) bool { return a.(couponmodel.Coupon).Equal(b.(couponmodel.Coupon)) },
	DescribeOperation: func(in, out any) string {
		i, o := in.(input), out.(output)
		what := [...]string{create: fmt.Sprintf("create %d", i.amount), claim: "claim for " + i.user, read: "read"}[i.kind]
		if i.kind == read && o.answer == load.ReadOK {
			return fmt.Sprintf("%s → %d, claimed by %v", what, o.coupon.Amount, o.coupon.ClaimedBy)
		}
		return fmt.Sprintf("%s → %v", what, o.answer)
	},
}

// history has the operations of several clients on one coupon, with their times.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
	open       map[input]int // the index of the open operation with this input
}

func newHistory(began time.Time) *history {
	return &history{began: began, open: map[input]int{}}
}

// never is when an open operation returns. It may be executed after everything else, where it has
// no effect on other operations, so an operation that is never executed needs no separate case.
const never = math.MaxInt64

// add adds an operation of a client.
func (h *history) add(client int, i input, o output, sent, answered time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: i, Call: int64(sent.Sub(h.began)), Output: o, Return: int64(answered.Sub(h.began))}
	switch {
	case o.answer.NotExecuted():
		return // if it was executed after all, other operations show an effect that nothing explains
	case !o.answer.Ambiguous():
		h.operations = append(h.operations, op)
		return
	case i.kind == read:
		return // a read has no effect
	}
	o.open = true
	op.Output, op.Return = o, never
	// Two open operations with one input have the same effect as one that was sent when the first was:
	// the second execution changes nothing. One entry for both keeps the search small.
	if at, found := h.open[i]; found {
		h.operations[at].Call = min(h.operations[at].Call, op.Call)
		return
	}
	h.open[i] = len(h.operations)
	h.operations = append(h.operations, op)
}

// checkTimeout bounds porcupine's search for one history.
const checkTimeout = 20 * time.Second

// check reports whether the history is linearizable.
func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(sequential, h.operations, checkTimeout)
}

// String lists the operations in the order in which they were added.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var text strings.Builder
	for _, op := range h.operations {
		end := "…"
		if op.Return != never {
			end = time.Duration(op.Return).String()
		}
		fmt.Fprintf(&text, "\n\t%v to %s, client %d: %s", time.Duration(op.Call), end, op.ClientId, sequential.DescribeOperation(op.Input, op.Output))
	}
	return text.String()
}
