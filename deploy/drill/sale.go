package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

var errFailed = errors.New("a guarantee was violated, or others were affected")

// event is what happens to the deployment during a sale.
type event struct {
	name         string
	affects      func(coupon int) bool // by its index
	failsNothing bool                  // no request may be refused
	happen       func() error
	begin, end   time.Time // set by sell
}

// reply is an answer to a claim.
type reply struct {
	coupon   int // its index
	answer   load.Answer
	answered time.Time
}

// sale is a running sale. Each user repeats their claim until they get a definite answer.
type sale struct {
	checkers []*check.Checker // by coupon
	service  load.Service
	run      *load.Run

	mu      sync.Mutex
	replies []reply
	refused map[load.Answer]string // the body of the last refused claim
}

// sell lets the events happen, one after the other, during a sale of the coupons. Then it checks
// all answers and reports the effect of each event.
func (d *drill) sell(ctx context.Context, coupons []string, events ...event) error {
	s, err := d.open(ctx, coupons)
	if err != nil {
		return err
	}
	opened := time.Now()
	d.printf("%d coupons, %.0f claims per second for %v", len(coupons), d.Rate, d.Duration)
	if err := d.letHappen(ctx, s, events); err != nil {
		return err
	}
	report := s.run.Wait()
	stored, err := s.service.Coupons(ctx, coupons...)
	if err != nil {
		return err
	}
	result := check.All(s.checkers, stored)
	ok := result.OK()
	for _, e := range events {
		effect, fine := e.effect(s.replies, opened, d.Duration/12)
		d.printf("%s", effect)
		ok = ok && fine
	}
	d.printf("all answers: %s\nlost %d, duplicates %d, oversold %d", report.Answers,
		result.Count(check.Lost), result.Count(check.Duplicate), result.Count(check.Oversold))
	if !ok {
		return errors.Join(errFailed, result.Err(), fmt.Errorf("the last of each: %v; %q", s.refused, report.Errors))
	}
	return nil
}

// letHappen lets the events happen, and sets their times. All must end before the sale does.
func (d *drill) letHappen(ctx context.Context, s *sale, events []event) error {
	for i := range events {
		if err := sleep(ctx, d.Duration/6); err != nil {
			return err
		}
		e := &events[i]
		e.begin = time.Now()
		if err := e.happen(); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		e.end = time.Now()
		select {
		case <-s.run.Done():
			return fmt.Errorf("%s: the sale ended before that; use a --duration longer than %v", e.name, d.Duration)
		default:
		}
	}
	return nil
}

// open creates the coupons, with a stock for nine tenths of their users, and starts the claims,
// each of another user.
func (d *drill) open(ctx context.Context, coupons []string) (*sale, error) {
	s := &sale{service: load.Service{Address: d.address, Timeout: time.Minute}, refused: map[load.Answer]string{}}
	n := int(d.Rate * d.Duration.Seconds())
	users, which := load.Users(n), load.Evenly(n, len(coupons), 1)
	for _, coupon := range coupons {
		stock := n / len(coupons) * 9 / 10
		err := waitFor(ctx, time.Minute, "coupon "+coupon+" to be created", func() bool {
			err := s.service.Create(ctx, coupon, stock)
			return err == nil || errors.Is(err, load.ErrCouponExists) // by an attempt without an answer
		})
		if err != nil {
			return nil, err
		}
		s.checkers = append(s.checkers, check.New(coupon, stock, nil))
	}
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		// Enough connections that claims waiting for a dead shard do not delay the others.
		Address: d.address, Connections: 512, Requests: n, Rate: d.Rate,
		Request: func(i int) load.Request { return load.Request{User: users[i], Coupon: coupons[which[i]]} },
		Answered: func(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
			s.checkers[which[i]].Record(users[i], answer, r.Sent, r.Answered)
			s.mu.Lock()
			s.replies = append(s.replies, reply{int(which[i]), answer, r.Answered})
			if !answer.Definite() {
				s.refused[answer] = string(r.Body)
			}
			s.mu.Unlock()
			return load.Retry(answer, r)
		},
	})
	return s, err
}

// effect describes the effect of an event until some time after its end, and not until the end of
// the sale, when the stock runs out. ok says that the event had no effect that it may not have.
func (e event) effect(replies []reply, opened time.Time, aftermath time.Duration) (text string, ok bool) {
	isOther := func(coupon int) bool { return !e.affects(coupon) }
	until := e.end.Add(aftermath)
	_, refused := tally(replies, e.affects, e.begin, until)
	ok = !e.failsNothing || len(refused) == 0
	text = fmt.Sprintf("%s in %.1f s\n  its coupons: no claim granted for %.1f s; refused: %s", e.name, e.end.Sub(e.begin).Seconds(),
		gap(replies, e.affects, e.begin, until).Seconds(), refused)
	if before, _ := tally(replies, isOther, opened, e.begin); before > 0 {
		during, _ := tally(replies, isOther, e.begin, e.end)
		_, refused := tally(replies, isOther, e.begin, until)
		ok = ok && during > 0
		text += fmt.Sprintf("\n  other coupons: %.0f claims per second granted before, %.0f meanwhile; refused: %s",
			float64(before)/e.begin.Sub(opened).Seconds(), float64(during)/e.end.Sub(e.begin).Seconds(), refused)
	}
	return text, ok
}

// tally counts the claims on some coupons that were granted, and by answer those that were refused.
func tally(replies []reply, coupon func(int) bool, from, to time.Time) (granted int, refused load.Answers) {
	refused = load.Answers{}
	for _, r := range replies {
		switch {
		case !coupon(r.coupon) || r.answered.Before(from) || r.answered.After(to):
		case r.answer == load.Claimed:
			granted++
		case !r.answer.Definite():
			refused[r.answer]++
		}
	}
	return granted, refused
}

// gap returns the longest time between from and to in which no claim on some coupons was granted.
// replies must include later ones. The time after the last granted claim, when the coupons are sold
// out, does not count.
func gap(replies []reply, coupon func(int) bool, from, to time.Time) (longest time.Duration) {
	granted := []time.Time{from}
	for _, r := range replies {
		if coupon(r.coupon) && r.answer == load.Claimed && r.answered.After(from) {
			granted = append(granted, r.answered)
		}
	}
	slices.SortFunc(granted, time.Time.Compare)
	for i, at := range granted[1:] {
		longest = max(longest, min(at.Sub(granted[i]), to.Sub(granted[i])))
	}
	return longest
}
