package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
	// largeUsers is the number of users of the coupon that slow readers get. Their ids are as long as
	// possible, also in JSON: 15 MB in all.
	largeUsers = 10_000

	measuredTime = 1500 * time.Millisecond // before a fault
	faultTime    = 4 * time.Second         // longer than CLAIM_TIMEOUT, so that claims that wait fail
)

// comparison is how fast the bystanders claimed before a fault and during it.
type comparison struct {
	fault          *fault
	before, during float64 // definite answers to claims, per second
}

// slowdown is how many times as long a claim took during the fault. A client has one request in
// flight, so the mean time of a claim is the number of clients divided by the rate. Unlike a
// quantile of the answers, that includes claims without an answer and repeated ones.
func (c comparison) slowdown() float64 { return c.before / max(c.during, 0.01) }

// injectAndCompare injects a fault of clientLayer. Bystanders with coupons of their own claim
// before it and during it.
func (t *faultTest) injectAndCompare(injecting context.Context, f *fault, random *rand.Rand) error {
	claiming, stopClaiming := context.WithCancel(injecting)
	claimed, waitBystanders := t.startBystanders(claiming, random.Uint64())
	defer func() {
		stopClaiming()
		waitBystanders()
	}()
	pause(injecting, measuredTime/3) // they create their coupons
	before := perSecond(claimed, func() { pause(injecting, measuredTime) })
	end := t.outages.begin([]*fault{f})
	defer end()
	ctx, stop := context.WithCancel(injecting)
	defer stop()
	var undo func() error
	var err error
	during := perSecond(claimed, func() {
		over := time.After(faultTime)
		if undo, err = f.start(ctx, t, random); err == nil {
			select {
			case <-over:
			case <-injecting.Done():
			}
		}
	})
	if err != nil {
		return err
	}
	if injecting.Err() == nil {
		t.compare(comparison{f, before, during})
	}
	err = t.checkMemory(f.name) // while its connections are open
	stop()
	return errors.Join(err, undo())
}

// compare checks a comparison, and keeps it for the report.
func (t *faultTest) compare(c comparison) {
	t.results.mu.Lock()
	t.results.comparisons = append(t.results.comparisons, c)
	t.results.mu.Unlock()
	if c.slowdown() > c.fault.slowdown {
		t.results.violated(tooSlow, "%s: claims of others took %.0f times as long, at most %.0f times is allowed (%.1f claims/s, before it %.1f)",
			c.fault.name, c.slowdown(), c.fault.slowdown, c.during, c.before)
	}
}

// perSecond returns by how much a counter grows per second while measured runs.
func perSecond(counter *atomic.Int64, measured func()) float64 {
	from, began := counter.Load(), time.Now()
	measured()
	return float64(counter.Load()-from) / time.Since(began).Seconds()
}

// startBystanders starts clients that claim one coupon each, every claim for another user, until
// ctx ends. It returns the counter of their definite answers, and a function that waits for them.
func (t *faultTest) startBystanders(ctx context.Context, number uint64) (claimed *atomic.Int64, wait func()) {
	claimed = new(atomic.Int64)
	return claimed, t.startClients(bystanders, func(i int, c *client) {
		one := t.newCoupon(fmt.Sprintf("bystander-%x-%d", number, i), 1<<20)
		c.createUntilDefinite(ctx, one)
		for user := 0; ctx.Err() == nil; user++ {
			c.claimUntilDefinite(ctx, userName(user), one)
			claimed.Add(1)
		}
	})
}

// startClients calls work in n goroutines, each with its number and a client. The function that it
// returns waits for them.
func (t *faultTest) startClients(n int, work func(i int, c *client)) (wait func()) {
	clients := t.newClients(n)
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { work(i, c) })
	}
	return func() {
		all.Wait()
		closeAll(clients)
	}
}

// lockCoupons locks coupons for longer than CLAIM_TIMEOUT, while clients claim them.
func lockCoupons(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	locked := make([]coupon, 1+random.IntN(lockedAtMost))
	names := make([]string, len(locked))
	creator := t.newClients(1)
	defer closeAll(creator)
	for i := range locked {
		names[i] = fmt.Sprintf("locked-%x", random.Uint64())
		locked[i] = t.newCoupon(names[i], 1<<20)
		creator[0].createUntilDefinite(ctx, locked[i])
	}
	unlock, err := t.env.lock(ctx, names)
	if err != nil {
		return nil, err
	}
	var users atomic.Int64
	wait := t.startClients(len(locked)*lockedClients, func(i int, c *client) {
		for ctx.Err() == nil {
			c.claimUntilDefinite(ctx, userName(int(users.Add(1))), locked[i%len(locked)])
		}
	})
	return func() error {
		err := unlock()
		wait()
		return err
	}, nil
}

