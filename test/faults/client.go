package main

import (
	"context"
	"math/rand/v2"
	"time"

	"scalable-coupon-system/bench/load"
)

const (
	// answerTimeout is how long a client waits for an answer. The service answers each request within
	// CLAIM_TIMEOUT, with any fault, so a client that times out is a violation.
	answerTimeout = 3 * claimTimeout
	// maxIdle is how long a client keeps an idle connection. On shutdown the service waits 250 ms for
	// the next request of a connection; then it may close it, as HTTP allows. A client that was idle
	// for longer opens a new connection.
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
	conns    []*load.Client // by instance
	answered []time.Time    // the last answer on each of conns
	random   *rand.Rand
	failures int // answers in a row that were not conclusive
}

// newClients makes n clients, which prefer one instance after the other. Their random streams
// follow from stream and number.
func (t *faultTest) newClients(n int, stream uint64, number int) []*client {
	clients := make([]*client, n)
	for i := range clients {
		c := &client{test: t, answered: make([]time.Time, instances), random: t.random(stream, number<<16+i)}
		for next := range instances {
			c.conns = append(c.conns, load.NewClient(t.env.instances[(i+next)%instances].address, answerTimeout))
		}
		clients[i] = c
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
func (c *client) send(ctx context.Context, do func(context.Context, *load.Client) (load.Answer, load.Response, error)) (load.Answer, load.Response) {
	var answer load.Answer
	var response load.Response
	for i, conn := range c.conns {
		if time.Since(c.answered[i]) > maxIdle {
			conn.Close()
		}
		before := c.answered[i]
		var err error
		answer, response, err = do(ctx, conn)
		if answer == load.NotSent {
			c.test.count.refused()
			continue
		}
		c.answered[i] = response.Answered
		late := answer == load.Cut && !before.IsZero() && response.Sent.Sub(before) > lateAfter
		c.test.addAnswer(answer, response, err, late)
		return answer, response
	}
	c.test.addAnswer(answer, response, nil, false)
	return answer, response
}

func (c *client) create(ctx context.Context, coupon string, amount int) (load.Answer, load.Response) {
	return c.send(ctx, func(ctx context.Context, conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Create(ctx, coupon, amount)
	})
}

func (c *client) claim(ctx context.Context, user, coupon string) (load.Answer, load.Response) {
	return c.send(ctx, func(ctx context.Context, conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Send(ctx, load.Request{User: user, Coupon: coupon})
	})
}

func (c *client) read(ctx context.Context, coupon string) (load.Answer, load.Response) {
	return c.send(ctx, func(ctx context.Context, conn *load.Client) (load.Answer, load.Response, error) {
		return conn.Send(ctx, load.Request{Coupon: coupon, Read: true})
	})
}

// backOff waits before the next attempt: longer after each failure, with jitter.
func (c *client) backOff(ctx context.Context) {
	longest := min(20*time.Millisecond<<min(c.failures, 5), 400*time.Millisecond)
	c.failures++
	pause(ctx, longest/2+time.Duration(c.random.Int64N(int64(longest))))
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// isConclusive reports whether an answer says what the state is, so that there is nothing to retry.
func isConclusive(a load.Answer) bool { return !isNotExecuted(a) && !a.Ambiguous() }

// isNotExecuted reports whether an answer promises that the request was not executed.
func isNotExecuted(a load.Answer) bool {
	return a == load.Overloaded || a == load.Unavailable || a == load.NotSent
}

// isExpected reports whether openapi.yaml has this answer for a valid request without a fault.
func isExpected(a load.Answer) bool {
	switch a {
	case load.Claimed, load.ReadOK, load.AlreadyClaimed, load.OutOfStock, load.CouponNotFound, load.CouponExists:
		return true
	}
	return false
}
