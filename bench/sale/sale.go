package main

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// sale is one flash sale: its requests, the answers so far, and their course over time.
type sale struct {
	options  options
	users    []string
	order    []int32 // index of the user, by request
	checker  *check.Checker
	attempts []uint8 // by request; used only by the connection that sends the request
	finished atomic.Int64
	run      *load.Run
	series   series
}

// newSale prepares a sale, so that it can start as soon as the coupon exists.
func newSale(o options) *sale {
	s := &sale{options: o, users: load.Users(o.users), order: load.Order(o.users, o.repeats, o.seed)}
	s.attempts = make([]uint8, len(s.order))
	s.checker = check.New(o.coupon, o.stock, s.users)
	return s
}

func (s *sale) start(ctx context.Context) error {
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		Address:     s.options.address,
		Connections: min(s.options.connections, len(s.order)),
		Requests:    len(s.order),
		Request:     func(i int) load.Request { return load.Request{User: s.users[s.order[i]], Coupon: s.options.coupon} },
		Rate:        s.options.rate,
		Seed:        s.options.seed,
		Timeout:     s.options.timeout,
		Answered:    s.answered,
	})
	return err
}

// maxUnexpected is how many unexpected answers a request may get before it is not retried any more.
// The check has failed then, and a broken service would be asked until the end of the sale.
const maxUnexpected = 3

// answered records an answer and decides on a retry, as a well-behaved client does: after any
// answer that is not definite, not before Retry-After, with exponential back-off and jitter.
func (s *sale) answered(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
	s.checker.Record(int(s.order[i]), answer, r.Sent, r.Answered)
	if answer.Definite() {
		s.finished.Add(1)
		return false, 0
	}
	s.attempts[i] = min(s.attempts[i]+1, 100)
	switch kindOf(answer) {
	case unavailable, noAnswer:
	default:
		if s.attempts[i] >= maxUnexpected || !answer.Ambiguous() {
			s.finished.Add(1)
			return false, 0
		}
	}
	return true, s.pause(i, r.RetryAfter)
}

// pause returns the pause before the next attempt of request i.
func (s *sale) pause(i int, retryAfter time.Duration) time.Duration {
	backOff := min(50*time.Millisecond<<min(s.attempts[i]-1, 10), 2*time.Second)
	random := rand.New(rand.NewPCG(s.options.seed, uint64(i)<<8|uint64(s.attempts[i])))
	return retryAfter + time.Duration(random.Float64()*float64(backOff))
}

// update adds the answers since the last call to the series, and returns the progress.
func (s *sale) update() progress {
	s.series.add(s.run.Take())
	return progress{
		requests: len(s.order),
		finished: int(s.finished.Load()),
		series:   &s.series,
	}
}

// kind groups answers for display: each has a row and a colour.
type kind int

const (
	claimed kind = iota
	alreadyClaimed
	outOfStock
	unavailable
	noAnswer
	unexpected
	kinds // the number of kinds
)

func kindOf(answer load.Answer) kind {
	switch answer {
	case load.Claimed:
		return claimed
	case load.AlreadyClaimed:
		return alreadyClaimed
	case load.OutOfStock:
		return outOfStock
	case load.Overloaded, load.Unavailable, load.OutcomeUnknown:
		return unavailable
	case load.NotSent, load.Cut, load.TimedOut:
		return noAnswer
	default:
		return unexpected
	}
}

// name returns the name that is displayed.
func (k kind) name() string {
	return [kinds]string{"201 claimed", "409 already claimed", "400 out of stock", "503 retried", "no answer", "unexpected"}[k]
}

func countByKind(t load.Tally) (n [kinds]int) {
	for _, c := range t.Answers {
		n[kindOf(c.Answer)] += c.Times
	}
	return n
}
