package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"scalable-coupon-system/bench/load"
)

// Who asks. The parties' clients wait for each other at each cell; those of the sales never do.
const (
	parties  = 8
	shoppers = 48 // at the first series of sales
	visitors = 16 // at the second
)

// run is one run of the proof.
type run struct {
	options options
	out     io.Writer
	saying  sync.Mutex
	began   time.Time
	took    time.Duration // until the last client was done
	started time.Time     // on the wall

	world   *world
	weather weather
	count   *counters
	found   *findings
	leftOut []string // faults that cannot be inflicted here
	checked int      // coupons held against the tables
	claims  int      // in them

	mu       sync.Mutex
	ledgers  []*ledger
	drawings int
}

func newRun(o options, out io.Writer) *run {
	return &run{options: o, out: out, began: time.Now(), started: time.Now(), count: newCounters(), found: newFindings()}
}

// say writes a line for whoever watches.
func (r *run) say(format string, args ...any) {
	r.saying.Lock()
	defer r.saying.Unlock()
	_, _ = fmt.Fprintf(r.out, format+"\n", args...)
}

// clock is the time of the run, for the beginning of a line.
func (r *run) clock() string {
	return fmt.Sprintf("%7.1f s", time.Since(r.began).Seconds())
}

// keep remembers a coupon for the end.
func (r *run) keep(l *ledger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledgers = append(r.ledgers, l)
}

// drawing is where a history without an order is drawn; the first few are enough.
func (r *run) drawing(coupon string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.drawings == maxExamples {
		return "", fmt.Errorf("%d are drawn already", maxExamples)
	}
	r.drawings++
	return filepath.Join(filepath.Dir(r.options.report), "history-"+coupon+".html"), nil
}

// overtime bounds what follows when the duration is over: the last fault, the sales under way, the comparison with the tables.
const overtime = 5 * time.Minute

// hold goes on for the duration, or until ctx ends, and then compares.
func (r *run) hold(ctx context.Context) {
	r.began = time.Now()
	faults, leftOut := possibleFaults(r.world)
	r.leftOut = leftOut
	for _, what := range leftOut {
		r.say("NOT TRIED HERE: %s", what)
	}

	working, giveUp := context.WithTimeout(context.WithoutCancel(ctx), r.options.duration+overtime)
	defer giveUp()
	selling, endSelling := context.WithCancel(ctx)
	defer endSelling()
	var clients sync.WaitGroup
	for i := range parties {
		clients.Go(func() { r.party(working, selling, i) })
	}
	clients.Go(func() { r.hot(working, selling, 0, shoppers) })
	clients.Go(func() { r.hot(working, selling, 1, visitors) })

	faulting, endFaults := context.WithTimeout(selling, r.options.duration)
	defer endFaults()
	raged := make(chan struct{})
	go func() {
		defer close(raged)
		r.rage(working, faulting, faults)
	}()
	telling, endTelling := context.WithCancel(working)
	var teller sync.WaitGroup
	teller.Go(func() { r.tell(telling) })

	// A fault that broke the proof ends it early.
	<-raged
	endSelling()
	clients.Wait()
	endTelling()
	teller.Wait()
	r.took = time.Since(r.began)
	if working.Err() != nil {
		r.found.broken.note("the clients were not done %s after the end", overtime)
	}
	// Ctrl-C ends the run, not the comparison.
	r.compare(context.WithoutCancel(ctx))
}

// compare stops the service, and holds the tables against all that was told.
func (r *run) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, overtime)
	defer cancel()
	r.say("%s  comparing all that was told with the tables", r.clock())
	for _, one := range r.world.instances {
		if err := one.stop(); err != nil {
			r.found.broken.note("%v", err)
		}
	}
	all, err := r.world.readAll(ctx)
	if err != nil {
		r.found.broken.note("the tables cannot be read: %v", err)
		return
	}
	r.checked = len(all)
	for _, s := range all {
		r.claims += len(s.users)
	}
	compareAll(r.ledgers, all, r.found)
}

// tell says what goes on.
func (r *run) tell(ctx context.Context) {
	last, then := 0, time.Now()
	for {
		pause(ctx, r.options.every)
		if ctx.Err() != nil {
			return
		}
		f, now := r.count.figures(), time.Now()
		rate := float64(f.total-last) / now.Sub(then).Seconds()
		last, then = f.total, now
		line := fmt.Sprintf("%s  %s operations, %s/s   %s   histories %s   sales %d   faults %d",
			r.clock(), thousands(f.total), thousands(int(rate)), answersInShort(f), thousands(f.histories), f.sales, f.faults)
		if under := r.weather.now(); under != "" {
			line += "   now: " + under
		}
		r.say("%s", line)
		for _, one := range r.found.all() {
			if n := one.times(); n > 0 {
				r.say("FOUND %d %s", n, one.what)
			}
		}
	}
}

// answersInShort counts answers by status.
func answersInShort(f figures) string {
	groups := []string{"200", "201", "400", "404", "409", "503 surely not", "503 unknown", "no answer"}
	counts := map[string]int{}
	for _, c := range f.answers {
		name := fmt.Sprint(c.Answer.Status)
		switch {
		case c.Answer.Status == 0:
			name = "no answer"
		case c.Answer == load.OutcomeUnknown:
			name = "503 unknown"
		case isSurelyNot(c.Answer):
			name = "503 surely not"
		}
		counts[name] += c.Times
	}
	var parts []string
	for _, name := range groups {
		parts = append(parts, name+" "+thousands(counts[name]))
	}
	return strings.Join(parts, "  ")
}
