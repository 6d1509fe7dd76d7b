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

// kind is what a request is for.
type kind int

const (
	create kind = iota
	claim
	read
)

// input is a request as the model takes it.
type input struct {
	kind   kind
	user   string // of a claim
	amount int    // of a creation
}

// output is what came back.
type output struct {
	answer load.Answer
	open   bool               // it may or may not have been carried out, at any time since it was sent
	coupon couponmodel.Coupon // of a read
}

// linear is the model as porcupine takes it: a history is one coupon's.
var linear = porcupine.Model{
	Init: func() any { return couponmodel.Coupon{} },
	Step: func(state, in, out any) (bool, any) {
		c, i, o := state.(couponmodel.Coupon), in.(input), out.(output)
		next, answer := c, c.Read()
		switch i.kind {
		case create:
			next, answer = c.Create(i.amount)
		case claim:
			next, answer = c.Claim(i.user)
		case read:
			if answer == load.ReadOK && !c.Equal(o.coupon) {
				return false, c
			}
		}
		return o.open || answer == o.answer, next
	},
	Equal: func(a, b any) bool {
		return a.(couponmodel.Coupon).Equal(b.(couponmodel.Coupon))
	},
	DescribeOperation: func(in, out any) string { return describe(in.(input), out.(output)) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}

func describe(i input, o output) string {
	what := "read"
	switch i.kind {
	case create:
		what = fmt.Sprintf("create %d", i.amount)
	case claim:
		what = "claim for " + i.user
	case read:
	}
	if i.kind == read && o.answer == load.ReadOK {
		return fmt.Sprintf("%s → %d, claimed by %v", what, o.coupon.Amount, o.coupon.ClaimedBy)
	}
	return fmt.Sprintf("%s → %v", what, o.answer)
}

// history is what several clients asked of one coupon, and when they were told what.
type history struct {
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
	open       map[input]int // which of them has no end, by what it asked for
}

func newHistory(began time.Time) *history {
	return &history{began: began, open: map[input]int{}}
}

// forever is the end of a request whose outcome nobody knows: it may still come to be after everything else, where nothing shows
// it. So "never" needs no case of its own.
const forever = math.MaxInt64

// add notes a request and its answer.
func (h *history) add(client int, i input, o output, sent, answered time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: client, Input: i, Call: int64(sent.Sub(h.began)), Output: o, Return: int64(answered.Sub(h.began))}
	switch {
	case isSurelyNot(o.answer):
		return // nothing happened: should it show all the same, nothing here explains it
	case !o.answer.Ambiguous():
		h.operations = append(h.operations, op)
		return
	case i.kind == read:
		return // a read changes nothing
	}
	o.open = true
	op.Output, op.Return = o, forever
	// Asking twice for the same is no more than asking once since the first time: one open request stands for all of them, and
	// the search stays small.
	if at, again := h.open[i]; again {
		h.operations[at].Call = min(h.operations[at].Call, op.Call)
		return
	}
	h.open[i] = len(h.operations)
	h.operations = append(h.operations, op)
}

// isSurelyNot says whether an answer promises that nothing was done.
func isSurelyNot(a load.Answer) bool {
	return a == load.Overloaded || a == load.Unavailable || a == load.NotSent
}

// decideWithin bounds the search for an order that explains a history.
const decideWithin = 20 * time.Second

// check says whether the history could be that of the model.
func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(linear, h.operations, decideWithin)
}

// draw makes a page that shows the history and how far an order explains it.
func (h *history) draw(path string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, info := porcupine.CheckOperationsVerbose(linear, h.operations, decideWithin)
	return porcupine.VisualizePath(linear, info, path)
}

// String tells the history in the order of its requests.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var text strings.Builder
	for _, op := range h.operations {
		end := "…"
		if op.Return != forever {
			end = time.Duration(op.Return).String()
		}
		fmt.Fprintf(&text, "\n\t%v to %s, client %d: %s", time.Duration(op.Call), end, op.ClientId, linear.DescribeOperation(op.Input, op.Output))
	}
	return text.String()
}
