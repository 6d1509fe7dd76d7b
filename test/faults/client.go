package main

import (
	"context"
	"slices"
	"strconv"
	"time"

	"scalable-coupon-system/bench/load"
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
	test     *faultTest
	conns    []*load.Client // by instance, the preferred one first
	answered []time.Time    // the last answer on each of conns
}

// newClients makes n clients, which prefer one instance after the other.
func (t *faultTest) newClients(n int) []*client {
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = &client{test: t, answered: make([]time.Time, instances)}
		for next := range instances {
			clients[i].conns = append(clients[i].conns, load.NewClient(t.env.instances[(i+next)%instances].address, answerTimeout))
		}
	}
	return clients
}

func closeAll(clients []*client) {
	for _, c := range clients {
		for _, conn := range c.conns {
			conn.Close()
		}
	}
}

// send sends a request once, to the first instance that can be connected to.
func (c *client) send(do func(*load.Client) (load.Answer, load.Response, error)) (answer load.Answer, response load.Response) {
	for i, conn := range c.conns {
		if time.Since(c.answered[i]) > maxIdle {
			conn.Close()
			c.answered[i] = time.Time{} // the next connection has no answer yet, so it is not idle
		}
		before := c.answered[i]
		var err error
		if answer, response, err = do(conn); answer == load.NotSent {
			c.test.results.count("connections refused, after which a client used the other instance", 1)
			continue
		}
		c.answered[i] = response.Answered
		wasIdle := answer == load.Cut && !before.IsZero() && response.Sent.Sub(before) > lateAfter
		c.test.addAnswer(answer, response, err, wasIdle)
		return answer, response
	}
	c.test.addAnswer(answer, response, nil, false)
	return answer, response
}

// create creates a coupon, and records the answer.
func (c *client) create(ctx context.Context, one coupon) (load.Answer, load.Response) {
	answer, response := c.send(func(conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Create(ctx, one.name, one.amount)
	})
	one.RecordCreation(answer, response.Answered)
	return answer, response
}

// claim claims a coupon, and records the answer.
func (c *client) claim(ctx context.Context, user string, one coupon) (load.Answer, load.Response) {
	answer, response := c.send(func(conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Send(ctx, load.Request{User: user, Coupon: one.name})
	})
	one.Record(one.User(user), answer, response.Sent, response.Answered)
	return answer, response
}

// read reads a coupon.
func (c *client) read(ctx context.Context, name string) (load.Answer, load.Response) {
	return c.send(func(conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Send(ctx, load.Request{Coupon: name, Read: true})
	})
}

// createUntilDefinite creates a coupon. It retries until the answer is definite or ctx ends.
func (c *client) createUntilDefinite(ctx context.Context, one coupon) {
	load.UntilDefinite(ctx, func() (load.Answer, load.Response) { return impatient(c.create(ctx, one)) })
}

// claimUntilDefinite claims a coupon. It retries until the answer is definite or ctx ends.
func (c *client) claimUntilDefinite(ctx context.Context, user string, one coupon) {
	load.UntilDefinite(ctx, func() (load.Answer, load.Response) { return impatient(c.claim(ctx, user, one)) })
}

// impatient lets a client retry sooner than Retry-After says.
func impatient(answer load.Answer, response load.Response) (load.Answer, load.Response) {
	response.RetryAfter = 0
	return answer, response
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
		t.results.count("connections closed by a shutdown after they were idle for too long", 1)
	case slices.Contains(expected, a), t.outages.allow(a, response.Sent, response.Answered):
	case a == load.Unavailable || a == load.Overloaded:
		// Nothing was executed, and the client knows it: on a busy machine a statement may time out
		// without a fault.
		t.results.count("answers UNAVAILABLE or OVERLOADED without an active fault that may cause them", 1)
	default:
		t.results.violated(notAllowed, "%v at %v (sent %v before): %v", a, response.Answered.Sub(t.began).Round(time.Millisecond),
			took.Round(time.Millisecond), err)
	}
	t.results.mu.Lock()
	defer t.results.mu.Unlock()
	t.results.answers[a]++
	t.results.longest = max(t.results.longest, took)
}
