package main

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/bench/check"
	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// TestOutage runs a service while PostgreSQL is down at first, starts, crashes and restarts. The
// test has its own PostgreSQL server, because it stops it.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	database := server.New(t).URL
	must(t, server.Stop())
	// PostgreSQL is down at the start: the service waits.
	const claimTimeout = 2 * time.Second
	p := start(t, environ(database, "CLAIM_TIMEOUT="+claimTimeout.String()), "serve").listening(t)
	c := p.client(t)
	checkDown(t, c, claimTimeout)
	must(t, server.Start())
	waitHealthy(t, c)
	p.logged(t, "ready for claims")
	c.create(t, saleCoupon, 1_000_000)

	// PostgreSQL crashes while claims are served, and restarts: no claim gets a 500, and all
	// answers are true.
	names := loadgen.Users(1_000_000)
	checker := check.New(saleCoupon, len(names), names)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var claimed, refused atomic.Int64
	run := startPlan(ctx, t, loadgen.Plan{
		Address: p.address, Connections: 16, Requests: len(names), Timeout: time.Minute,
		Request: func(i int) loadgen.Request { return loadgen.Request{User: names[i], Coupon: saleCoupon} },
		Answered: func(i int, answer loadgen.Answer, r loadgen.Response) (bool, time.Duration) {
			if took := r.Answered.Sub(r.Sent); took > claimTimeout+2*time.Second {
				t.Errorf("%s was answered after %s", names[i], took)
			}
			checker.Record(names[i], answer, r.Sent, r.Answered)
			if answer == loadgen.Claimed {
				claimed.Add(1)
			} else {
				refused.Add(1)
			}
			return false, 0
		},
	})
	wait.For(t, "claims", func() bool { return claimed.Load() > 100 })
	must(t, server.Kill())
	checkDown(t, c, claimTimeout)
	// After a shorter outage, the claims that were in flight would all be made by their second
	// attempt.
	wait.For(t, "a claim that notices the outage", func() bool { return refused.Load() > 0 })
	must(t, server.Start())
	waitHealthy(t, c)
	before := claimed.Load()
	wait.For(t, "claims after the restart", func() bool { return claimed.Load() > before+100 })
	cancel()
	expectOnly(t, run.Wait(), loadgen.Claimed, loadgen.Unavailable, loadgen.Overloaded, loadgen.OutcomeUnknown)
	// Most users never claimed, and none asked again.
	if err := checker.Check(p.coupon(t, saleCoupon)).Err(check.WrongCount, check.Undecided); err != nil {
		t.Error(err)
	}
	if strings.Contains(p.stderr.String(), `"level":"error"`) {
		t.Error("the log has errors; an outage of the database is a warning")
	}
}

// checkDown checks the answers of a service while its database is down.
func checkDown(t *testing.T, c *client, claimTimeout time.Duration) {
	t.Helper()
	waitUnhealthy(t, c, "the database does not answer")
	var requests sync.WaitGroup
	defer requests.Wait()
	for _, request := range []struct {
		method, path, body string
		status             int
		within             time.Duration
	}{
		{http.MethodGet, "/health", "", http.StatusServiceUnavailable, 2 * time.Second},
		{http.MethodGet, "/health/live", "", http.StatusOK, time.Second},
		{http.MethodPost, "/api/coupons", `{"name":"x","amount":1}`, http.StatusServiceUnavailable, claimTimeout},
		{http.MethodPost, "/api/coupons/claim", claimBody("u", "x"), http.StatusServiceUnavailable, claimTimeout},
		{http.MethodGet, "/api/coupons/x", "", http.StatusServiceUnavailable, claimTimeout},
	} {
		requests.Go(func() {
			sent := time.Now()
			a, err := c.do(request.method, request.path, request.body)
			// A claim that waited in the queue may get OVERLOADED, which also means not executed.
			if err != nil || a.Status != request.status || a.Status == http.StatusServiceUnavailable && a.Code != "UNAVAILABLE" && a.Code != "OVERLOADED" {
				t.Errorf("%s %s without a database: %d %s, %v", request.method, request.path, a.Status, a.body, err)
			}
			if took := time.Since(sent); took > request.within+time.Second { // a second for a busy machine
				t.Errorf("%s %s without a database took %s, want at most %s", request.method, request.path, took, request.within)
			}
		})
	}
}
