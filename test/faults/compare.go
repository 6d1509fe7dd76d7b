package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	bystanders   = 16
	measuredTime = 1500 * time.Millisecond // before a fault
	faultTime    = 4 * time.Second         // longer than CLAIM_TIMEOUT, so that claims that wait fail
)

// comparison is how fast the bystanders claimed before a fault and during it.
type comparison struct {
	fault          *fault
	before, during float64 // conclusive answers to claims, per second
}

// slowdown is how many times as long a claim of a bystander took during the fault. A client has
// one request in flight, so the mean time of a claim is the number of clients divided by the rate.
// Unlike a quantile of the answers, that includes claims without an answer and repeated ones.
func (c comparison) slowdown() float64 { return c.before / max(c.during, 0.01) }

// injectAndCompare injects a fault of clientLayer. Bystanders with coupons of their own claim
// before it and during it.
func (t *faultTest) injectAndCompare(ctx, injecting context.Context, f *fault, random *rand.Rand) error {
	claiming, stopClaiming := context.WithCancel(ctx)
	defer stopClaiming()
	claimed, waitBystanders := t.startBystanders(claiming, random.Uint64())
	pause(injecting, measuredTime/3) // they create their coupons
	before := perSecond(claimed, func() { pause(injecting, measuredTime) })

	window := t.outages.start([]*fault{f})
	defer t.outages.finish(window)
	faultCtx, stop := context.WithCancel(injecting)
	defer stop()
	var undo func() error
	var err error
	during := perSecond(claimed, func() {
		end := time.After(faultTime)
		if undo, err = f.start(faultCtx, t, random); err == nil {
			select {
			case <-end:
			case <-injecting.Done():
			}
		}
	})
	interrupted := injecting.Err() != nil
	if err == nil {
		err = t.checkMemory(f.name) // while its connections are open
		stop()
		err = errors.Join(err, undo())
	}
	stopClaiming()
	waitBystanders()
	if err != nil {
		return err
	}
	if !interrupted {
		t.compare(comparison{f, before, during})
	}
	return t.env.waitHealthy(ctx)
}

// compare checks a comparison, and keeps it for the report.
func (t *faultTest) compare(c comparison) {
	t.count.compared(c)
	t.printf("%s  others during %s: %.0f claims/s, before it %.0f", t.clock(), c.fault.name, c.during, c.before)
	if c.slowdown() > c.fault.slowdown {
		t.violations.slow.add("%s: claims of others took %.0f times as long, at most %.0f times is allowed (%.1f claims/s, before it %.1f)",
			c.fault.name, c.slowdown(), c.fault.slowdown, c.during, c.before)
	}
}

// perSecond returns by how much a counter grows per second while measured runs.
func perSecond(counter *atomic.Int64, measured func()) float64 {
	from, began := counter.Load(), time.Now()
	measured()
	return float64(counter.Load()-from) / time.Since(began).Seconds()
}

// startBystanders starts clients that claim one coupon each, every claim for another user, until
// ctx ends. It returns the counter of their conclusive answers, and a function that waits for them.
func (t *faultTest) startBystanders(ctx context.Context, number uint64) (claimed *atomic.Int64, wait func()) {
	const amount = 1 << 20
	claimed = new(atomic.Int64)
	clients := t.newClients(bystanders, bystanderStream, 0)
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() {
			storage := newStorageChecker(fmt.Sprintf("bystander-%x-%d", number, i), amount, 0)
			defer t.addChecker(storage)
			c.createUntilConclusive(ctx, storage)
			for user := 0; ctx.Err() == nil; user++ {
				c.claimUntilConclusive(ctx, storage, user)
				claimed.Add(1)
			}
		})
	}
	return claimed, func() {
		all.Wait()
		closeAll(clients)
	}
}

// createUntilConclusive creates the coupon of a checker. It retries until the answer is conclusive
// or ctx ends.
func (c *client) createUntilConclusive(ctx context.Context, s *storageChecker) {
	for c.failures = 0; ctx.Err() == nil; c.backOff(ctx) {
		answer, _ := c.create(ctx, s.coupon, s.amount)
		s.addCreation(answer)
		if isConclusive(answer) {
			return
		}
	}
}

// claimUntilConclusive claims the coupon of a checker for a user, who may be new to the checker. It
// retries until the answer is conclusive or ctx ends.
func (c *client) claimUntilConclusive(ctx context.Context, s *storageChecker, user int) {
	s.grow(user + 1)
	for c.failures = 0; ctx.Err() == nil; c.backOff(ctx) {
		answer, _ := c.claim(ctx, userName(user), s.coupon)
		s.addClaim(user, answer)
		if isConclusive(answer) {
			return
		}
	}
}
