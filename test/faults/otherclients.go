package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
)

const (
	bystanders    = 16   // clients that must not be slowed down much
	lockedAtMost  = 4    // coupons
	lockedClients = 4    // of each locked coupon
	creators      = 1000 // connections that create coupons
	slowReaders   = 60   // connections that do not read their answers
	healthChecks  = 4000 // connections that ask for the health
	healthPause   = 500 * time.Millisecond

	// Slow readers get a coupon with this number of users. Their ids are as long as possible, also in
	// JSON: 15 MB in all.
	largeCoupon = "large"
	largeUsers  = 10_000

	measuredTime = 1500 * time.Millisecond // before a fault
	faultTime    = 4 * time.Second         // longer than CLAIM_TIMEOUT, so that claims that wait fail
)

// disturb injects a fault of clientLayer. Bystanders with coupons of their own claim before it and
// during it.
func (t *faultTest) disturb(ctx context.Context, f *fault, random *rand.Rand) error {
	var claimed atomic.Int64 // definite answers
	number := random.Uint64()
	stop, _ := t.startClients(ctx, bystanders, func(ctx context.Context, i int, c *client) {
		one := t.newCoupon(fmt.Sprintf("bystander-%x-%d", number, i), 1<<20)
		c.untilDefinite(ctx, one, input{kind: create})
		for user := 0; ctx.Err() == nil; user++ {
			c.untilDefinite(ctx, one, input{kind: claim, user: userName(user)})
			claimed.Add(1)
		}
	})
	defer stop()
	// begin begins a measurement. result waits until it has taken d, and returns the answers per
	// second.
	begin := func(d time.Duration) (result func() float64) {
		from, began := claimed.Load(), time.Now()
		return func() float64 {
			pause(ctx, d-time.Since(began))
			return float64(claimed.Load()-from) / time.Since(began).Seconds()
		}
	}
	pause(ctx, measuredTime/3) // they create their coupons
	before := begin(measuredTime)()
	during := begin(faultTime)
	return f.disturb(ctx, t, random, func() error {
		t.compare(f, before, during())
		return t.checkMemory(f) // while its connections are open
	})
}

// compare checks by how much a fault slowed down the claims of others, whose rates were before and
// during.
//
// A client has one request in flight, so the mean time of a claim is the number of clients divided
// by the rate. Unlike a quantile of the answers, that includes claims without an answer and
// repeated ones.
func (t *faultTest) compare(f *fault, before, during float64) {
	slowdown := before / max(during, 0.01)
	result := fmt.Sprintf("%s: a claim of others took %.1f times as long; at most %.0f times is allowed (%.0f claims/s, before it %.0f)",
		f.name, slowdown, f.slowdown, during, before)
	t.mu.Lock()
	t.comparisons = append(t.comparisons, result)
	t.mu.Unlock()
	if slowdown > f.slowdown {
		t.violated(tooSlow, "%s", result)
	}
}

// startClients calls work in n goroutines, each with its number and a client. wait waits for them;
// stop ends their context before that.
func (t *faultTest) startClients(ctx context.Context, n int, work func(ctx context.Context, i int, c *client)) (stop, wait func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			c := t.newClient(i)
			defer c.close()
			work(ctx, i, c)
		})
	}
	stop = func() {
		cancel()
		all.Wait()
	}
	return stop, all.Wait
}

// lockCoupons locks coupons for longer than CLAIM_TIMEOUT, while clients claim them.
func lockCoupons(ctx context.Context, t *faultTest, random *rand.Rand, measure func() error) error {
	locked := make([]coupon, 1+random.IntN(lockedAtMost))
	prefix := fmt.Sprintf("locked-%x-", random.Uint64())
	creator := t.newClient(0)
	defer creator.close()
	for i := range locked {
		locked[i] = t.newCoupon(fmt.Sprint(prefix, i), 1<<20)
		creator.untilDefinite(ctx, locked[i], input{kind: create})
	}
	stop := func() {}
	err := t.env.lock(ctx, prefix, func() error {
		var users atomic.Int64
		stop, _ = t.startClients(ctx, len(locked)*lockedClients, func(ctx context.Context, i int, c *client) {
			for ctx.Err() == nil {
				c.untilDefinite(ctx, locked[i%len(locked)], input{kind: claim, user: userName(int(users.Add(1)))})
			}
		})
		return measure()
	})
	stop() // after the unlock: a claim that waits for the lock is answered now
	return err
}

// createMany creates coupons on many connections. A client that is refused waits as Retry-After
// says.
func createMany(ctx context.Context, t *faultTest, random *rand.Rand, measure func() error) error {
	number := random.Uint64()
	stop, _ := t.startClients(ctx, creators, func(ctx context.Context, i int, c *client) {
		for n := 0; ctx.Err() == nil; n++ {
			one := t.newCoupon(fmt.Sprintf("storm-%x-%d-%d", number, i, n), 1)
			load.UntilDefinite(ctx, func() (load.Answer, load.Response) { return c.attempt(ctx, one, input{kind: create}) })
		}
	})
	defer stop()
	return measure()
}

// storeLargeCoupon stores the coupon for slow readers.
func (e *environment) storeLargeCoupon(ctx context.Context) error {
	return e.asOwner(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(`
			begin;
			set local session_replication_role = replica; -- without triggers: the rows satisfy them
			insert into coupond.coupons (name, amount, remaining_amount) values ('%s', %d, 0);
			insert into coupond.claims (coupon_name, claim_number, user_id)
			select '%[1]s', n, rpad(n::text, 255, E'\u0001')
			from generate_series(1, %[2]d) as n;
			commit`, largeCoupon, largeUsers))
		return err
	})
}

// readSlowly gets a large coupon from one instance on many connections, and reads no more than the
// beginning of each answer.
func readSlowly(ctx context.Context, t *faultTest, random *rand.Rand, measure func() error) error {
	address := t.env.instances[random.IntN(instances)].address
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close() // nothing depends on the rest of the answer
		}
	}()
	dialer := net.Dialer{Timeout: answerTimeout}
	for range slowReaders { // one after another: concurrent reads would share an answer
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		conns = append(conns, conn)
		// With a small receive buffer, so that an answer that is not read stays with the service.
		err = errors.Join(conn.(*net.TCPConn).SetReadBuffer(4<<10), conn.SetDeadline(time.Now().Add(answerTimeout)))
		if err == nil {
			_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", load.CouponPath(largeCoupon))
		}
		status := 0
		if err == nil {
			_, err = fmt.Fscanf(conn, "HTTP/1.1 %d", &status)
		}
		if err != nil || status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.violated(notAllowed, "the answer to a slow reader began with status %d, want 200 or 503: %v", status, err)
		}
	}
	return measure()
}

// askHealth gets /health from one instance on many connections.
func askHealth(ctx context.Context, t *faultTest, random *rand.Rand, measure func() error) error {
	one := random.IntN(instances)
	stop, _ := t.startClients(ctx, healthChecks, func(ctx context.Context, _ int, c *client) {
		for ; ctx.Err() == nil; pause(ctx, healthPause) {
			response, err := c.conns[one].Get(ctx, "/health")
			if ctx.Err() == nil && (err != nil || response.Status != http.StatusOK) {
				t.violated(notAllowed, "GET /health: status %d %.200s after %v, want 200: %v", response.Status, response.Body,
					response.Answered.Sub(response.Sent).Round(time.Millisecond), err)
			}
		}
	})
	defer stop()
	return measure()
}
