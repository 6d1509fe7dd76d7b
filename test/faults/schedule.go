package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"scalable-coupon-system/bench/load"
)

// injection is one fault, or two of different layers that are injected together.
type injection struct {
	faults []*fault
	delay  time.Duration // before it
	seeds  []uint64      // one for each fault
}

func (n injection) String() string {
	names := make([]string, len(n.faults))
	for i, f := range n.faults {
		names[i] = f.name
	}
	return strings.Join(names, " + ")
}

// schedule draws injections without an end. Each kind of fault comes once before any comes again,
// in random order. Every third injection has two faults, but those of clientLayer come alone.
type schedule struct {
	faults    []*fault
	random    *rand.Rand
	remaining []*fault // of this round
	drawn     int
}

func (s *schedule) next() injection {
	s.drawn++
	n := injection{delay: between(s.random, 1500*time.Millisecond, 3500*time.Millisecond)}
	first := s.draw(func(*fault) bool { return true })
	n.faults = append(n.faults, first)
	if s.drawn%3 == 0 && first.start == nil {
		if second := s.draw(func(f *fault) bool { return f.start == nil && f.layer != first.layer }); second != nil {
			n.faults = append(n.faults, second)
		}
	}
	for range n.faults {
		n.seeds = append(n.seeds, s.random.Uint64())
	}
	return n
}

// draw returns the next fault that fits, or nil if none is left in this round.
func (s *schedule) draw(fits func(*fault) bool) *fault {
	if len(s.remaining) == 0 {
		s.remaining = append(s.remaining, s.faults...)
		s.random.Shuffle(len(s.remaining), func(i, j int) {
			s.remaining[i], s.remaining[j] = s.remaining[j], s.remaining[i]
		})
	}
	i := slices.IndexFunc(s.remaining, fits)
	if i < 0 {
		return nil
	}
	f := s.remaining[i]
	s.remaining = slices.Delete(s.remaining, i, i+1)
	return f
}

// injectFaults injects one after another until injecting ends, each after the service has recovered
// from the one before.
func (t *faultTest) injectFaults(ctx, injecting context.Context) {
	faults := slices.DeleteFunc(allFaults(), func(f *fault) bool {
		return !t.options.injects(f) || f.name == walDiskFull && !t.env.walDisk
	})
	if len(faults) == 0 {
		t.results.violated(notRecovered, "no fault can be injected here: %s", t.env.noWALDisk)
		return
	}
	s := &schedule{faults: faults, random: t.random(faultStream, 0)}
	for {
		n := s.next()
		pause(injecting, n.delay)
		if injecting.Err() != nil {
			return
		}
		if err := t.inject(ctx, injecting, n); err != nil {
			t.results.violated(notRecovered, "%s: %v", n, err)
			return // a further fault would show only the consequences of this one
		}
	}
}

// inject injects the faults and waits until the service is healthy again by itself.
func (t *faultTest) inject(ctx, injecting context.Context, n injection) error {
	t.results.mu.Lock()
	for _, f := range n.faults {
		t.results.faults[f.name]++
	}
	t.results.mu.Unlock()
	t.logf("fault: %s", n)
	if f := n.faults[0]; f.start != nil {
		if err := t.injectAndCompare(injecting, f, rand.New(rand.NewPCG(n.seeds[0], 0))); err != nil {
			return err
		}
		return t.env.waitHealthy(ctx)
	}
	end := t.outages.begin(n.faults)
	defer end()
	var all errgroup.Group
	for i, f := range n.faults {
		random := rand.New(rand.NewPCG(n.seeds[i], 0))
		all.Go(func() error {
			if err := f.inject(injecting, t.env, random); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			return nil
		})
	}
	err := all.Wait()
	if err == nil {
		err = t.env.waitHealthy(ctx)
	}
	if err == nil {
		err = t.checkMemory(n.String())
	}
	return err
}

// outages records when which faults were active, and so which answers were allowed when. A fault
// applies to a request if it was active at any time between the sending of the request and its
// answer.
type outages struct {
	mu      sync.Mutex
	windows []*outage
}

// outage is the time window of one fault, or of two that were injected together.
type outage struct {
	faults     []*fault
	start, end time.Time // end is zero while a fault is active
}

// aftermath is how long a fault has an effect after all instances are healthy again: a pooled
// connection that it broke is noticed when the connection is used next (pgx checks only those that
// were idle for a second).
const aftermath = 1500 * time.Millisecond

// begin opens a window. The function that it returns closes it, after the aftermath.
func (o *outages) begin(faults []*fault) (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	window := &outage{faults: faults, start: time.Now()}
	o.windows = append(o.windows, window)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		window.end = time.Now().Add(aftermath)
	}
}

// allow reports whether a fault that applies to the request may cause the answer.
func (o *outages) allow(a load.Answer, sent, answered time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, window := range slices.Backward(o.windows) {
		if !window.end.IsZero() && window.end.Before(sent) {
			return false // all earlier windows ended before it, too
		}
		if !window.start.After(answered) && slices.ContainsFunc(window.faults, func(f *fault) bool { return slices.Contains(f.allowed, a) }) {
			return true
		}
	}
	return false
}
