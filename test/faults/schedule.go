package main

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"scalable-coupon-system/bench/load"
)

// schedule draws faults without an end: one, or two of different layers that are injected together.
// Each kind of fault comes once before any comes again, in random order. Every third time there are
// two faults, but those of clientLayer come alone.
func schedule(faults []*fault, random *rand.Rand) iter.Seq[[]*fault] {
	return func(yield func([]*fault) bool) {
		var remaining []*fault // of this round
		for drawn := 1; len(faults) > 0; drawn++ {
			if len(remaining) == 0 {
				remaining = slices.Clone(faults)
				random.Shuffle(len(remaining), func(i, j int) { remaining[i], remaining[j] = remaining[j], remaining[i] })
			}
			next := []*fault{remaining[0]}
			remaining = remaining[1:]
			if first := next[0].layer; drawn%3 == 0 && first != clientLayer {
				i := slices.IndexFunc(remaining, func(f *fault) bool { return f.layer != clientLayer && f.layer != first })
				if i >= 0 {
					next = append(next, remaining[i])
					remaining = slices.Delete(remaining, i, i+1)
				}
			}
			if !yield(next) {
				return
			}
		}
	}
}

// injectFaults injects faults until injecting ends, each after the service has recovered from the
// one before. A fault that has begun also ends regularly.
func (t *faultTest) injectFaults(ctx, injecting context.Context) {
	faults := slices.DeleteFunc(allFaults(), func(f *fault) bool {
		return !t.options.Only.MatchString(f.name) || f.name == walDiskFull && t.env.noWALDisk != ""
	})
	injected := 0
	for next := range schedule(faults, t.random(scheduleStream, 0)) {
		random := t.random(faultStream, injected)
		pause(injecting, between(random, 500*time.Millisecond, 2*time.Second))
		if injecting.Err() != nil {
			break
		}
		injected++
		t.printf("%s; next: %q", t.summary(), next)
		if err := t.inject(ctx, next, random); err != nil {
			t.violated(notRecovered, "%q: %v", next, err)
			break // a further fault would show only the consequences of this one
		}
	}
	if injected == 0 {
		t.violated(notRecovered, "no fault was injected: --duration %s, --only %q; no disk for the WAL: %q",
			t.options.Duration, t.options.Only, t.env.noWALDisk)
	}
}

// inject injects the faults and waits until the service is healthy again by itself.
func (t *faultTest) inject(ctx context.Context, faults []*fault, random *rand.Rand) error {
	endOutage := t.beginOutage(faults)
	defer endOutage()
	var all errgroup.Group
	for _, f := range faults {
		t.count("fault: "+f.name, 1)
		one := rand.New(rand.NewPCG(random.Uint64(), 0))
		all.Go(func() error {
			if f.disturb != nil {
				return t.disturb(ctx, f, one)
			}
			return f.inject(ctx, t.env, one)
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if err := t.env.waitHealthy(ctx); err != nil {
		return err
	}
	return t.checkMemory(faults...)
}

// outage is the time window of one fault, or of two that were injected together. A fault applies to
// a request if it was active at any time between the sending of the request and its answer.
type outage struct {
	faults     []*fault
	start, end time.Time // end is zero while a fault is active
}

// aftermath is how long a fault has an effect after all instances are healthy again: a pooled
// connection that it broke is noticed when the connection is used next (pgx checks only those that
// were idle for a second).
const aftermath = 1500 * time.Millisecond

// beginOutage begins an outage. The function that it returns ends it, after the aftermath.
func (t *faultTest) beginOutage(faults []*fault) (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := &outage{faults: faults, start: time.Now()}
	t.outages = append(t.outages, o)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		o.end = time.Now().Add(aftermath)
	}
}

// allow reports whether a fault that applies to the request may cause the answer.
func (t *faultTest) allow(a load.Answer, sent, answered time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.outages, func(o *outage) bool {
		return !o.start.After(answered) && (o.end.IsZero() || !o.end.Before(sent)) &&
			slices.ContainsFunc(o.faults, func(f *fault) bool { return slices.Contains(f.allowed, a) })
	})
}
