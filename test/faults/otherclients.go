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

// How many clients there are.
const (
	lockedAtMost  = 4    // coupons
	lockedClients = 4    // of each locked coupon
	creators      = 1000 // connections that create coupons
	slowReaders   = 60   // connections that do not read their answers
	healthChecks  = 4000 // connections that ask for the health
	healthPause   = 500 * time.Millisecond
)

// clientFaults are the faults of clientLayer.
func clientFaults() []*fault {
	return []*fault{
		{
			name: "coupons locked for long", layer: clientLayer, slowdown: 5,
			action: fmt.Sprintf("select … for update of up to %d coupons, held for longer than CLAIM_TIMEOUT, while %d clients claim each of them; others claim other coupons",
				lockedAtMost, lockedClients),
			allowed: notExecuted,
			reason: "Claims on a locked coupon wait until PostgreSQL cancels the statement: UNAVAILABLE, or OVERLOADED behind them. Claims on " +
				"other coupons do not wait for it.",
			start: lockCoupons,
		},
		{
			name: "creation storm", layer: clientLayer, slowdown: 10,
			action:  fmt.Sprintf("%s connections create coupons; they wait as Retry-After says", thousands(creators)),
			allowed: notExecuted,
			reason:  "Creations beyond a bound are refused with OVERLOADED. Claims always find a connection to PostgreSQL.",
			start:   createMany,
		},
		{
			name: "slow readers", layer: clientLayer, slowdown: 10,
			action:  fmt.Sprintf("%d connections get a coupon with %s users of the longest ids, and do not read the answer", slowReaders, thousands(largeUsers)),
			allowed: []load.Answer{load.Overloaded},
			reason:  "Reads are refused with OVERLOADED beyond a bound. An answer that is not read costs the service a bounded amount of memory, and no claim.",
			start:   readSlowly,
		},
		{
			name: "health storm", layer: clientLayer, slowdown: 10,
			action: fmt.Sprintf("%s connections get /health again and again", thousands(healthChecks)),
			reason: "All of them share one recent answer, which is 200.",
			start:  askHealth,
		},
	}
}

// startClients calls work in n goroutines, each with its number. The function that it returns waits
// for them.
func startClients(n int, work func(i int)) (wait func()) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { work(i) })
	}
	return all.Wait
}

// lockCoupons locks coupons, as a psql session with a forgotten transaction does, while clients
// claim them.
func lockCoupons(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	locked := 1 + random.IntN(lockedAtMost)
	clients := t.newClients(locked*lockedClients, otherClientsStream, 0)
	coupons, names := make([]*storageChecker, locked), make([]string, locked)
	for i := range coupons {
		names[i] = fmt.Sprintf("locked-%x", random.Uint64())
		coupons[i] = newStorageChecker(names[i], 1<<20, 0)
		t.addChecker(coupons[i])
		clients[i].createUntilConclusive(ctx, coupons[i])
	}
	unlock, err := t.env.lock(ctx, names)
	if err != nil {
		return nil, err
	}
	var users atomic.Int64
	wait := startClients(len(clients), func(i int) {
		for ctx.Err() == nil {
			clients[i].claimUntilConclusive(ctx, coupons[i%locked], int(users.Add(1)))
		}
	})
	return func() error {
		err := unlock()
		wait()
		closeAll(clients)
		return err
	}, nil
}

// lock locks the rows of coupons in a transaction, until unlock is called.
func (e *environment) lock(ctx context.Context, coupons []string) (unlock func() error, err error) {
	conn, err := pgx.Connect(ctx, e.ownerURL)
	if err != nil {
		return nil, err
	}
	unlock = func() error { return conn.Close(context.WithoutCancel(ctx)) }
	if _, err = conn.Exec(ctx, `begin`); err == nil {
		_, err = conn.Exec(ctx, `select from coupond.coupons where name = any($1) for update`, coupons)
	}
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}

