package drill

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
)

// Plan describes a sale.
type Plan struct {
	// Address is the service's "host:port".
	Address string
	// Connections is the largest number of claims in flight.
	Connections int
	// Rate is the number of claims that arrive per second during Duration, each of another user.
	// They are spread evenly over Coupons.
	Rate     float64
	Duration time.Duration
	Coupons  []string
}

// Sale is a running sale. Each user repeats their claim until they get a definite answer.
type Sale struct {
	service load.Service
	coupons []couponSale
	users   []int // for each user of the sale: their index in couponSale.users
	run     *load.Run

	mu      sync.Mutex
	replies []Reply
}

// couponSale is the part of a sale that concerns one coupon.
type couponSale struct {
	coupon  string
	stock   int
	users   []string
	checker *check.Checker
	// For each user: the number of answers 201, and whether any answer said that they have the
	// coupon.
	granted []int
	has     []bool
}

// Reply is an answer to a claim. User and Coupon are indexes: of the user in the sale, and of the
// coupon in Plan.Coupons.
type Reply struct {
	User, Coupon int
	Answer       load.Answer
	Sent, At     time.Time
}

// Open creates the coupons, with a stock for nine tenths of their users, and starts the claims.
func Open(ctx context.Context, p Plan) (*Sale, error) {
	n := int(p.Rate * p.Duration.Seconds())
	s := &Sale{
		service: load.Service{Address: p.Address, Timeout: time.Minute},
		coupons: make([]couponSale, len(p.Coupons)),
		users:   make([]int, n),
	}
	users, which := load.Users(n), load.Evenly(n, len(p.Coupons), 1)
	for i, user := range users {
		c := &s.coupons[which[i]]
		s.users[i] = len(c.users)
		c.users = append(c.users, user)
	}
	for i := range s.coupons {
		c := &s.coupons[i]
		c.coupon, c.stock = p.Coupons[i], len(c.users)*9/10
		if err := s.service.Create(ctx, c.coupon, c.stock); err != nil {
			return nil, err
		}
		c.checker = check.New(c.coupon, c.stock, c.users)
		c.granted, c.has = make([]int, len(c.users)), make([]bool, len(c.users))
	}
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		Address: p.Address, Connections: p.Connections, Requests: n, Rate: p.Rate, Seed: 1,
		Request: func(i int) load.Request { return load.Request{User: users[i], Coupon: p.Coupons[which[i]]} },
		Answered: func(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
			s.record(Reply{User: i, Coupon: int(which[i]), Answer: answer, Sent: r.Sent, At: r.Answered})
			// Spread over a second, so that the repeated claims do not arrive at the same moment.
			return !answer.Definite(), r.RetryAfter/2 + time.Duration(i%1000)*time.Millisecond
		},
	})
	return s, err
}

func (s *Sale) record(r Reply) {
	c, user := &s.coupons[r.Coupon], s.users[r.User]
	c.checker.Record(user, r.Answer, r.Sent, r.At)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies = append(s.replies, r)
	switch r.Answer {
	case load.Claimed:
		c.granted[user]++
		c.has[user] = true
	case load.AlreadyClaimed:
		c.has[user] = true
	}
}

// Running reports whether users without a definite answer are left.
func (s *Sale) Running() bool {
	select {
	case <-s.run.Done():
		return false
	default:
		return true
	}
}

// Result is the result of a sale.
type Result struct {
	// Acknowledged counts answers 201. Ambiguous counts answers to claims that may have been
	// committed.
	Acknowledged, Ambiguous int
	// Lost counts users with an answer that they have the coupon, but without a stored claim.
	// Duplicates counts claims of a user beyond the first, answered or stored. Oversold counts
	// stored claims beyond the stock. All must be 0.
	Lost, Duplicates, Oversold int
	// Failed counts answers that were not definite, so that the claim was repeated.
	Failed int
	// Replies has all answers, in no particular order.
	Replies []Reply

	answers    []string
	violations []string
	errors     []string // of the first failed requests
}

// Close waits for the last answer, and compares the answers with what the service has stored.
func (s *Sale) Close(ctx context.Context) (Result, error) {
	report := s.run.Wait()
	result := Result{Replies: s.replies, errors: report.Errors}
	for _, c := range report.Claims.Answers {
		result.answers = append(result.answers, fmt.Sprintf("%d × %v", c.Times, c.Answer))
	}
	for _, r := range s.replies {
		if r.Answer == load.Claimed {
			result.Acknowledged++
		}
		if !r.Answer.Definite() {
			result.Failed++
		}
		if r.Answer.Ambiguous() {
			result.Ambiguous++
		}
	}
	for i := range s.coupons {
		if err := s.coupons[i].check(ctx, s.service, &result); err != nil {
			return Result{}, err
		}
	}
	return result, nil
}

// check adds what it finds to result.
func (c *couponSale) check(ctx context.Context, service load.Service, result *Result) error {
	stored, err := service.Coupon(ctx, c.coupon)
	if err != nil {
		return fmt.Errorf("coupon %q: %w", c.coupon, err)
	}
	claimed := make(map[string]bool, len(stored.ClaimedBy))
	for _, user := range stored.ClaimedBy {
		if claimed[user] {
			result.Duplicates++
		}
		claimed[user] = true
	}
	for i, user := range c.users {
		result.Duplicates += max(0, c.granted[i]-1)
		if c.has[i] && !claimed[user] {
			result.Lost++
		}
	}
	result.Oversold += max(0, len(stored.ClaimedBy)-c.stock)
	for _, g := range c.checker.Check(stored).Guarantees {
		if g.Violations > 0 {
			result.violations = append(result.violations, fmt.Sprintf("coupon %q: %d violations of %q (%s)",
				c.coupon, g.Violations, g.Text, strings.Join(g.Examples, "; ")))
		}
	}
	return nil
}

// OK reports whether no guarantee was violated.
func (r Result) OK() bool {
	return r.Lost == 0 && r.Duplicates == 0 && r.Oversold == 0 && len(r.violations) == 0
}

func (r Result) String() string {
	lines := []string{
		fmt.Sprintf("acknowledged %d, ambiguous %d, lost %d, duplicates %d, oversold %d",
			r.Acknowledged, r.Ambiguous, r.Lost, r.Duplicates, r.Oversold),
		"answers: " + strings.Join(r.answers, ", "),
	}
	violations := r.violations
	if most := 10; len(violations) > most {
		violations = append(violations[:most:most], fmt.Sprintf("and %d more", len(r.violations)-most))
	}
	return strings.Join(slices.Concat(lines, violations, r.errors), "\n  ")
}

// Gap returns the longest time between from and to in which claims arrived but none was granted.
//
// replies must include later ones: a claim that is granted or must be repeated after to shows that
// coupons were left until then. The time after a sell-out does not count.
func Gap(replies []Reply, from, to time.Time) (longest time.Duration) {
	last := from
	for _, r := range slices.SortedFunc(slices.Values(replies), func(a, b Reply) int { return a.At.Compare(b.At) }) {
		granted := r.Answer == load.Claimed
		if r.At.Before(from) || !granted && r.Answer.Definite() {
			continue
		}
		at := r.At
		if at.After(to) {
			at = to
		}
		longest = max(longest, at.Sub(last))
		if granted {
			last = at
		}
	}
	return longest
}
