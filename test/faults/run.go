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
	// progress, and the comparison with the tables.
	overtime = 5 * time.Minute
)

// faultTest is one run of the test.
type faultTest struct {
	options options
	began   time.Time
	took    time.Duration // until the last client was done
	env     *environment
	outages outages
	results *results

	mu       sync.Mutex
	out      io.Writer
	checkers []*check.Checker
}

func newFaultTest(o options, out io.Writer) *faultTest {
	return &faultTest{options: o, out: out, began: time.Now(), results: newResults()}
}

// printf prints a line of progress.
func (t *faultTest) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.out, format+"\n", args...)
}

// logf prints a line that begins with the time since the start.
func (t *faultTest) logf(format string, args ...any) {
	t.printf("%7.1f s  %s", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// coupon is a coupon whose answers are compared with the tables at the end.
type coupon struct {
	*check.Checker
	name   string
	amount int
}

func (t *faultTest) newCoupon(name string, amount int) coupon {
	c := coupon{check.New(name, amount, nil), name, amount}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checkers = append(t.checkers, c.Checker)
	return c
}

// Random streams. Each has a purpose of its own, so that the faults depend on the seed only, not on
// what the clients do.
const (
	faultStream = iota << 32
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
	// When starting ends, clients begin no new coupon.
	starting, stopStarting := context.WithCancel(ctx)
	defer stopStarting()
	var clients sync.WaitGroup
	for i := range smallGroups {
		clients.Go(func() { t.useSmallCoupons(working, starting, i) })
	}
	clients.Go(func() { t.sell(working, starting, 0, firstSeries) })
	clients.Go(func() { t.sell(working, starting, 1, secondSeries) })
	printing, stopPrinting := context.WithCancel(working)
	defer stopPrinting()
	go t.printProgress(printing)

	// It ends early if the service does not recover from a fault.
	injecting, stopInjecting := context.WithTimeout(starting, t.options.Duration)
	defer stopInjecting()
	t.injectFaults(working, injecting)
	stopStarting()
	clients.Wait()
	stopPrinting()
	t.took = time.Since(t.began)
	if working.Err() != nil {
		t.results.violated(notRecovered, "the clients were not done %s after the end", overtime)
	}
	// An interrupt ends the run, but not the comparison.
	if err := t.compareWithTables(context.WithoutCancel(ctx)); err != nil {
		t.results.violated(notRecovered, "%v", err)
	}
}

// printProgress prints a line every few seconds until ctx ends.
func (t *faultTest) printProgress(ctx context.Context) {
	for pause(ctx, 5*time.Second); ctx.Err() == nil; pause(ctx, 5*time.Second) {
		t.logf("%s", t.results.summary())
	}
}

// compareWithTables stops the service and compares all answers with the tables.
func (t *faultTest) compareWithTables(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, overtime)
	defer cancel()
	t.logf("comparing all answers with the tables")
	var errs []error
	for _, instance := range t.env.instances {
		errs = append(errs, instance.stop())
	}
	stored, gaps, err := t.env.storedCoupons(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range gaps {
		t.results.violated(check.Inconsistent, "%s: the claim numbers are not 1, 2, 3 and so on", name)
	}
	t.checkAll(stored)
	return errors.Join(errs...)
}

// checkAll compares all answers with all stored coupons.
func (t *faultTest) checkAll(stored map[string]load.Coupon) {
	for _, c := range stored {
		t.results.count("coupons compared with the tables", 1)
		t.results.count("claims stored in them", len(c.ClaimedBy))
	}
	t.results.add(check.All(t.checkers, stored))
}

// checkMemory checks the peak memory of the instances since the last check. A container's limit
// counts the data in the send buffers of its connections, too. after names the faults.
func (t *faultTest) checkMemory(after string) error {
	for _, one := range t.env.instances {
		used, err := one.memory()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no /proc on this system
		}
		if err != nil {
			return fmt.Errorf("memory of an instance: %w", err)
		}
		t.results.mu.Lock()
		t.results.memory = max(t.results.memory, used)
		t.results.mu.Unlock()
		if used > procmem.Limit {
			t.results.violated(tooLarge, "%s: %d MiB with the send buffers; the limit is %d MiB", after, used>>20, procmem.Limit>>20)
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