// createMany creates coupons on many connections. A client that is refused waits as Retry-After
// says.
func createMany(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	number := random.Uint64()
	wait := t.startClients(creators, func(i int, c *client) {
		for n := 0; ctx.Err() == nil; n++ {
			one := t.newCoupon(fmt.Sprintf("storm-%x-%d-%d", number, i, n), 1)
			load.UntilDefinite(ctx, func() (load.Answer, load.Response) { return c.create(ctx, one) })
		}
	})
	return func() error {
		wait()
		return nil
	}, nil
}

// storeLargeCoupon stores a large coupon. remove removes it.
func (e *environment) storeLargeCoupon(ctx context.Context, name string) (remove func() error, err error) {
	ctx = context.WithoutCancel(ctx)
	execute := func(statements ...string) error {
		return e.asOwner(ctx, func(conn *pgx.Conn) error {
			var batch pgx.Batch
			// Without triggers: the rows satisfy them, and they refuse that claims are deleted.
			batch.Queue(`set session_replication_role = replica`)
			for _, statement := range statements {
				batch.Queue(statement, name)
			}
			return conn.SendBatch(ctx, &batch).Close()
		})
	}
	remove = func() error {
		return execute(`delete from coupond.claims where coupon_name = $1`, `delete from coupond.coupons where name = $1`)
	}
	return remove, execute(
		fmt.Sprintf(`insert into coupond.coupons (name, amount, remaining_amount) values ($1, %d, 0)`, largeUsers),
		fmt.Sprintf(`
			insert into coupond.claims (coupon_name, claim_number, user_id)
			select $1, n, rpad(n::text, 255, E'\u0001')
			from generate_series(1, %d) as n`, largeUsers))
}

// readSlowly gets a large coupon from one instance on many connections, and reads no more than the
// beginning of each answer.
func readSlowly(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	const name = "large"
	one := t.env.instances[random.IntN(instances)]
	remove, err := t.env.storeLargeCoupon(ctx, name)
	var conns []net.Conn
	undo = func() error {
		for _, conn := range conns {
			_ = conn.Close() // nothing depends on the rest of the answer
		}
		return remove()
	}
	for err == nil && len(conns) < slowReaders && ctx.Err() == nil {
		var conn net.Conn
		var status int
		// One after another: concurrent reads would share an answer.
		if conn, status, err = getSlowly(context.WithoutCancel(ctx), one.address, load.CouponPath(name)); conn != nil {
			conns = append(conns, conn)
		}
		if err == nil && status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.results.violated(notAllowed, "the answer to a slow reader began with status %d, want 200 or 503", status)
		}
	}
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// getSlowly sends a request and reads the status of the answer, or 0 if there is none. The
// connection has a small receive buffer, so that an answer that is not read stays with the service.
func getSlowly(ctx context.Context, address, path string) (conn net.Conn, status int, err error) {
	dialer := net.Dialer{Timeout: answerTimeout}
	if conn, err = dialer.DialContext(ctx, "tcp", address); err != nil {
		return nil, 0, err
	}
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		return conn, 0, err
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return conn, 0, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout)) // a failure shows in the next line
	line, _, err := bufio.NewReaderSize(conn, 16).ReadLine()
	if err == nil {
		_, err = fmt.Sscanf(string(line), "HTTP/1.1 %d", &status)
	}
	if err != nil {
		status = 0
	}
	return conn, status, nil
}

// askHealth gets /health from one instance on many connections.
func askHealth(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	one := t.env.instances[random.IntN(instances)]
	var all sync.WaitGroup
	for range healthChecks {
		all.Go(func() {
			client := load.NewClient(one.address, answerTimeout)
			defer client.Close()
			for ; ctx.Err() == nil; pause(ctx, healthPause) {
				response, err := client.Get(ctx, "/health")
				if ctx.Err() == nil && (err != nil || response.Status != http.StatusOK) {
					t.results.violated(notAllowed, "GET /health: status %d %.200s after %v, want 200: %v", response.Status, response.Body,
						response.Answered.Sub(response.Sent).Round(time.Millisecond), err)
				}
			}
		})
	}
	return func() error {
		all.Wait()
		return nil
	}, nil
}
