package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// TestOutage runs a service while PostgreSQL is down at first, starts, crashes and restarts. The
// test has its own PostgreSQL server, because it stops it.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	database := server.New(t).URL
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	startPG := func() {
		t.Helper()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}

	// PostgreSQL is down at the start: the service waits.
	const claimTimeout = 2 * time.Second
	p := start(t, environ(database, "CLAIM_TIMEOUT="+claimTimeout.String()), "serve").listening(t)
	c := newClient(t, p.url, 16)
	checkDown(t, c, claimTimeout)
	startPG()
	waitHealthy(t, c)
	p.logged(t, "ready for claims")
	const amount = 1_000_000
	c.create(t, "SALE", amount)

	// PostgreSQL crashes while claims are served, and restarts: no claim gets a 500, and all
	// answers are true.
	var clients sync.WaitGroup
	var stopped atomic.Bool
	var mu sync.Mutex
	counts := tally{}
	outcomes := map[string]string{} // by user
	for i := range 16 {
		clients.Go(func() {
			for n := 0; !stopped.Load(); n++ {
				user := fmt.Sprintf("user %d.%d", i, n)
				sent := time.Now()
				a, err := c.claim(user, "SALE")
				if err != nil {
					t.Errorf("%s: %v", user, err)
					return
				}
				if took := time.Since(sent); took > claimTimeout+2*time.Second {
					t.Errorf("%s was answered after %s", user, took)
				}
				mu.Lock()
				counts[outcome(a)]++
				outcomes[user] = outcome(a)
				mu.Unlock()
			}
		})
	}
	claimed := func() int {
		mu.Lock()
		defer mu.Unlock()
		return counts["201"]
	}
	wait.For(t, "claims", func() bool { return claimed() > 100 })
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	checkDown(t, c, claimTimeout)
	// After a shorter outage, the claims that were in flight would all be made by their second
	// attempt.
	wait.For(t, "a claim that notices the outage", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(counts) > 1
	})
	startPG()
	waitHealthy(t, c)
	before := claimed()
	wait.For(t, "claims after the restart", func() bool { return claimed() > before+100 })
	stopped.Store(true)
	clients.Wait()
	t.Logf("during crash and restart: %v", counts)

	for o, n := range counts {
		switch o {
		case "201", "503 UNAVAILABLE", "503 OVERLOADED", "503 OUTCOME_UNKNOWN":
		default:
			t.Errorf("%d requests were answered %s", n, o)
		}
	}
	has := map[string]bool{}
	for _, user := range c.get(t, "SALE").ClaimedBy {
		has[user] = true
	}
	for user, got := range outcomes {
		switch {
		case got == "201" && !has[user]:
			t.Errorf("%s got 201 and does not have the coupon", user)
		case (got == "503 UNAVAILABLE" || got == "503 OVERLOADED") && has[user]:
			t.Errorf("%s got %s, which means not executed, and has the coupon", user, got)
		}
	}
	if strings.Contains(p.stderr.String(), `"level":"error"`) {
		t.Error("the log has errors; an outage of the database is a warning")
	}
}

// checkDown checks the answers of a service while its database is down.
func checkDown(t *testing.T, c *client, claimTimeout time.Duration) {
	t.Helper()
	waitUnhealthy(t, c, "the database does not answer")
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
		sent := time.Now()
		a := c.must(t, request.method, request.path, request.body)
		// A claim that waited in the queue may get OVERLOADED, which also means not executed.
		if a.status != request.status || a.status == http.StatusServiceUnavailable && a.code != "UNAVAILABLE" && a.code != "OVERLOADED" {
			t.Errorf("%s %s without a database: %d %s", request.method, request.path, a.status, a.body)
		}
		if took := time.Since(sent); took > request.within+time.Second { // a second for a busy machine
			t.Errorf("%s %s without a database took %s, want at most %s", request.method, request.path, took, request.within)
		}
	}
}
