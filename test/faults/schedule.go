package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// Random streams. Each has a purpose of its own, so that the faults depend on the seed only, not on
// what the clients do.
const (
	faultStream = iota << 32
	saleStream
	smallCouponStream
	smallClientStream
	saleClientStream
	bystanderStream
	otherClientsStream
)

func (t *faultTest) random(stream uint64, number int) *rand.Rand {
	return rand.New(rand.NewPCG(t.options.seed, stream+uint64(number)))
}

// injection is one fault, or two of different layers that are injected together.
type injection struct {
	faults []*fault
	delay  time.Duration // before it
	seeds  []uint64      // one for each fault
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
	for i, f := range s.remaining {
		if fits(f) {
			s.remaining = append(s.remaining[:i:i], s.remaining[i+1:]...)
			return f
		}
	}
	return nil
}

// injectFaults injects one after another until injecting ends, each after the service has recovered
// from the one before.
func (t *faultTest) injectFaults(ctx, injecting context.Context, faults []*fault) {
	s := &schedule{faults: faults, random: t.random(faultStream, 0)}
	for {
		n := s.next()
		pause(injecting, n.delay)
		if injecting.Err() != nil {
			return
		}
		if err := t.inject(ctx, injecting, n); err != nil {
			t.violations.notRecovered.add("%s: %v", names(n.faults), err)
			t.printf("NOT RECOVERED: %s: %v", names(n.faults), err)
			return // a further fault would show only the consequences of this one
		}
	}
}

// inject injects the faults and waits until the service is healthy again by itself.
func (t *faultTest) inject(ctx, injecting context.Context, n injection) error {
	for _, f := range n.faults {
		t.count.fault(f)
	}
	t.printf("%s  fault: %s", t.clock(), names(n.faults))
	if f := n.faults[0]; f.start != nil {
		return t.injectAndCompare(ctx, injecting, f, rand.New(rand.NewPCG(n.seeds[0], 0)))
	}
	window := t.outages.start(n.faults)
	defer t.outages.finish(window)
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
	if err := all.Wait(); err != nil {
		return err
	}
	if err := t.env.waitHealthy(ctx); err != nil {
		return err
	}
	return t.checkMemory(names(n.faults))
}
