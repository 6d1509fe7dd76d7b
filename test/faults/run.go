package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"scalable-coupon-system/bench/check"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/procmem"
)

const (
	smallGroups  = 8  // groups of clients that use small coupons
	firstSeries  = 48 // connections of the first series of sales
	secondSeries = 16 // connections of the second
	// overtime bounds what follows the duration: the end of the last fault and of the sales in
	// progress.
	overtime = 5 * time.Minute
)

// faultTest is one run of the test.
type faultTest struct {
	options options
	out     io.Writer
	env     *environment
	began   time.Time

	mu          sync.Mutex
	checkers    []*check.Checker
	outages     []*outage
	counts      map[string]int // by what they count
	longest     time.Duration  // wait for an answer
	memory      int64          // the largest of an instance, in bytes
	comparisons []string
	violations  map[check.Kind][]string // examples
}

func newFaultTest(o options, out io.Writer) *faultTest {
	t := &faultTest{
		options: o, out: out, env: &environment{noWALDisk: "it was not mounted"}, began: time.Now(),
		counts: map[string]int{}, violations: map[check.Kind][]string{},
	}
	for _, f := range allFaults() {
		t.counts["fault: "+f.name] = 0 // the report also lists those that are not injected
	}
	return t
}

// printf prints a line of progress, with the time since the start.
func (t *faultTest) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(t.out, "%7.1f s  %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// coupon is a coupon whose answers are compared with the tables at the end.
type coupon struct {
	*check.Checker
	name    string
	amount  int
	history *history // of a small coupon
}

func (t *faultTest) newCoupon(name string, amount int) coupon {
	c := coupon{Checker: check.New(name, amount, nil), name: name, amount: amount}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checkers = append(t.checkers, c.Checker)
	return c
}

// Random streams. Each has a purpose of its own, so that the faults depend on the seed only, not on
// what the clients do.
const (
	scheduleStream = iota << 32
	faultStream
	saleStream
	smallCouponStream
)

func (t *faultTest) random(stream uint64, number int) *rand.Rand {
	return rand.New(rand.NewPCG(t.options.Seed, stream+uint64(number)))
}

// run runs the clients and injects faults for the duration, or until ctx ends. Then it compares the
// answers with the tables.
func (t *faultTest) run(ctx context.Context) {
	t.began = time.Now()
	working, stopWorking := context.WithTimeout(context.WithoutCancel(ctx), t.options.Duration+overtime)
	defer stopWorking()
	// When starting ends, clients begin no new coupon, and no fault is injected.
	starting, stopStarting := context.WithTimeout(ctx, t.options.Duration)
	defer stopStarting()
	var clients sync.WaitGroup
	for i := range smallGroups {
		clients.Go(func() { t.useSmallCoupons(working, starting, i) })
	}
	clients.Go(func() { t.sell(working, starting, 0, firstSeries) })
	clients.Go(func() { t.sell(working, starting, 1, secondSeries) })

	t.injectFaults(working, starting)
	stopStarting() // injectFaults ends early if the service does not recover from a fault
	clients.Wait()
	if working.Err() != nil {
		t.violated(notRecovered, "the clients were not done %s after the end", overtime)
	}
	t.printf("%s; comparing all answers with the tables", t.summary())
	for _, one := range t.env.instances {
		if err := one.stop(); err != nil {
			t.violated(notRecovered, "%v", err)
		}
	}
	stored, err := t.env.storedCoupons(working)
	if err != nil {
		t.violated(notRecovered, "%v", err)
		return
	}
	t.checkAll(stored)
}

// checkAll compares all answers with all stored coupons.
func (t *faultTest) checkAll(stored []load.Coupon) {
	byName := map[string]load.Coupon{}
	for _, c := range stored {
		byName[c.Name] = c
		t.count("claims compared with the tables", len(c.ClaimedBy))
	}
	t.count("coupons compared with the tables", len(stored))
	for _, v := range check.All(t.checkers, byName).Violations {
		// Clients give up during faults, so it does not matter which users have no definite answer,
		// nor how many users won.
		if v.Kind != check.WrongCount && v.Kind != check.Undecided {
			t.violated(v.Kind, "%d: %q", v.Count, v.Examples)
		}
	}
}

// checkMemory checks the peak memory of the instances since the last check, which is that after the
// faults. A container's limit counts the data in the send buffers of its connections, too.
func (t *faultTest) checkMemory(after ...*fault) error {
	for _, one := range t.env.instances {
		used, err := one.memory()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no /proc on this system
		}
		if err != nil {
			return fmt.Errorf("memory of an instance: %w", err)
		}
		t.mu.Lock()
		t.memory = max(t.memory, used)
		t.mu.Unlock()
		if used > procmem.Limit {
			t.violated(tooLarge, "%q: %d MiB with the send buffers; the limit is %d MiB", after, used>>20, procmem.Limit>>20)
		}
	}
	return nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
