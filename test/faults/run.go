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

const (
	smallGroups  = 8  // groups of clients that use small coupons
	firstSeries  = 48 // connections of the first series of sales
	secondSeries = 16 // connections of the second
)

// faultTest is one run of the test.
type faultTest struct {
	options options
	out     io.Writer
	printMu sync.Mutex
	began   time.Time
	took    time.Duration // until the last client was done
	started time.Time     // the wall clock, for the report

	env        *environment
	outages    outages
	count      *counters
	violations *violations
	leftOut    []string // faults that cannot be injected on this machine
	checked    int      // coupons compared with the tables
	claims     int      // in these coupons

	mu       sync.Mutex
	checkers []*storageChecker
	drawings int
}

func newFaultTest(o options, out io.Writer) *faultTest {
	return &faultTest{
		options: o, out: out, began: time.Now(), started: time.Now(), count: newCounters(), violations: newViolations(),
	}
}

// printf prints a line of progress.
func (t *faultTest) printf(format string, args ...any) {
	t.printMu.Lock()
	defer t.printMu.Unlock()
	_, _ = fmt.Fprintf(t.out, format+"\n", args...)
}

// clock returns the time since the start, for the beginning of a line.
func (t *faultTest) clock() string {
	return fmt.Sprintf("%7.1f s", time.Since(t.began).Seconds())
}

// addChecker keeps the answers about a coupon for the comparison at the end.
func (t *faultTest) addChecker(c *storageChecker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checkers = append(t.checkers, c)
}

// drawingPath returns where to draw a history that is not linearizable, for the first few.
func (t *faultTest) drawingPath(coupon string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.drawings == maxExamples {
		return "", fmt.Errorf("%d histories are drawn already", maxExamples)
	}
	t.drawings++
	return filepath.Join(filepath.Dir(t.options.report), "history-"+coupon+".html"), nil
}

// overtime bounds what follows the duration: the end of the last fault and of the sales in
// progress, and the comparison with the tables.
const overtime = 5 * time.Minute

// run runs the clients and injects faults for the duration, or until ctx ends. Then it compares the
// answers with the tables.
func (t *faultTest) run(ctx context.Context) {
	t.began = time.Now()
	faults, leftOut := availableFaults(t.env, t.options.only)
	t.leftOut = leftOut
	for _, what := range leftOut {
		t.printf("NOT TESTED: %s", what)
	}

	working, stopWorking := context.WithTimeout(context.WithoutCancel(ctx), t.options.duration+overtime)
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

	injecting, stopInjecting := context.WithTimeout(starting, t.options.duration)
	defer stopInjecting()
	injected := make(chan struct{})
	go func() {
		defer close(injected)
		t.injectFaults(working, injecting, faults)
	}()
	printing, stopPrinting := context.WithCancel(working)
	var printer sync.WaitGroup
	printer.Go(func() { t.printProgress(printing) })

	// It also ends early, if the service did not recover from a fault.
	<-injected
	stopStarting()
	clients.Wait()
	stopPrinting()
	printer.Wait()
	t.took = time.Since(t.began)
	if working.Err() != nil {
		t.violations.notRecovered.add("the clients were not done %s after the end", overtime)
	}
	// An interrupt ends the run, but not the comparison.
	t.compareWithTables(context.WithoutCancel(ctx))
}

// compareWithTables stops the service and compares all answers with the tables.
func (t *faultTest) compareWithTables(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, overtime)
	defer cancel()
	t.printf("%s  comparing all answers with the tables", t.clock())
	for _, instance := range t.env.instances {
		if err := instance.stop(); err != nil {
			t.violations.notRecovered.add("%v", err)
		}
	}
	coupons, err := t.env.storedCoupons(ctx)
	if err != nil {
		t.violations.notRecovered.add("cannot read the tables: %v", err)
		return
	}
	t.checked = len(coupons)
	for _, c := range coupons {
		t.claims += len(c.users)
	}
	checkStorage(t.checkers, coupons, t.violations)
}

// printProgress prints a line at every interval until ctx ends.
func (t *faultTest) printProgress(ctx context.Context) {
	last, then := 0, time.Now()
	for {
		pause(ctx, t.options.progress)
		if ctx.Err() != nil {
			return
		}
		f, now := t.count.figures(), time.Now()
		rate := float64(f.total-last) / now.Sub(then).Seconds()
		last, then = f.total, now
		line := fmt.Sprintf("%s  %s operations, %s/s   %s   histories %s   sales %d   faults %d",
			t.clock(), thousands(f.total), thousands(int(rate)), answersByStatus(f), thousands(f.histories), f.sales, f.faults)
		if current := t.outages.current(); current != "" {
			line += "   now: " + current
		}
		t.printf("%s", line)
		for _, v := range t.violations.all() {
			if n := v.count(); n > 0 {
				t.printf("VIOLATION: %d %s", n, v.what)
			}
		}
	}
}

// answersByStatus summarizes the answers in a line.
func answersByStatus(f figures) string {
	groups := []string{"200", "201", "400", "404", "409", "503 not executed", "503 unknown", "no answer"}
	counts := map[string]int{}
	for _, c := range f.answers {
		name := fmt.Sprint(c.Answer.Status)
		switch {
		case c.Answer.Status == 0:
			name = "no answer"
		case c.Answer == load.OutcomeUnknown:
			name = "503 unknown"
		case isNotExecuted(c.Answer):
			name = "503 not executed"
		}
		counts[name] += c.Times
	}
	var parts []string
	for _, name := range groups {
		parts = append(parts, name+" "+thousands(counts[name]))
	}
	return strings.Join(parts, "  ")
}
