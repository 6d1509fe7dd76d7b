package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// kind is the kind of an operation.
type kind string

const (
	create kind = "create"
	claim  kind = "claim"
	read   kind = "read"
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
	coupon couponmodel.Coupon // of a read
}

// sequential is the model as porcupine needs it. A history has the operations of one coupon. An
// operation with an ambiguous answer may have any outcome.
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
		return o.answer.Ambiguous() || load.AnswerFor(outcome) == o.answer, next
	},
	Equal: func(a, b any) bool { return a.(couponmodel.Coupon).Equal(b.(couponmodel.Coupon)) },
}

// history has the operations of several clients on one coupon, with their times.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
}

// never is when an operation with an ambiguous answer returns: it may be executed at any time after
// it was sent. If it is never executed, it is as if it were executed after everything else, where
// it has no effect on other operations.
const never = math.MaxInt64

// add adds an operation of a client.
func (h *history) add(client int, i input, o output, sent, answered time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: i, Call: int64(sent.Sub(h.began)), Output: o, Return: int64(answered.Sub(h.began))}
	switch {
	case o.answer.NotExecuted():
		return // if it was executed after all, other operations show an effect that nothing explains
	case o.answer.Ambiguous() && i.kind == read:
		return // it has no effect
	case o.answer.Ambiguous():
		op.Return = never
		// Two such operations with one input have the same effect as one that was sent when the first
		// was: the second execution changes nothing. One entry for both keeps the search small.
		at := slices.IndexFunc(h.operations, func(p porcupine.Operation) bool { return p.Return == never && p.Input == op.Input })
		if at >= 0 {
			h.operations[at].Call = min(h.operations[at].Call, op.Call)
			return
		}
	}
	h.operations = append(h.operations, op)
}

// checkTimeout bounds porcupine's search for one history.
const checkTimeout = 20 * time.Second

// check reports whether the history, which is complete, is linearizable.
func (h *history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(sequential, h.operations, checkTimeout)
}

// String lists the operations in the order in which they were added. Times are in nanoseconds.
func (h *history) String() string {
	var text strings.Builder
	for _, op := range h.operations {
		fmt.Fprintf(&text, "\n\t%+v", op)
	}
	return text.String()
}
