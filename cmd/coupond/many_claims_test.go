package main

import (
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
)

// A response with 300,000 claims of users with long ids has more than 75 MB. The service may use at
// most 64 MiB for it, so it cannot hold the whole response in memory.
const (
	manyClaims   = 300_000
	longestID    = 255
	memoryBudget = 64 << 20
)

// insertCoupon inserts a coupon with this amount and this number of claims, by users whose ids are
// the SQL expression userID of the claim number n.
func insertCoupon(t *testing.T, database *pgtest.Database, name string, amount, claims int, userID string) {
	t.Helper()
	mustExec(t, database.Connect(t),
		`set session_replication_role = replica`, // skips the checks of the foreign key
		`set synchronous_commit = off`,
		fmt.Sprintf(`insert into coupond.coupons (name, amount, remaining_amount) values ('%s', %d, %d)`, name, amount, amount-claims),
		fmt.Sprintf(`insert into coupond.claims (coupon_name, claim_number, user_id)
			select '%s', n, %s from generate_series(1, %d) n`, name, userID, claims),
		`analyze coupond.claims`)
}

// TestManyClaims reads the big coupon while others claim it, and measures the peak memory of the
// service's process as counted by the kernel.
func TestManyClaims(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	insertCoupon(t, database, "BIG", manyClaims+200, manyClaims, fmt.Sprintf(`lpad(n::text, %d, '0')`, longestID))
	p := startCommand(t, environ(database.URL, longTimeout), exec.Command(plainBinary(t), "serve")).ready(t)
	c := p.client(t)

	// The memory of an idle service is measured after one use of everything, with few claims.
	c.create(t, "SMALL", 100)
	for n := range 20 {
		c.claimed(t, fmt.Sprint("user ", n), "SMALL")
	}
	p.coupon(t, "SMALL")
	idle, peak := watchMemory(t, p)

	var claimers sync.WaitGroup
	for n := range 100 {
		claimers.Go(func() {
			time.Sleep(time.Duration(n) * 10 * time.Millisecond)
			c.claimed(t, fmt.Sprint("late user ", n), "BIG")
		})
	}
	s := p.coupon(t, "BIG")
	extra := peak() - idle
	claimers.Wait()
	t.Logf("%d claims; idle %.1f MiB, %.1f MiB more at most", len(s.ClaimedBy), mib(idle), mib(extra))

	if extra > memoryBudget {
		t.Errorf("the service used %.1f MiB more than when idle, want at most %.1f", mib(extra), mib(memoryBudget))
	}
	if len(s.ClaimedBy) < manyClaims || len(s.ClaimedBy)+s.Remaining != s.Amount || s.Amount != manyClaims+200 {
		t.Errorf("%d claims and %d remaining of %d", len(s.ClaimedBy), s.Remaining, s.Amount)
	}
	for n, user := range s.ClaimedBy[:manyClaims] {
		if want := fmt.Sprintf("%0*d", longestID, n+1); user != want {
			t.Fatalf("claim number %d belongs to %s, want %s", n+1, user, want)
		}
	}
}
