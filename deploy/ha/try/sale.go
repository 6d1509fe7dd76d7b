package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/load/books"
)

// sale is a sale in which everybody who is left without a clear answer asks again.
type sale struct {
	service load.Service
	coupon  string
	stock   int
	users   []string
	book    *books.Book
	run     *load.Run

	mu     sync.Mutex
	told   []bool // of each user: that he has the coupon
	twice  int    // users who were told 201 twice
	won    []time.Time
	failed int // requests that had anything but a clear answer
	unsure int // of these, requests that may have been carried out
}

// open lets in so many users that they keep coming for the duration, of whom a tenth comes too late.
func open(ctx context.Context, o options, coupon string, duration time.Duration) (*sale, error) {
	n := int(o.rate * duration.Seconds())
	s := &sale{
		service: load.Service{Address: o.address, Timeout: time.Minute},
		coupon:  coupon, stock: n * 9 / 10, users: load.Users(n), told: make([]bool, n),
	}
	if err := s.service.Create(ctx, coupon, s.stock); err != nil {
		return nil, err
	}
	s.book = books.Open(coupon, s.stock, s.users)
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		Address: o.address, Connections: 64, Requests: n, Rate: o.rate, Seed: 1,
		Request:  func(i int) load.Request { return load.Request{User: s.users[i], Coupon: coupon} },
		Answered: s.answered,
	})
	return s, err
}

func (s *sale) answered(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
	s.book.Answered(i, answer, r.Sent, r.Answered)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch answer {
	case load.Claimed:
		if s.told[i] {
			s.twice++
		}
		s.told[i] = true
		s.won = append(s.won, r.Answered)
	case load.AlreadyClaimed:
		s.told[i] = true
	}
	if answer.Clear() {
		return false, 0
	}
	s.failed++
	if answer.Uncertain() {
		s.unsure++
	}
	// Spread over a second, so that they do not come back all at once.
	return true, r.RetryAfter/2 + time.Duration(i%1000)*time.Millisecond
}

// result is what the books say.
type result struct {
	acknowledged, unknown, lost, doubled, oversold int

	failed  int
	gap     time.Duration // the longest time without a granted claim
	broken  []string
	odd     []string // what the first failed requests came to
	answers []string
}

// close waits for the last answer and compares.
func (s *sale) close(ctx context.Context) (result, error) {
	report := s.run.Wait()
	reported, err := s.service.Coupon(ctx, s.coupon)
	if err != nil {
		return result{}, fmt.Errorf("the coupon cannot be read: %w", err)
	}
	b := result{acknowledged: len(s.won), unknown: s.unsure, failed: s.failed, doubled: s.twice, gap: gap(s.won)}
	listed := make(map[string]bool, len(reported.ClaimedBy))
	for _, user := range reported.ClaimedBy {
		if listed[user] {
			b.doubled++
		}
		listed[user] = true
	}
	for i, user := range s.users {
		if s.told[i] && !listed[user] {
			b.lost++
		}
	}
	b.oversold = max(0, len(reported.ClaimedBy)-s.stock)
	for _, promise := range s.book.Compare(reported).Promises {
		if promise.Broken > 0 {
			b.broken = append(b.broken, fmt.Sprintf("broken %d times: %s (%s)", promise.Broken, promise.Text, strings.Join(promise.Examples, "; ")))
		}
	}
	for _, c := range report.Claims.Answers {
		b.answers = append(b.answers, fmt.Sprintf("%d × %v", c.Times, c.Answer))
	}
	b.odd = report.Faults
	return b, nil
}

// gap is the longest time between one granted claim and the next.
func gap(won []time.Time) (longest time.Duration) {
	won = slices.SortedFunc(slices.Values(won), time.Time.Compare)
	for i := 1; i < len(won); i++ {
		longest = max(longest, won[i].Sub(won[i-1]))
	}
	return longest
}

func (b result) clean() bool {
	return b.lost == 0 && b.doubled == 0 && b.oversold == 0 && len(b.broken) == 0
}

func (b result) String() string {
	lines := []string{
		fmt.Sprintf("acknowledged %d, unknown %d, lost %d, doubled %d, oversold %d",
			b.acknowledged, b.unknown, b.lost, b.doubled, b.oversold),
		"answers: " + strings.Join(b.answers, ", "),
	}
	return strings.Join(slices.Concat(lines, b.broken, b.odd), "\n  ")
}
