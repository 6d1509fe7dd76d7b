package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
)

// overload lets ten times as many clients claim as the lane and its queue hold, while PostgreSQL is well, slow or silent.
func (b *bounds) overload(t *testing.T) {
	b.table("Overload", fmt.Sprintf("%d connections, ten times what the lane and its queue hold, claim without a pause. \"Back\" is the speed of 32 connections, from 2 s\n"+
		"after the overload has ended, in percent of what it was before.", 10*(boundQueue+1)),
		"PostgreSQL | answers | slowest claim | /health/live, slowest | memory before, most | back")
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
		t.Run("overload, PostgreSQL "+c.postgres, func(t *testing.T) {
			database := pgtest.New(t)
			proxy, err := faultproxy.New(database.URL)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			p, address := b.serve(t, b.binary, proxy.URL(database.URL), 0)
			b.sell(t, address)
			warm := claims(t, address, 32, b.calm) // connections are made
			before := claims(t, address, 32, b.calm)
			onlyClaimed(t, before)

			live := watchLive(t, p.url)
			c.begin(proxy)
			overload, memoryBefore, memoryMost := b.outnumber(t, p, address)
			slowestLive := live()
			c.end(proxy)

			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second+b.calm)
			defer cancel()
			run, err := loadgen.Start(ctx, loadgen.Plan{Address: address, Connections: 32, Request: newcomer})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			recovering := run.Take()
			<-run.Done()
			after := run.Take()
			onlyClaimed(t, after)
			back := 100 * perSecond(after) / perSecond(before)

			b.row(t, c.postgres, answers(overload), time.Duration(overload.Claims.Latency.Max()), slowestLive,
				fmt.Sprintf("%.0f, %.0f MiB", mib(memoryBefore), mib(memoryMost)), fmt.Sprintf("%.0f %%", back))
			if slowest := time.Duration(overload.Claims.Latency.Max()); slowest > boundTimeout+b.grace {
				t.Errorf("an answer took %s", slowest)
			}
			if slowestLive > b.grace {
				t.Errorf("/health/live took %s", slowestLive)
			}
			if memoryMost-memoryBefore > memoryBudget {
				t.Errorf("the service grew from %.0f to %.0f MiB", mib(memoryBefore), mib(memoryMost))
			}
			if b.strict && back < 50 {
				t.Errorf("it is back at %.0f %% of its speed", back)
			}
			stored(t, database, warm, before, overload, recovering, after)
		})
	}
}

// outnumber claims over ten times as many connections as can be carried.
func (b *bounds) outnumber(t *testing.T, p *program, address string) (report loadgen.Report, memoryBefore, memoryMost int64) {
	t.Helper()
	var speechless atomic.Int64 // 503s that do not say when to come back
	ctx, cancel := context.WithTimeout(t.Context(), b.duration)
	defer cancel()
	run, err := loadgen.Start(ctx, loadgen.Plan{
		Address: address, Connections: 10 * (boundQueue + 1), Timeout: boundTimeout + 10*time.Second,
		Request: newcomer,
		Answered: func(_ int, a loadgen.Answer, r loadgen.Response) (bool, time.Duration) {
			if a.Status == http.StatusServiceUnavailable && r.RetryAfter <= 0 {
				speechless.Add(1)
			}
			return false, 0
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(b.duration / 4) // all connections have asked
	memoryBefore = memory(t, p.pid)
	most := watchMemory(t, p.pid)
	report = run.Wait()
	memoryMost = most()

	if n := speechless.Load(); n > 0 {
		t.Errorf("%d times 503 without Retry-After", n)
	}
	beyond := 0
	for _, c := range report.Claims.Answers {
		switch c.Answer {
		case loadgen.Claimed:
		case loadgen.Overloaded, loadgen.Unavailable, loadgen.OutcomeUnknown:
			beyond += c.Times
		default:
			t.Errorf("%d times %s; %v", c.Times, c.Answer, report.Faults)
		}
	}
	if beyond == 0 {
		t.Error("nobody was refused: this was no overload")
	}
	return report, memoryBefore, memoryMost
}

// watchLive asks /health/live again and again; the function that it returns ends that, and returns how long the slowest took.
func watchLive(t *testing.T, url string) (slowest func() time.Duration) {
	t.Helper()
	stop := make(chan struct{})
	var most time.Duration
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			status, took := probe(url + "/health/live")
			if status != http.StatusOK {
				t.Errorf("/health/live: %d after %s", status, took)
			}
			most = max(most, took)
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
		return most
	}
}
