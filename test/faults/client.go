package main

import (
	"context"
	"math/rand/v2"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

const (
	// askWithin is the longest that a client waits for an answer. The service promises each of them within CLAIM_TIMEOUT, and no
	// fault may change that: a client that gives up is a broken promise.
	askWithin = 3 * claimTimeout
	// silentFor is how long a client keeps a connection on which it says nothing. A closing door waits 250 ms for the next
	// request of a connection; who is silent for longer may be cut, as HTTP allows, so who was silent for less dials anew.
	silentFor = 100 * time.Millisecond
	// lateAfter is when a client is so late with its request that the door may have closed.
	lateAfter = 200 * time.Millisecond
)

// client asks the service as one user's browser would do behind a load balancer: at one of the instances, and at the next one
// when that one surely did not get the request. It is one goroutine's.
type client struct {
	run    *run
	to     []*load.Client // by instance
	heard  []time.Time    // the last answer from each
	random *rand.Rand
	tries  int // without a clear answer
}

// newClients makes so many clients, at home with one instance after the other. Their chance is that of a stream and a number.
func (r *run) newClients(n int, stream uint64, number int) []*client {
	clients := make([]*client, n)
	for i := range clients {
		c := &client{run: r, heard: make([]time.Time, instances), random: r.random(stream, number<<16+i)}
		for next := range instances {
			c.to = append(c.to, load.NewClient(r.world.instances[(i+next)%instances].address, askWithin))
		}
		clients[i] = c
	}
	return clients
}

func closeAll(clients []*client) {
	for _, c := range clients {
		for _, to := range c.to {
			to.Close()
		}
	}
}

// ask sends a request once, to the first instance that takes it.
func (c *client) ask(ctx context.Context, send func(context.Context, *load.Client) (load.Answer, load.Response, error)) (load.Answer, load.Response) {
	var answer load.Answer
	var response load.Response
	for i, to := range c.to {
		if time.Since(c.heard[i]) > silentFor {
			to.Close()
		}
		before := c.heard[i]
		var err error
		answer, response, err = send(ctx, to)
		if answer == load.NotSent {
			c.run.count.refused()
			continue
		}
		c.heard[i] = response.Answered
		late := answer == load.Cut && !before.IsZero() && response.Sent.Sub(before) > lateAfter
		c.run.answered(answer, response, err, late)
		return answer, response
	}
	c.run.answered(answer, response, nil, false)
	return answer, response
}

func (c *client) create(ctx context.Context, coupon string, amount int) (load.Answer, load.Response) {
	return c.ask(ctx, func(ctx context.Context, to *load.Client) (load.Answer, load.Response, error) {
		return to.Create(ctx, coupon, amount)
	})
}

func (c *client) claim(ctx context.Context, user, coupon string) (load.Answer, load.Response) {
	return c.ask(ctx, func(ctx context.Context, to *load.Client) (load.Answer, load.Response, error) {
		return to.Ask(ctx, load.Request{User: user, Coupon: coupon})
	})
}

func (c *client) read(ctx context.Context, coupon string) (load.Answer, load.Response) {
	return c.ask(ctx, func(ctx context.Context, to *load.Client) (load.Answer, load.Response, error) {
		return to.Ask(ctx, load.Request{Coupon: coupon, Read: true})
	})
}

// rest lets a client wait before it asks again: longer each time, and not all at once.
func (c *client) rest(ctx context.Context) {
	longest := min(20*time.Millisecond<<min(c.tries, 5), 400*time.Millisecond)
	c.tries++
	pause(ctx, longest/2+time.Duration(c.random.Int64N(int64(longest))))
}

// pause waits for so long, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// isClear says whether an answer tells how things stand: no weather, no silence.
func isClear(a load.Answer) bool { return !isSurelyNot(a) && !a.Ambiguous() }

// isOfContract says whether the contract has this answer for requests that are well-formed.
func isOfContract(a load.Answer) bool {
	switch a {
	case load.Claimed, load.ReadOK, load.AlreadyClaimed, load.OutOfStock, load.CouponNotFound, couponmodel.CouponExists:
		return true
	}
	return false
}
