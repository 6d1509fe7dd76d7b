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

// TestOutage goes through the life of a service whose PostgreSQL comes, goes and comes back. It is a server of its own: nobody
// else's tests can be in it.
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

	// Away at the start: the service waits.
	const claimTimeout = 2 * time.Second
	p := start(t, environ(database, "CLAIM_TIMEOUT="+claimTimeout.String()), "serve").listening(t)
	c := newClient(t, p.url, 16)
	away(t, c, claimTimeout)
	startPG()
	healthy(t, c)
	p.logged(t, "ready for claims")
	const amount = 1_000_000
	c.create(t, "SALE", amount)

	// Lost while serving, by a crash, and back: nobody gets a 500, and what was answered is true.
	var clients sync.WaitGroup
	var over atomic.Bool
	var mu sync.Mutex
	counts := tally{}
	users := map[string]string{} // what each user was told at the end
	for i := range 16 {
		clients.Go(func() {
			for n := 0; !over.Load(); n++ {
				user := fmt.Sprintf("user %d.%d", i, n)
				asked := time.Now()
				a, err := c.claim(user, "SALE")
				if err != nil {
					t.Errorf("%s: %v", user, err)
					return
				}
				if took := time.Since(asked); took > claimTimeout+2*time.Second {
					t.Errorf("%s was answered after %s", user, took)
				}
				mu.Lock()
				counts[outcome(a)]++
				users[user] = outcome(a)
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
	away(t, c, claimTimeout)
	startPG()
	healthy(t, c)
	before := claimed()
	wait.For(t, "claims again", func() bool { return claimed() > before+100 })
	over.Store(true)
	clients.Wait()
	t.Logf("while it was away and back: %v", counts)

	for o, n := range counts {
		switch o {
		case "201", "503 UNAVAILABLE", "503 OVERLOADED", "503 OUTCOME_UNKNOWN":
		default:
			t.Errorf("%d requests were answered %s", n, o)
		}
	}
	if counts["503 UNAVAILABLE"] == 0 {
		t.Error("nobody noticed the outage: the test proves nothing")
	}
	has := map[string]bool{}
	for _, user := range c.get(t, "SALE").ClaimedBy {
		has[user] = true
	}
	for user, told := range users {
		switch {
		case told == "201" && !has[user]:
			t.Errorf("%s was told 201 and does not have the coupon", user)
		case (told == "503 UNAVAILABLE" || told == "503 OVERLOADED") && has[user]:
			t.Errorf("%s was told %s, which means surely not, and has the coupon", user, told)
		}
	}
	if strings.Contains(p.stderr.String(), `"level":"error"`) {
		t.Error("an outage is no fault of ours, and the log has errors")
	}
}

// away checks how a service answers whose database is away.
func away(t *testing.T, c *client, claimTimeout time.Duration) {
	t.Helper()
	unhealthy(t, c, "the database does not answer")
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
		asked := time.Now()
		a := c.must(t, request.method, request.path, request.body)
		// A claim that waited behind others is told that there were too many: as surely, nothing happened.
		if a.status != request.status || a.status == http.StatusServiceUnavailable && a.code != "UNAVAILABLE" && a.code != "OVERLOADED" {
			t.Errorf("%s %s without a database: %d %s", request.method, request.path, a.status, a.body)
		}
		if took := time.Since(asked); took > request.within+time.Second { // a second for a busy machine
			t.Errorf("%s %s without a database took %s, allowed are %s", request.method, request.path, took, request.within)
		}
	}
}
