package main

import (
	"context"
	"math"
	"slices"
	"strconv"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

const (
	// answerTimeout is how long a client waits for an answer. The service answers each request within
	// CLAIM_TIMEOUT, with any fault, so a client that times out is a violation.
	answerTimeout = 3 * claimTimeout
	// maxIdle is how long a client keeps an idle connection. On shutdown the service waits 250 ms for
	// the next request of a connection; then it may close it, as HTTP allows.
	maxIdle = 100 * time.Millisecond
	// lateAfter is the idle time after which a connection may have been closed by a shutdown, so that
	// a lost connection is not a violation. It is less than 250 ms, because the client's clock is not
	// the service's.
	lateAfter = 200 * time.Millisecond
)

// client sends requests as an HTTP client behind a load balancer would: to one instance, and to the
// next one if it cannot connect. It belongs to one goroutine.
type client struct {
	test   *faultTest
	number int
	conns  [instances]clientConn // by instance
}

type clientConn struct {
	*load.Client
	answered time.Time // when the last answer was read
}

// newClient returns a client. The numbers spread the clients over the instances.
func (t *faultTest) newClient(number int) *client {
	c := &client{test: t, number: number}
	for i, one := range t.env.instances {
		c.conns[i].Client = load.NewClient(one.address, answerTimeout)
	}
	return c
}

func (c *client) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

// send sends a request once, to the first instance that can be connected to.
func (c *client) send(do func(*load.Client) (load.Answer, load.Response, error)) (load.Answer, load.Response) {
	for i := 1; ; i++ {
		conn := &c.conns[(c.number+i-1)%instances]
		isNew := time.Since(conn.answered) > maxIdle
		if isNew {
			conn.Close()
		}
		answer, response, err := do(conn.Client)
		if answer == load.NotSent && i < instances {
			c.test.count("connections refused, after which a client used the other instance", 1)
			continue
		}
		wasIdle := answer == load.Cut && !isNew && response.Sent.Sub(conn.answered) > lateAfter
		conn.answered = response.Answered
		c.test.addAnswer(answer, response, err, wasIdle)
		return answer, response
	}
}

// attempt sends an operation on a coupon once, and records the answer.
func (c *client) attempt(ctx context.Context, one coupon, in input) (load.Answer, load.Response) {
	ctx = context.WithoutCancel(ctx) // an answer that is not awaited would count as ambiguous
	answer, response := c.send(func(conn *load.Client) (load.Answer, load.Response, error) {
		if in.kind == create {
			return conn.Create(ctx, one.name, one.amount)
		}
		return conn.Send(ctx, load.Request{User: in.user, Coupon: one.name, Read: in.kind == read})
	})
	out := output{answer: answer}
	switch in.kind {
	case create:
		one.RecordCreation(answer, response.Answered)
	case claim:
		one.Record(in.user, answer, response.Sent, response.Answered)
	case read:
		if answer != load.ReadOK {
			break
		}
		reported, err := load.ParseCoupon(response.Body) // the whole body was kept: only small coupons are read
		out.coupon = couponmodel.Coupon{Amount: reported.Amount, ClaimedBy: reported.ClaimedBy}
		if err != nil || reported.Name != one.name || reported.Remaining != out.coupon.Remaining() {
			c.test.violated(notAllowed, "a read of %s: %s: %v", one.name, response.Body, err)
		}
	}
	if one.history != nil {
		one.history.add(c.number, in, out, response.Sent, response.Answered)
	}
	return answer, response
}

// perform attempts an operation until the answer is definite or ctx ends, at most attempts times,
// with shorter pauses than Retry-After asks for.
func (c *client) perform(ctx context.Context, one coupon, in input, attempts int) {
	trying, giveUp := context.WithCancel(ctx)
	defer giveUp()
	load.UntilDefinite(trying, func() (load.Answer, load.Response) {
		if attempts--; attempts == 0 {
			giveUp()
		}
		answer, response := c.attempt(ctx, one, in)
		response.RetryAfter = 0
		return answer, response
	})
}

// untilDefinite attempts an operation until the answer is definite or ctx ends.
func (c *client) untilDefinite(ctx context.Context, one coupon, in input) {
	c.perform(ctx, one, in, math.MaxInt)
}

// userName returns the name of a user by number; all coupons have the same names.
func userName(number int) string { return "u" + strconv.Itoa(number) }

// expected are the answers that openapi.yaml has for a valid request without a fault.
var expected = []load.Answer{
	load.Created, load.CouponExists, load.Claimed, load.AlreadyClaimed, load.OutOfStock, load.CouponNotFound, load.ReadOK,
}

// addAnswer counts an answer and checks that it was allowed when it came. wasIdle says that the
// client was idle for so long before that a shutdown may have closed its connection.
func (t *faultTest) addAnswer(a load.Answer, response load.Response, err error, wasIdle bool) {
	took := response.Answered.Sub(response.Sent)
	switch {
	case wasIdle:
		t.count("connections closed by a shutdown after they were idle for too long", 1)
	case slices.Contains(expected, a), t.allow(a, response.Sent, response.Answered):
	case a == load.Unavailable || a == load.Overloaded:
		// Nothing was executed, and the client knows it: on a busy machine a statement may time out
		// without a fault.
		t.count("answers UNAVAILABLE or OVERLOADED without an active fault that may cause them", 1)
	default:
		t.violated(notAllowed, "%v at %v (sent %v before): %v", a, response.Answered.Sub(t.began).Round(time.Millisecond),
			took.Round(time.Millisecond), err)
	}
	t.count("answer "+a.String(), 1)
	t.count(allAnswers, 1)
	if a.Ambiguous() {
		t.count(ambiguousAnswers, 1)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.longest = max(t.longest, took)
}