// createMany creates coupons on many connections. A client that is refused waits as Retry-After
// says.
func createMany(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	number := random.Uint64()
	clients := t.newClients(creators, otherClientsStream, 0)
	wait := startClients(creators, func(i int) {
		for n := 0; ctx.Err() == nil; n++ {
			s := newStorageChecker(fmt.Sprintf("storm-%x-%d-%d", number, i, n), 1, 0)
			t.addChecker(s)
			for ctx.Err() == nil {
				answer, response := clients[i].create(ctx, s.coupon, s.amount)
				s.addCreation(answer)
				if isConclusive(answer) {
					break
				}
				pause(ctx, max(response.RetryAfter, time.Second))
			}
		}
	})
	return func() error {
		wait()
		closeAll(clients)
		return nil
	}, nil
}

// largeUsers is the number of users of a large coupon. Their ids are as long as possible, also in
// JSON: 15 MB in all.
const largeUsers = 10_000

// storeLargeCoupon stores a large coupon. remove removes it.
func (e *environment) storeLargeCoupon(ctx context.Context, name string) (remove func() error, err error) {
	ctx = context.WithoutCancel(ctx)
	// Without triggers: the rows satisfy them, and they refuse that claims are deleted.
	const withoutTriggers = `set session_replication_role = replica`
	execute := func(fill func(*pgx.Batch)) error {
		return e.asOwner(ctx, func(conn *pgx.Conn) error {
			var batch pgx.Batch
			batch.Queue(withoutTriggers)
			fill(&batch)
			return conn.SendBatch(ctx, &batch).Close()
		})
	}
	remove = func() error {
		return execute(func(batch *pgx.Batch) {
			batch.Queue(`delete from coupond.claims where coupon_name = $1`, name)
			batch.Queue(`delete from coupond.coupons where name = $1`, name)
		})
	}
	return remove, execute(func(batch *pgx.Batch) {
		batch.Queue(`insert into coupond.coupons (name, amount, remaining_amount) values ($1, $2, 0)`, name, largeUsers)
		batch.Queue(`
			insert into coupond.claims (coupon_name, claim_number, user_id)
			select $1, n, rpad(n::text, 255, E'\u0001')
			from generate_series(1, $2::integer) as n`, name, largeUsers)
	})
}

// readSlowly gets a large coupon from one instance on many connections, and reads no more than the
// beginning of each answer.
func readSlowly(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	const name = "large"
	one := t.env.instances[random.IntN(instances)]
	remove, err := t.env.storeLargeCoupon(ctx, name)
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	var conns []net.Conn
	undo = func() error {
		for _, conn := range conns {
			_ = conn.Close() // nothing depends on the rest of the answer
		}
		return remove()
	}
	request := "GET " + load.CouponPath(name) + " HTTP/1.1\r\nHost: x\r\n\r\n"
	for len(conns) < slowReaders && ctx.Err() == nil {
		conn, err := dialSlow(context.WithoutCancel(ctx), one.address)
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, request); err != nil {
			return nil, errors.Join(err, undo())
		}
		// One after another: concurrent reads would share an answer.
		if status := firstStatus(conn); status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.violations.notAllowed.add("the answer to a slow reader began with status %d, want 200 or 503", status)
		}
	}
	return undo, nil
}

// firstStatus reads the first line of an answer and returns its status, or 0 if there is none.
func firstStatus(conn net.Conn) (status int) {
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout)) // a failure shows in the next line
	line, _, err := bufio.NewReader(conn).ReadLine()
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscanf(string(line), "HTTP/1.1 %d ", &status); err != nil {
		return 0
	}
	return status
}

// dialSlow connects with a small receive buffer, so that an answer that is not read stays with the
// service.
func dialSlow(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: answerTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		err = tcp.SetReadBuffer(4 << 10)
	}
	return conn, err
}

// askHealth gets /health from one instance on many connections.
func askHealth(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error) {
	one := t.env.instances[random.IntN(instances)]
	wait := startClients(healthChecks, func(int) {
		client := load.NewClient(one.address, answerTimeout)
		defer client.Close()
		for ; ctx.Err() == nil; pause(ctx, healthPause) {
			response, err := client.Get(ctx, "/health")
			if ctx.Err() == nil && (err != nil || response.Status != http.StatusOK) {
				t.violations.notAllowed.add("GET /health: status %d %.200s after %v, want 200: %v", response.Status, response.Body,
					response.Answered.Sub(response.Sent).Round(time.Millisecond), err)
			}
		}
	})
	return func() error {
		wait()
		return nil
	}, nil
}
