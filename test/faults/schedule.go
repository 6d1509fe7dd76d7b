package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// Streams of chance: each thing that is drawn has its own, so that the seed gives the same faults whatever the clients do.
const (
	faultStream = iota << 32
	saleStream
	cellStream
	partyStream
	shopperStream
)

func (r *run) random(stream uint64, number int) *rand.Rand {
	return rand.New(rand.NewPCG(r.options.seed, stream+uint64(number)))
}

// blow is what happens at once: one fault, or two of different places.
type blow struct {
	faults []*fault
	pause  time.Duration // before it
	seeds  []uint64      // of the faults
}

// deck deals blows without an end. All kinds come before any comes again, in an order that the seed decides; every third blow is
// of two at once.
type deck struct {
	faults []*fault
	random *rand.Rand
	rest   []*fault
	dealt  int
}

func (d *deck) next() blow {
	d.dealt++
	b := blow{pause: between(d.random, 1500*time.Millisecond, 3500*time.Millisecond)}
	b.faults = append(b.faults, d.draw(-1))
	if d.dealt%3 == 0 {
		if second := d.draw(b.faults[0].place); second != nil {
			b.faults = append(b.faults, second)
		}
	}
	for range b.faults {
		b.seeds = append(b.seeds, d.random.Uint64())
	}
	return b
}

// draw takes the next fault of another place, or none when no such one is left in this deal; any place is another than -1.
func (d *deck) draw(other place) *fault {
	if len(d.rest) == 0 {
		d.rest = append(d.rest, d.faults...)
		d.random.Shuffle(len(d.rest), func(i, j int) { d.rest[i], d.rest[j] = d.rest[j], d.rest[i] })
	}
	for i, f := range d.rest {
		if f.place != other {
			d.rest = append(d.rest[:i:i], d.rest[i+1:]...)
			return f
		}
	}
	return nil
}

// rage deals blow after blow until faulting ends, each when the service has recovered from the last.
func (r *run) rage(ctx, faulting context.Context, faults []*fault) {
	d := &deck{faults: faults, random: r.random(faultStream, 0)}
	for {
		b := d.next()
		pause(faulting, b.pause)
		if faulting.Err() != nil {
			return
		}
		if err := r.strike(ctx, faulting, b); err != nil {
			r.found.broken.note("%s: %v", names(b.faults), err)
			r.say("BROKEN: %s: %v", names(b.faults), err)
			return // what comes next would only be about a world that lies in ruins
		}
	}
}

// strike inflicts one blow, and waits until the service is healthy again by itself.
func (r *run) strike(ctx, faulting context.Context, b blow) error {
	for _, f := range b.faults {
		r.count.fault(f)
	}
	r.say("%s  fault: %s", r.clock(), names(b.faults))
	window := r.weather.begin(b.faults)
	defer r.weather.end(window)
	var all errgroup.Group
	for i, f := range b.faults {
		random := rand.New(rand.NewPCG(b.seeds[i], 0))
		all.Go(func() error {
			if err := f.inflict(faulting, r.world, random); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	return r.world.healthy(ctx)
}
