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

// Plan says what is sold, and to how many.
type Plan struct {
	// Address is the service's "host:port".
	Address string
	// Connections is how many claims can be under way at once. They arrive at Rate (in a second) for the Duration, each from
	// another user, evenly for one of the Coupons.
	Connections int
	Rate        float64
	Duration    time.Duration
	Coupons     []string
}

// Sale is a sale in which everybody who is left without a clear answer asks again.
type Sale struct {
	service load.Service
	lots    []lot
	users   []int // of each user: his place among those of his coupon
	run     *load.Run

	mu   sync.Mutex
	told []Reply
}

// lot is what is sold of one coupon.
type lot struct {
	coupon string
	stock  int
	users  []string
	book   *check.Checker
	// Of each user: how often he was told 201, and whether he was told that he has the coupon.
	granted []int
	has     []bool
}

// Reply is an answer to a user of the sale, and which of its coupons he wanted.
type Reply struct {
	User, Coupon int
	Answer       load.Answer
	Sent, At     time.Time
}

// Open creates the coupons, of which a tenth less are there than users come, and lets the users in.
func Open(ctx context.Context, p Plan) (*Sale, error) {
	n := int(p.Rate * p.Duration.Seconds())
	s := &Sale{
		service: load.Service{Address: p.Address, Timeout: time.Minute},
		lots:    make([]lot, len(p.Coupons)),
		users:   make([]int, n),
	}
	users, which := load.Users(n), load.Evenly(n, len(p.Coupons), 1)
	for i, user := range users {
		l := &s.lots[which[i]]
		s.users[i] = len(l.users)
		l.users = append(l.users, user)
	}
	for i := range s.lots {
		l := &s.lots[i]
		l.coupon, l.stock = p.Coupons[i], len(l.users)*9/10
		if err := s.service.Create(ctx, l.coupon, l.stock); err != nil {
			return nil, err
		}
		l.book, l.granted, l.has = check.New(l.coupon, l.stock, l.users), make([]int, len(l.users)), make([]bool, len(l.users))
	}
	var err error
	s.run, err = load.Start(ctx, load.Plan{
		Address: p.Address, Connections: p.Connections, Requests: n, Rate: p.Rate, Seed: 1,
		Request: func(i int) load.Request { return load.Request{User: users[i], Coupon: p.Coupons[which[i]]} },
		Answered: func(i int, answer load.Answer, r load.Response) (again bool, pause time.Duration) {
			s.answered(Reply{User: i, Coupon: int(which[i]), Answer: answer, Sent: r.Sent, At: r.Answered})
			// Spread over a second, so that they do not come back all at once.
			return !answer.Definite(), r.RetryAfter/2 + time.Duration(i%1000)*time.Millisecond
		},
	})
	return s, err
}

func (s *Sale) answered(t Reply) {
	l, user := &s.lots[t.Coupon], s.users[t.User]
	l.book.Record(user, t.Answer, t.Sent, t.At)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, t)
	switch t.Answer {
	case load.Claimed:
		l.granted[user]++
		l.has[user] = true
	case load.AlreadyClaimed:
		l.has[user] = true
	}
}

// Arriving says whether there are still users who have not come, or were left without a clear answer.
func (s *Sale) Arriving() bool {
	select {
	case <-s.run.Done():
		return false
	default:
		return true
	}
}

// Result is what came of a sale.
type Result struct {
	// Acknowledged is how many claims were told as granted, and Unknown how many answers left that open. Nothing was Lost that
	// a user was told that he has, nobody has a coupon twice (Doubled), and no more were granted than there were (Oversold).
	Acknowledged, Unknown, Lost, Doubled, Oversold int
	// Failed is how many requests had anything but a clear answer.
	Failed int
	// Replies has every answer, in no order: many connections note what they were told.
	Replies []Reply

	answers []string
	broken  []string
	odd     []string // what the first failed requests came to
}

// Close waits for the last answer and compares what the users were told with what the service reports.
func (s *Sale) Close(ctx context.Context) (Result, error) {
	report := s.run.Wait()
	b := Result{Replies: s.told, odd: report.Faults}
	for _, c := range report.Claims.Answers {
		b.answers = append(b.answers, fmt.Sprintf("%d × %v", c.Times, c.Answer))
	}
	for _, t := range s.told {
		if t.Answer == load.Claimed {
			b.Acknowledged++
		}
		if !t.Answer.Definite() {
			b.Failed++
		}
		if t.Answer.Ambiguous() {
			b.Unknown++
		}
	}
	for i := range s.lots {
		if err := s.lots[i].close(ctx, s.service, &b); err != nil {
			return Result{}, err
		}
	}
	return b, nil
}

func (l *lot) close(ctx context.Context, service load.Service, b *Result) error {
	reported, err := service.Coupon(ctx, l.coupon)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", l.coupon, err)
	}
	listed := make(map[string]bool, len(reported.ClaimedBy))
	for _, user := range reported.ClaimedBy {
		if listed[user] {
			b.Doubled++
		}
		listed[user] = true
	}
	for i, user := range l.users {
		b.Doubled += max(0, l.granted[i]-1)
		if l.has[i] && !listed[user] {
			b.Lost++
		}
	}
	b.Oversold += max(0, len(reported.ClaimedBy)-l.stock)
	for _, promise := range l.book.Check(reported).Guarantees {
		if promise.Violations > 0 {
			b.broken = append(b.broken, fmt.Sprintf("%s: broken %d times: %s (%s)", l.coupon, promise.Violations, promise.Text, strings.Join(promise.Examples, "; ")))
		}
	}
	return nil
}

// OK says whether every promise was kept.
func (b Result) OK() bool {
	return b.Lost == 0 && b.Doubled == 0 && b.Oversold == 0 && len(b.broken) == 0
}

func (b Result) String() string {
	lines := []string{
		fmt.Sprintf("acknowledged %d, unknown %d, lost %d, doubled %d, oversold %d",
			b.Acknowledged, b.Unknown, b.Lost, b.Doubled, b.Oversold),
		"answers: " + strings.Join(b.answers, ", "),
	}
	broken := b.broken
	if most := 10; len(broken) > most {
		broken = append(broken[:most:most], fmt.Sprintf("and %d more", len(b.broken)-most))
	}
	return strings.Join(slices.Concat(lines, broken, b.odd), "\n  ")
}

// Gap is the longest time without a granted claim, of that between two moments. It wants the answers from beyond them as well:
// what is granted or refused afterwards shows that there was something to sell until then. When all is sold, nothing is missing.
func Gap(told []Reply, from, to time.Time) (longest time.Duration) {
	last := from
	for _, t := range slices.SortedFunc(slices.Values(told), func(a, b Reply) int { return a.At.Compare(b.At) }) {
		granted := t.Answer == load.Claimed
		if t.At.Before(from) || !granted && t.Answer.Definite() {
			continue
		}
		at := t.At
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
