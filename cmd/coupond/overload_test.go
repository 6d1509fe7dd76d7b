package main

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// overload claims with ten times as many clients as the batcher and its queue can hold, while
// PostgreSQL is healthy, slow or frozen.
func (b *bounds) overload(t *testing.T) {
	for _, c := range []struct {
		postgres   string
		begin, end func(*faultproxy.Proxy)
	}{
		{"healthy", func(*faultproxy.Proxy) {}, func(*faultproxy.Proxy) {}},
		{"slow: 100 ms for each call", func(p *faultproxy.Proxy) {
			p.Inject(func(string) faultproxy.Fault {
				time.Sleep(100 * time.Millisecond)
				return faultproxy.Pass
			})
		}, func(p *faultproxy.Proxy) { p.Inject(nil) }},
		{"frozen", (*faultproxy.Proxy).Freeze, (*faultproxy.Proxy).Thaw},
	} {
		b.run(t, "overload, PostgreSQL "+c.postgres, func(t *testing.T) {
			database := pgtest.New(t)
			proxy, err := faultproxy.New(database.URL)
			must(t, err)
			t.Cleanup(proxy.Close)
			p := b.serveSale(t, proxy.URL(database.URL))
			warmUp := runClaims(t, p, 32, b.baseline) // makes the connections
			before := runClaims(t, p, 32, b.baseline)
			if b.strict {
				expectOnly(t, before, loadgen.Claimed)
			}

			live := watchLive(t, p)
			c.begin(proxy)
			overload, memoryBefore, memoryHighest := b.runOverload(t, p)
			slowestLive := live()
			c.end(proxy)

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			run := startClaims(ctx, t, p, 32)
			recovering := b.recover(t, run)
			recovered := 100 * perSecond(recovering[len(recovering)-1]) / perSecond(before)
			cancel()
			<-run.Done()

			t.Logf("%v; slowest claim %s, slowest /health/live %s; memory %.0f, then at most %.0f MiB; recovered to %.0f %% of its speed", overload.Answers,
				overload.Quantile(100), slowestLive, mib(memoryBefore), mib(memoryHighest), recovered)
			if slowest := overload.Quantile(100); slowest > boundTimeout+b.tolerance {
				t.Errorf("an answer took %s", slowest)
			}
			if slowestLive > b.tolerance {
				t.Errorf("/health/live took %s", slowestLive)
			}
			if memoryHighest-memoryBefore > memoryBudget {
				t.Errorf("the service grew from %.0f to %.0f MiB", mib(memoryBefore), mib(memoryHighest))
			}
			if b.strict && recovered < 50 {
				t.Errorf("recovered to %.0f %% of its speed, want 50 %%", recovered)
			}
			checkReports(t, p, append(recovering, run.Take(), warmUp, before, overload)...)
		})
	}
}

// recover takes the answers of the run while the service recovers: those of one moment after
// another until all claims of one succeed. If nothing else runs on the machine, claims may fail
// for 2 s only. On a busy machine any call may take longer than half of CLAIM_TIMEOUT, after
// which the claims behind it are refused, so a later moment will do.
func (b *bounds) recover(t *testing.T, run *loadgen.Run) []loadgen.Report {
	t.Helper()
	var reports []loadgen.Report
	if b.strict {
		time.Sleep(2 * time.Second)
		reports = append(reports, run.Take())
	}
	wait.For(t, "claims to succeed again, all of them", func() bool {
		last := b.takeAnswers(run)
		reports = append(reports, last)
		if b.strict {
			expectOnly(t, last, loadgen.Claimed)
			return true
		}
		return last.Total() > 0 && last.Answers[loadgen.Claimed] == last.Total()
	})
	var all loadgen.Report
	for _, report := range reports {
		all.Add(report)
	}
	expectOnly(t, all, loadgen.Claimed, loadgen.Overloaded, loadgen.Unavailable, loadgen.OutcomeUnknown)
	return reports
}

// runOverload claims over ten times as many connections as the batcher and its queue can hold.
func (b *bounds) runOverload(t *testing.T, p *program) (report loadgen.Report, memoryBefore, memoryHighest int64) {
	t.Helper()
	var withoutRetryAfter atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := startPlan(ctx, t, loadgen.Plan{
		Address: p.address, Connections: 10 * (boundQueue + 1), Timeout: boundTimeout + 10*time.Second,
		Request: newUserClaim,
		Answered: func(_ int, a loadgen.Answer, r loadgen.Response) (bool, time.Duration) {
			if a.Status == http.StatusServiceUnavailable && r.RetryAfter <= 0 {
				withoutRetryAfter.Add(1)
			}
			return false, 0
		},
	})
	time.AfterFunc(b.duration, cancel)
	time.Sleep(b.duration / 4) // until all connections have sent a claim
	memoryBefore, highest := watchMemory(t, p)
	report = run.Wait()
	memoryHighest = highest()

	if n := withoutRetryAfter.Load(); n > 0 {
		t.Errorf("%d responses with status 503 lack Retry-After", n)
	}
	expectOnly(t, report, loadgen.Claimed, loadgen.Overloaded, loadgen.Unavailable, loadgen.OutcomeUnknown)
	if report.Answers[loadgen.Claimed] == report.Total() {
		t.Error("every claim succeeded, so the service was not overloaded")
	}
	return report, memoryBefore, memoryHighest
}

// watchLive polls /health/live. The function that it returns stops that, and returns the time of
// the slowest response.
func watchLive(t *testing.T, p *program) (slowest func() time.Duration) {
	t.Helper()
	stop := make(chan struct{})
	var longest time.Duration
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			status, took := p.getOnce("/health/live")
			if status != http.StatusOK {
				t.Errorf("/health/live: %d after %s", status, took)
			}
			longest = max(longest, took)
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() time.Duration {
		close(stop)
		watching.Wait()
		return longest
	}
}
