package main

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// sale is one flash sale: who asks in which order, what they were told, and what it looked like while it ran.
type sale struct {
	options options
	users   []string
	order   []int32
	book    *check.Checker
	tries   []uint8 // of each request; only the connection that has the request touches its own
	settled atomic.Int64
	gaveUp  atomic.Int64
	run     *load.Run
	seen    series
}

// prepare makes everything ready, so that the first request can go out the moment the coupon exists.
func prepare(o options) *sale {
	s := &sale{options: o, users: load.Users(o.users), order: load.Order(o.users, o.repeats, o.seed)}
	s.tries = make([]uint8, len(s.order))
	s.book = check.New(o.coupon, o.stock, s.users)
	return s
}

// open lets the crowd loose.
func (s *sale) open(ctx context.Context) error {
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

// maxOddTries is how often a request is sent that keeps getting answers which the contract has no place for. Users are
// patient with a busy service; with a broken one the verdict is clear already.
const maxOddTries = 3

// answered does what a well-made client does: it asks again after everything that leaves the user without a clear
// answer, not before the service wants it, with growing pauses and some chance in them.
func (s *sale) answered(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
	s.book.Record(int(s.order[i]), answer, r.Sent, r.Answered)
	if answer.Definite() {
		s.settled.Add(1)
		return false, 0
	}
	s.tries[i] = min(s.tries[i]+1, 100)
	switch kindOf(answer) {
	case refused, lost:
	default:
		if s.tries[i] >= maxOddTries || !answer.Ambiguous() {
			s.gaveUp.Add(1)
			return false, 0
		}
	}
	return true, s.pause(i, r.RetryAfter)
}

func (s *sale) pause(i int, retryAfter time.Duration) time.Duration {
	grown := min(50*time.Millisecond<<min(s.tries[i]-1, 10), 2*time.Second)
	chance := rand.New(rand.NewPCG(s.options.seed, uint64(i)<<8|uint64(s.tries[i])))
	return retryAfter + time.Duration(chance.Float64()*float64(grown))
}

// look takes what is new into the picture of the sale so far.
func (s *sale) look() progress {
	s.seen.add(s.run.Take())
	return progress{
		requests: len(s.order),
		settled:  int(s.settled.Load() + s.gaveUp.Load()),
		series:   &s.seen,
	}
}

// kind is what the show makes of an answer: a row and a colour.
type kind int

const (
	won kind = iota
	already
	soldOut
	refused
	lost
	odd
	kinds // how many there are
)

func kindOf(answer load.Answer) kind {
	switch answer {
	case load.Claimed:
		return won
	case load.AlreadyClaimed:
		return already
	case load.OutOfStock:
		return soldOut
	case load.Overloaded, load.Unavailable, load.OutcomeUnknown:
		return refused
	case load.NotSent, load.Cut, load.TimedOut:
		return lost
	default:
		return odd
	}
}

// name is how the kind is called in front of people.
func (k kind) name() string {
	return [kinds]string{"201 claimed", "409 already claimed", "400 sold out", "503 asked again", "no answer", "anything else"}[k]
}

func byKind(t load.Tally) (n [kinds]int) {
	for _, c := range t.Answers {
		n[kindOf(c.Answer)] += c.Times
	}
	return n
}
