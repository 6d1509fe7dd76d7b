package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeServer makes the calls of the batcher under test. It records each call, holds it until the
// test closes answer, and sets each claim's status to its user, so that an outcome that reaches
// the wrong caller is detected. Claims of a locked coupon come back unanswered from a shared call,
// and with ErrUnavailable from a solo call.
type fakeServer struct {
	calls chan fakeCall // in the order in which they start

	mu     sync.Mutex
	locked map[string]bool
	failed *failedAttempt // of shared calls with a locked coupon
}

type fakeCall struct {
	solo    bool
	users   []string
	timeout time.Duration // from the start of the call to its deadline
	answer  chan struct{} // closed by the test
}

// failedOnLock is the failure of a shared call that waited for a lock in vain.
var failedOnLock = &failedAttempt{err: errors.New("locked"), notCommitted: true, lockTimeout: true}

func newFakeServer() *fakeServer {
	return &fakeServer{calls: make(chan fakeCall, 10_000), locked: map[string]bool{}, failed: failedOnLock}
}

// lock locks coupons, or unlocks them.
func (f *fakeServer) lock(locked bool, coupons ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, coupon := range coupons {
		f.locked[coupon] = locked
	}
}

func (f *fakeServer) isLocked(coupon string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.locked[coupon]
}

// hold records a call and returns when the test answers it.
func (f *fakeServer) hold(ctx context.Context, solo bool, claims []*claim) {
	call := fakeCall{solo: solo, answer: make(chan struct{})}
	for _, c := range claims {
		call.users = append(call.users, c.user)
	}
	if deadline, ok := ctx.Deadline(); ok {
		call.timeout = time.Until(deadline)
	}
	f.calls <- call
	<-call.answer
}

func (f *fakeServer) sendShared(ctx context.Context, claims []*claim) {
	f.hold(ctx, false, claims)
	for _, c := range claims {
		if f.isLocked(c.coupon) {
			c.failed = f.failed
		} else {
			c.status = ClaimStatus(c.user)
		}
	}
}

func (f *fakeServer) sendSolo(ctx context.Context, claims []*claim) (keepSolo bool) {
	f.hold(ctx, true, claims)
	locked := f.isLocked(claims[0].coupon)
	for _, c := range claims {
		if locked {
			c.err = fmt.Errorf("%w: locked", ErrUnavailable)
		} else {
			c.status = ClaimStatus(c.user)
		}
	}
	return locked
}

// nextCall returns the next call, which must have started and, if users are given, have their
// claims.
func (f *fakeServer) nextCall(t *testing.T, users ...string) fakeCall {
	t.Helper()
	synctest.Wait()
	select {
	case call := <-f.calls:
		if len(users) > 0 && !slices.Equal(call.users, users) {
			t.Errorf("the call has the claims of %q, want %q", call.users, users)
		}
		return call
	default:
		t.Fatal("no call is in flight")
		return fakeCall{}
	}
}

// wantNoCall checks that no other call has started.
func (f *fakeServer) wantNoCall(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case call := <-f.calls:
		t.Fatalf("a call is in flight: %q", call.users)
	default:
	}
}

// cut ends a call without an answer: it may have been committed.
func (f *fakeServer) cut(call fakeCall) {
	f.failed = &failedAttempt{err: errors.New("cut")}
	close(call.answer)
	synctest.Wait()
	f.failed = failedOnLock
}

type outcome struct {
	status ClaimStatus
	err    error
}

// fakeCallers makes claims in the background, each queued before the next one starts, and collects
// their outcomes.
type fakeCallers struct {
	batcher  *batcher
	close    func()                  // closes the batcher and waits for its calls
	outcomes map[string]chan outcome // by user
}

// claim makes claims of the users for a coupon called "coupon".
func (c *fakeCallers) claim(ctx context.Context, users ...string) { c.claimOf(ctx, "coupon", users...) }

func (c *fakeCallers) claimOf(ctx context.Context, coupon string, users ...string) {
	for _, user := range users {
		ch := make(chan outcome, 1)
		c.outcomes[user] = ch
		go func() {
			status, err := c.batcher.claim(ctx, user, coupon)
			ch <- outcome{status, err}
		}()
		synctest.Wait()
	}
}

// wantAnswered checks that the users have the outcome of their own claim.
func (c *fakeCallers) wantAnswered(t *testing.T, users ...string) {
	t.Helper()
	c.wantOutcomes(t, nil, users...)
}

// wantError checks that the users have got an error.
func (c *fakeCallers) wantError(t *testing.T, want error, users ...string) {
	t.Helper()
	c.wantOutcomes(t, want, users...)
}

func (c *fakeCallers) wantOutcomes(t *testing.T, want error, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		status := ClaimStatus(user)
		if want != nil {
			status = ""
		}
		select {
		case o := <-c.outcomes[user]:
			if !errors.Is(o.err, want) || o.status != status {
				t.Errorf("%s: status %q, error %v; want %q, %v", user, o.status, o.err, status, want)
			}
		default:
			t.Errorf("%s: no outcome", user)
		}
	}
}

func (c *fakeCallers) wantPending(t *testing.T, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		if len(c.outcomes[user]) > 0 {
			t.Errorf("%s has an outcome too early: %+v", user, <-c.outcomes[user])
		}
	}
}

const testTimeout = 5 * time.Second

// withBatcher runs a test in a bubble of fake time, on a batcher with one shared call at a time and
// connections for two solo calls.
func withBatcher(t *testing.T, queueLimit int, test func(t *testing.T, c *fakeCallers, f *fakeServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		var calls sync.WaitGroup
		b := newBatcher(f, 1, queueLimit, testTimeout, make(chan struct{}, 2), &calls)
		c := &fakeCallers{batcher: b, outcomes: map[string]chan outcome{}}
		c.close = func() {
			b.close()
			calls.Wait()
		}
		test(t, c, f)
		c.close() // deadlocks, and so fails, if a pending claim is lost
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.coupons) > 0 || len(b.ready) > 0 || b.pending != 0 || b.pendingLocked != 0 || len(b.soloSlots) > 0 || b.soloCoupons != 0 || b.sharedCalls != 0 {
			t.Errorf("the batcher is not empty: %d coupons, %d of them ready, %d pending claims (%d alone), %d connections of solo calls, %d solo and %d shared calls",
				len(b.coupons), len(b.ready), b.pending, b.pendingLocked, len(b.soloSlots), b.soloCoupons, b.sharedCalls)
		}
	})
}

// occupySolo makes claims of two locked coupons, "a" and "b", and returns their solo calls, which
// use both connections.
func (c *fakeCallers) occupySolo(t *testing.T, f *fakeServer) (first, second fakeCall) {
	t.Helper()
	f.lock(true, "a", "b")
	c.claimOf(t.Context(), "a", "a")
	f.wantCall(t, false, "a")
	c.claimOf(t.Context(), "b", "b")
	first = f.nextCall(t, "a")
	f.wantCall(t, false, "b")
	return first, f.nextCall(t, "b")
}

// wantCall answers the next call, which must be of that kind and have the claims of these users.
func (f *fakeServer) wantCall(t *testing.T, solo bool, users ...string) {
	t.Helper()
	call := f.nextCall(t, users...)
	if call.solo != solo {
		t.Errorf("the call with the claims of %q is a solo call: %v, want %v", call.users, call.solo, solo)
	}
	close(call.answer)
	synctest.Wait()
}

func TestBatcher_batchesClaimsQueuedDuringACall(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		ctx := t.Context()
		c.claim(ctx, "ann", "bob", "cyd", "dan")
		first := f.nextCall(t, "ann")
		f.wantNoCall(t) // at most one call in flight
		c.wantPending(t, "ann")

		close(first.answer)
		c.wantAnswered(t, "ann")
		c.wantPending(t, "bob", "cyd", "dan")

		second := f.nextCall(t, "bob", "cyd", "dan") // in order of arrival
		c.claim(ctx, "eve")
		f.wantNoCall(t)
		close(second.answer)
		c.wantAnswered(t, "bob", "cyd", "dan")

		third := f.nextCall(t, "eve")
		close(third.answer)
		c.wantAnswered(t, "eve")

		// The batcher is idle again: the next claim is sent at once.
		c.claim(ctx, "fay")
		fourth := f.nextCall(t, "fay")
		close(fourth.answer)
		c.wantAnswered(t, "fay")
	})
}

func TestBatcher_abandonedClaimIsNotSent(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann")
		c.claim(ctx, "bob")
		c.claim(t.Context(), "cyd")
		first := f.nextCall(t)
		cancel()
		c.wantError(t, ErrUnavailable, "bob")
		close(first.answer)
		second := f.nextCall(t, "cyd")
		close(second.answer)
		c.wantAnswered(t, "ann", "cyd")
	})
}

// A caller that leaves after its claim was taken, by its own call or another, waits for the
// outcome.
func TestBatcher_takenClaimIsAnswered(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		c.claim(first, "ann") // is sent at once
		c.claim(second, "bob")
		own := f.nextCall(t, "ann")
		leaveFirst()
		c.wantPending(t, "ann")
		close(own.answer)
		call := f.nextCall(t, "bob")
		c.wantAnswered(t, "ann")
		leaveSecond()
		c.wantPending(t, "bob")
		close(call.answer)
		c.wantAnswered(t, "bob")
	})
}

func TestBatcher_fullQueueIsOverloaded(t *testing.T) {
	withBatcher(t, 2, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann", "bob")
		c.claim(ctx, "cyd")
		c.claim(t.Context(), "dan")
		c.wantError(t, ErrOverloaded, "dan")

		cancel() // cyd's place in the queue is free again
		c.wantError(t, ErrUnavailable, "cyd")
		c.claim(t.Context(), "eve", "fay")
		c.wantPending(t, "eve")
		c.wantError(t, ErrOverloaded, "fay")

		close(f.nextCall(t).answer)
		second := f.nextCall(t, "bob", "eve")
		close(second.answer)
		c.wantAnswered(t, "ann", "bob", "eve")
	})
}

func TestBatcher_claimQueuedForHalfOfTheTimeoutIsNotSent(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.claim(t.Context(), "ann", "bob")
		first := f.nextCall(t)
		if first.timeout != testTimeout {
			t.Errorf("the first call has a time-out of %v, want %v", first.timeout, testTimeout)
		}
		time.Sleep(testTimeout / 4)
		c.claim(t.Context(), "cyd")
		time.Sleep(testTimeout / 2)
		c.wantPending(t, "bob")
		close(first.answer)
		c.wantError(t, ErrOverloaded, "bob")

		// cyd's claim was queued for exactly half of the time-out: the other half is left for its
		// call.
		second := f.nextCall(t, "cyd")
		if second.timeout != testTimeout/2 {
			t.Errorf("the second call has a time-out of %v, want %v", second.timeout, testTimeout/2)
		}
		close(second.answer)
		c.wantAnswered(t, "ann", "cyd")
	})
}

func TestBatcher_isIdleWhenNoClaimIsLeftToSend(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.claim(t.Context(), "ann", "bob")
		c.claimOf(t.Context(), "other", "eve")
		time.Sleep(testTimeout)
		close(f.nextCall(t).answer)
		c.wantError(t, ErrOverloaded, "bob", "eve")
		f.wantNoCall(t)
		c.claim(t.Context(), "cyd")
		f.wantCall(t, false, "cyd")
		c.claimOf(t.Context(), "other", "fay")
		f.wantCall(t, false, "fay")
		c.wantAnswered(t, "ann", "cyd", "fay")
	})
}

func TestBatcher_maxBatch(t *testing.T) {
	withBatcher(t, 3*maxBatch, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.claim(t.Context(), "first")
		first := f.nextCall(t)
		for range 2*maxBatch + 1 {
			go func() { _, _ = c.batcher.claim(t.Context(), "x", "coupon") }()
		}
		synctest.Wait()
		close(first.answer)
		for _, want := range []int{maxBatch, maxBatch, 1} {
			call := f.nextCall(t)
			if len(call.users) != want {
				t.Errorf("a call has %d claims, want %d", len(call.users), want)
			}
			close(call.answer)
		}
		c.wantAnswered(t, "first")
	})
}

// Claims of other coupons share a call, in the order in which the coupons became ready.
func TestBatcher_couponsShareACall(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.claimOf(t.Context(), "x", "x1")
		c.claimOf(t.Context(), "y", "y1")
		c.claimOf(t.Context(), "x", "x2")
		c.claimOf(t.Context(), "z", "z1")
		c.claimOf(t.Context(), "y", "y2")
		f.wantCall(t, false, "x1")
		f.wantCall(t, false, "y1", "y2", "z1", "x2")
		c.wantAnswered(t, "x1", "x2", "y1", "y2", "z1")
	})
}

// A coupon that fills a batch does not keep the others out of the next one.
func TestBatcher_hotCouponLeavesRoom(t *testing.T) {
	withBatcher(t, 3*maxBatch, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.claimOf(t.Context(), "first", "first")
		for range 2 * maxBatch {
			go func() { _, _ = c.batcher.claim(t.Context(), "x", "hot") }()
		}
		synctest.Wait()
		c.claimOf(t.Context(), "other", "other")
		f.wantCall(t, false, "first")
		if call := f.nextCall(t); len(call.users) != maxBatch {
			t.Errorf("the call has %d claims, want %d", len(call.users), maxBatch)
		} else {
			close(call.answer)
		}
		call := f.nextCall(t)
		if call.users[0] != "other" || len(call.users) != maxBatch {
			t.Errorf("the call has %d claims, the first of %s; want %d, the first of the other coupon", len(call.users), call.users[0], maxBatch)
		}
		close(call.answer)
		close(f.nextCall(t).answer)
		c.wantAnswered(t, "other")
	})
}

// The claims of a locked coupon wait in a solo call, and those of the others in none of it.
func TestBatcher_lockedCouponIsSentAlone(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		f.lock(true, "locked")
		c.claimOf(t.Context(), "free", "f1")
		c.claimOf(t.Context(), "locked", "l1", "l2")
		c.claimOf(t.Context(), "free", "f2")
		f.wantCall(t, false, "f1")
		f.wantCall(t, false, "l1", "l2", "f2")
		c.wantAnswered(t, "f1", "f2")
		solo := f.nextCall(t, "l1", "l2")
		if !solo.solo {
			t.Error("the claims of the locked coupon are in a shared call")
		}
		if solo.timeout != testTimeout {
			t.Errorf("the solo call has a time-out of %v, want %v", solo.timeout, testTimeout)
		}

		// While the solo call waits, the others are sent, and the coupon has no second call.
		c.claimOf(t.Context(), "locked", "l3")
		for n := range 3 {
			user := fmt.Sprint("g", n)
			c.claimOf(t.Context(), "free", user)
			f.wantCall(t, false, user)
			c.wantAnswered(t, user)
		}
		f.wantNoCall(t)
		c.wantPending(t, "l1", "l2", "l3")

		// The lock is gone: the coupon shares calls again.
		f.lock(false, "locked")
		close(solo.answer)
		c.wantAnswered(t, "l1", "l2")
		f.wantCall(t, false, "l3")
		c.wantAnswered(t, "l3")
	})
}

// A coupon that was locked is kept out of shared calls until a solo call finds it free and for a
// while more, also if it has no claims meanwhile. Then it shares calls again.
func TestBatcher_keptApart(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		f.lock(true, "coupon")
		c.claim(t.Context(), "ann")
		f.wantCall(t, false, "ann")
		f.wantCall(t, true, "ann")
		c.wantError(t, ErrUnavailable, "ann")
		time.Sleep(10 * testTimeout)
		c.claim(t.Context(), "bob")
		f.wantCall(t, true, "bob")
		c.wantError(t, ErrUnavailable, "bob")
		f.lock(false, "coupon")
		time.Sleep(10 * testTimeout)
		for _, user := range []string{"cyd", "dan"} { // the second one does not extend it
			c.claim(t.Context(), user)
			f.wantCall(t, true, user)
			c.wantAnswered(t, user)
			time.Sleep(testTimeout / 10)
		}
		c.claim(t.Context(), "eve")
		f.wantCall(t, false, "eve")
		c.wantAnswered(t, "eve")

		// A coupon without claims is forgotten.
		f.lock(true, "coupon")
		c.claim(t.Context(), "fay")
		f.wantCall(t, false, "fay")
		f.wantCall(t, true, "fay")
		c.wantError(t, ErrUnavailable, "fay")
		time.Sleep(60*testTimeout + 1)
		c.claimOf(t.Context(), "other", "gil")
		f.wantCall(t, false, "gil")
		c.batcher.keepSolo("other", true)
		if n := len(c.batcher.soloUntil); n != 1 {
			t.Errorf("%d coupons are kept apart, want 1", n)
		}
		c.claim(t.Context(), "hal")
		f.wantCall(t, false, "hal")
		f.wantCall(t, true, "hal")
		c.wantError(t, ErrUnavailable, "hal")
	})
}

// Many coupons become locked at once. Two of them at a time have a connection, in their order, and
// the free coupons do not wait.
func TestBatcher_manyLockedCoupons(t *testing.T) {
	withBatcher(t, 1000, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		const count = 50
		c.claimOf(t.Context(), "free", "first")
		var locked []string
		for n := range count {
			coupon := fmt.Sprint("locked", n)
			locked = append(locked, coupon)
			c.claimOf(t.Context(), coupon, coupon)
			c.claimOf(t.Context(), fmt.Sprint("free", n), fmt.Sprint("free", n))
		}
		f.lock(true, locked...)
		f.wantCall(t, false, "first")
		shared := f.nextCall(t)
		if len(shared.users) != 2*count || shared.solo {
			t.Fatalf("the call has %d claims, want %d", len(shared.users), 2*count)
		}
		close(shared.answer)
		for n := range count {
			c.wantAnswered(t, fmt.Sprint("free", n))
		}
		solo := []fakeCall{f.nextCall(t), f.nextCall(t)}
		f.wantNoCall(t)
		if load := c.batcher.load(); load.solo != count {
			t.Errorf("%d coupons are alone, want %d", load.solo, count)
		}
		for n := range 10 {
			user := fmt.Sprint("again", n)
			c.claimOf(t.Context(), "free", user)
			f.wantCall(t, false, user)
			c.wantAnswered(t, user)
		}
		f.lock(false, locked...)
		for n := 0; len(solo) > 0; n++ {
			if !solo[0].solo {
				t.Error("a shared call has claims of a locked coupon")
			}
			close(solo[0].answer)
			solo = solo[1:]
			if n < count-2 {
				solo = append(solo, f.nextCall(t))
			}
		}
		c.wantAnswered(t, locked...)
	})
}

// Claims that wait for a connection for their solo call are answered in time.
func TestBatcher_soloCallsAreBounded(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, second := c.occupySolo(t, f)
		f.lock(true, "x")
		c.claimOf(t.Context(), "x", "x1")
		f.wantCall(t, false, "x1")
		c.claimOf(t.Context(), "x", "x2")
		time.Sleep(testTimeout / 2)
		c.wantPending(t, "x1", "x2")
		time.Sleep(time.Millisecond)
		c.wantError(t, ErrUnavailable, "x1") // was sent, and rolled back
		c.wantError(t, ErrOverloaded, "x2")  // was not sent yet
		close(first.answer)
		close(second.answer)
		c.wantError(t, ErrUnavailable, "a", "b")
		f.wantNoCall(t)
	})
}

// The claims of a call that may have been committed are not mixed with others, and their callers
// cannot leave.
func TestBatcher_ambiguousClaimsStay(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		ctx, cancel := context.WithCancel(t.Context())
		first, second := c.occupySolo(t, f)
		f.lock(true, "coupon")
		c.claim(ctx, "ann")
		call := f.nextCall(t)
		c.claim(ctx, "bob", "cyd")
		c.claim(t.Context(), "dan")
		f.cut(call)
		cancel()
		c.wantPending(t, "ann")
		c.wantError(t, ErrUnavailable, "bob", "cyd")
		f.lock(false, "a", "b", "coupon")
		close(first.answer)
		f.wantCall(t, true, "ann")
		f.wantCall(t, false, "dan")
		close(second.answer)
		c.wantAnswered(t, "ann", "dan", "a", "b")

	})
}

// A claim that may have been committed waits for its second attempt until the time-out, and its
// outcome is unknown then. Claims behind it are answered before.
func TestBatcher_ambiguousClaimsExpireLast(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, second := c.occupySolo(t, f)
		f.lock(true, "coupon")
		c.claim(t.Context(), "ann")
		call := f.nextCall(t)
		f.cut(call)
		c.claim(t.Context(), "bob")
		time.Sleep(testTimeout/2 + time.Millisecond)
		c.wantPending(t, "ann")
		c.wantError(t, ErrOverloaded, "bob")
		time.Sleep(testTimeout / 2)
		c.wantError(t, ErrOutcomeUnknown, "ann")
		close(first.answer)
		close(second.answer)
		c.wantError(t, ErrUnavailable, "a", "b")
	})
}

// A caller can leave at each point before its claim is sent, also from a solo queue.
func TestBatcher_leave(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		f.lock(true, "coupon")
		leaving := func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) }
		c.claim(t.Context(), "ann")
		call := f.nextCall(t)
		var leave []context.CancelFunc
		for _, user := range []string{"b1", "b2", "b3", "b4"} {
			ctx, cancel := leaving()
			c.claim(ctx, user)
			leave = append(leave, cancel)
		}
		leave[1]() // from the middle of the queue
		leave[3]() // from its end
		c.wantError(t, ErrUnavailable, "b2", "b4")
		close(call.answer)
		solo := f.nextCall(t, "ann")
		leave[0]() // from its front, while the coupon is in a solo call
		c.wantError(t, ErrUnavailable, "b1")
		close(solo.answer)
		c.wantError(t, ErrUnavailable, "ann")
		solo = f.nextCall(t, "b3")
		leave[2]() // too late
		c.wantPending(t, "b3")
		f.lock(false, "coupon")
		ctx, cancel := leaving()
		c.claim(ctx, "last")
		cancel() // the queue is empty when the call ends
		c.wantError(t, ErrUnavailable, "last")
		close(solo.answer)
		c.wantAnswered(t, "b3")
		f.wantNoCall(t)
	})
}

// A caller can leave as well if its claim came back from a shared call without effect. This is its
// own goroutine's call.
func TestBatcher_leaveBeforeTheSoloCall(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, second := c.occupySolo(t, f)
		f.lock(true, "coupon")
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(ctx, "ann")
		f.wantCall(t, false, "ann")
		c.wantPending(t, "ann")
		cancel()
		c.wantError(t, ErrUnavailable, "ann")
		close(first.answer)
		close(second.answer)
		c.wantError(t, ErrUnavailable, "a", "b")
		f.wantNoCall(t)
	})
}

// The claims of locked coupons, even of the hottest, leave room for those of the others.
func TestBatcher_lockedCouponsLeaveRoom(t *testing.T) {
	withBatcher(t, 40, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		f.lock(true, "hot", "second")
		users := func(prefix string, count int) (users []string) {
			for n := range count {
				users = append(users, fmt.Sprint(prefix, n))
			}
			return users
		}
		c.claimOf(t.Context(), "hot", "first")
		call := f.nextCall(t)
		hot := users("hot", 40)
		c.claimOf(t.Context(), "hot", hot...)
		c.claimOf(t.Context(), "free", "early")
		c.wantError(t, ErrOverloaded, "early")
		close(call.answer)
		c.wantPending(t, hot[:19]...) // and the first: half of the limit
		c.wantError(t, ErrOverloaded, hot[19:]...)
		solo := f.nextCall(t, "first")

		// A second locked coupon gets what is left, and the others have their half.
		c.claimOf(t.Context(), "second", "s0")
		f.wantCall(t, false, "s0")
		second := f.nextCall(t, "s0")
		c.claimOf(t.Context(), "second", "s1", "s2")
		c.wantError(t, ErrOverloaded, "s2")
		c.claimOf(t.Context(), "free", users("f", 21)...)
		f.wantCall(t, false, "f0")
		f.wantCall(t, false, users("f", 21)[1:]...)
		c.wantAnswered(t, users("f", 21)...)

		f.lock(false, "hot", "second")
		close(solo.answer)
		f.wantCall(t, false, hot[:19]...)
		close(second.answer)
		f.wantCall(t, false, "s1")
		c.wantAnswered(t, append(hot[:19:19], "first", "s0", "s1")...)
	})
}

// The claims of a coupon that is alone for another reason, because a connection was cut, may use
// the whole queue. If the coupon turns out to be locked, they may not.
func TestBatcher_cutConnectionRefusesNone(t *testing.T) {
	withBatcher(t, 4, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		f.lock(true, "hot")
		c.claimOf(t.Context(), "hot", "first")
		call := f.nextCall(t)
		c.claimOf(t.Context(), "hot", "h1", "h2", "h3", "h4")
		f.cut(call)
		c.wantPending(t, "first", "h1", "h2", "h3", "h4")

		f.wantCall(t, true, "first")
		c.wantError(t, ErrUnavailable, "first")
		c.wantError(t, ErrOverloaded, "h3", "h4")
		solo := f.nextCall(t, "h1", "h2")
		c.claimOf(t.Context(), "hot", "i1", "i2", "i3")
		c.wantError(t, ErrOverloaded, "i3")
		f.lock(false, "hot")
		close(solo.answer)
		f.wantCall(t, true, "i1", "i2")
		c.wantAnswered(t, "h1", "h2", "i1", "i2")
	})
}

// The claims of a coupon that was locked not long ago leave room as well.
func TestBatcher_keptApartLeavesRoom(t *testing.T) {
	withBatcher(t, 4, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.batcher.keepSolo("coupon", true)
		c.claim(t.Context(), "ann", "bob", "cyd", "dan")
		c.wantError(t, ErrOverloaded, "dan")
		f.wantCall(t, true, "ann")
		f.wantCall(t, true, "bob", "cyd")
		c.wantAnswered(t, "ann", "bob", "cyd")
	})
}

// With CLAIM_CONCURRENCY 2, two shared calls have different coupons.
func TestBatcher_concurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		var calls sync.WaitGroup
		b := newBatcher(f, 2, 100, testTimeout, make(chan struct{}, 1), &calls)
		c := &fakeCallers{batcher: b, outcomes: map[string]chan outcome{}}
		c.claimOf(t.Context(), "x", "x1", "x2")
		c.claimOf(t.Context(), "y", "y1", "y2")
		c.claimOf(t.Context(), "z", "z1")
		x, y := f.nextCall(t, "x1"), f.nextCall(t, "y1")
		f.wantNoCall(t)
		close(y.answer)
		f.wantCall(t, false, "z1", "y2")
		close(x.answer)
		f.wantCall(t, false, "x2")
		c.wantAnswered(t, "x1", "x2", "y1", "y2", "z1")
		b.close()
		calls.Wait()
	})
}

// Close waits for pending claims, also for those that wait for a connection for a solo call.
func TestBatcher_close(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, second := c.occupySolo(t, f)
		f.lock(true, "x")
		c.claimOf(t.Context(), "x", "x")
		f.wantCall(t, false, "x")
		c.claim(t.Context(), "ann", "bob")
		var closed atomic.Bool
		go func() {
			c.close()
			closed.Store(true)
		}()
		synctest.Wait() // close has started: dan is too late
		c.claim(t.Context(), "dan")
		c.wantError(t, errBatcherClosed, "dan")
		f.lock(false, "a", "b", "x")
		close(first.answer)
		f.wantCall(t, false, "ann")
		f.wantCall(t, true, "x")
		close(second.answer)
		if synctest.Wait(); closed.Load() {
			t.Error("close returned while a claim was pending")
		}
		f.wantCall(t, false, "bob")
		synctest.Wait()
		c.wantAnswered(t, "a", "b", "x", "ann", "bob")
		if !closed.Load() {
			t.Error("close has not returned")
		}
	})
}

func TestBatcher_closeWaitsForSoloCalls(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		first, second := c.occupySolo(t, f)
		var closed atomic.Bool
		go func() {
			c.close()
			closed.Store(true)
		}()
		close(first.answer)
		if synctest.Wait(); closed.Load() {
			t.Error("close returned while a solo call was in flight")
		}
		close(second.answer)
		c.wantError(t, ErrUnavailable, "a", "b")
		if !closed.Load() {
			t.Error("close has not returned")
		}
	})
}

// panickingServer panics in the first call.
type panickingServer struct {
	*fakeServer
	calls atomic.Int32
}

func (p *panickingServer) sendShared(ctx context.Context, claims []*claim) {
	first := p.calls.Add(1) == 1
	p.fakeServer.sendShared(ctx, claims)
	if first {
		for _, c := range claims {
			c.status = ""
		}
		panic("broken")
	}
}

func TestBatcher_continuesAfterAPanic(t *testing.T) {
	withBatcher(t, 100, func(t *testing.T, c *fakeCallers, f *fakeServer) {
		c.batcher.sender = &panickingServer{fakeServer: f}
		go func() {
			defer func() { _ = recover() }() // as the HTTP layer does
			_, _ = c.batcher.claim(t.Context(), "ann", "coupon")
		}()
		synctest.Wait()
		c.claim(t.Context(), "bob")
		f.wantCall(t, false, "ann")
		f.wantCall(t, false, "bob")
		c.wantAnswered(t, "bob")
	})
}

// randomServer answers calls after a random time, and checks what is promised of them.
type randomServer struct {
	t      *testing.T
	mu     sync.Mutex
	sent   map[string]int  // by user, in calls that had an effect
	coupon map[string]bool // in flight
}

// claims begins a call and returns the function that ends it.
func (r *randomServer) begin(claims []*claim) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	coupons := map[string]bool{}
	for _, c := range claims {
		coupons[c.coupon] = true
	}
	for coupon := range coupons {
		if r.coupon[coupon] {
			r.t.Errorf("%s is in two calls", coupon)
		}
		r.coupon[coupon] = true
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for coupon := range coupons {
			delete(r.coupon, coupon)
		}
	}
}

func (r *randomServer) answer(claims []*claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range claims {
		r.sent[c.user]++
		if strings.HasSuffix(c.user, "7") {
			c.err = fmt.Errorf("%w: for %s", ErrOutcomeUnknown, c.user)
		} else {
			c.status = ClaimStatus(c.user)
		}
	}
}

func (r *randomServer) sendShared(_ context.Context, claims []*claim) {
	end := r.begin(claims)
	defer end()
	time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
	locked := map[string]bool{}
	for _, c := range claims {
		locked[c.coupon] = locked[c.coupon] || rand.IntN(4) == 0
	}
	for _, c := range claims {
		if locked[c.coupon] {
			c.failed = failedOnLock
		} else {
			r.answer([]*claim{c})
		}
	}
}

func (r *randomServer) sendSolo(_ context.Context, claims []*claim) bool {
	end := r.begin(claims)
	defer end()
	time.Sleep(time.Duration(rand.IntN(600)) * time.Microsecond)
	r.answer(claims)
	return rand.IntN(2) == 0
}

// Each caller gets the outcome of its own claim. A claim has an effect at most once, and none after
// its caller got an error that says it was not sent. A coupon never has two calls in flight.
func TestBatcher_random(t *testing.T) {
	t.Parallel()
	const callers, rounds = 60, 40
	r := &randomServer{t: t, sent: map[string]int{}, coupon: map[string]bool{}}
	var calls sync.WaitGroup
	b := newBatcher(r, 2, 24, testTimeout/100, make(chan struct{}, 2), &calls)

	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for k := range rounds {
				user := fmt.Sprintf("user-%d-%d", i, k)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(500))*time.Microsecond)
				if k%2 == 0 {
					cancel()
					ctx, cancel = context.WithCancel(t.Context())
				}
				status, err := b.claim(ctx, user, fmt.Sprintf("coupon-%d", rand.IntN(5)))
				cancel()

				r.mu.Lock()
				n := r.sent[user]
				r.mu.Unlock()
				switch {
				case err == nil:
					if n != 1 || status != ClaimStatus(user) {
						t.Errorf("%s: sent %d times, status %q", user, n, status)
					}
				case errors.Is(err, ErrOutcomeUnknown):
					if n != 1 || !strings.HasSuffix(err.Error(), " "+user) {
						t.Errorf("%s: sent %d times, error %v", user, n, err)
					}
				case n != 0:
					t.Errorf("%s: was sent, and its error is %v", user, err)
				}
			}
		})
	}
	answered := make(chan struct{})
	go func() {
		all.Wait()
		b.close()
		calls.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(time.Minute):
		t.Fatal("a claim is never answered")
	}
	for user, n := range r.sent {
		if n != 1 {
			t.Errorf("%s: sent %d times", user, n)
		}
	}
}

// lockingServer is an instance's connection to a database with row locks. A call locks its coupons
// in order, works for a while and releases the locks.
type lockingServer struct {
	locks   map[string]chan struct{} // of the database, by coupon
	timeout time.Duration            // lock_timeout of shared calls
	claims  atomic.Int64             // that had an effect
}

func (s *lockingServer) call(claims []*claim, lockTimeout time.Duration) bool {
	var coupons []string
	for _, c := range claims {
		coupons = append(coupons, c.coupon)
	}
	slices.Sort(coupons)
	coupons = slices.Compact(coupons)
	for n, coupon := range coupons {
		select {
		case s.locks[coupon] <- struct{}{}:
		case <-time.After(lockTimeout):
			for _, held := range coupons[:n] {
				<-s.locks[held]
			}
			return false
		}
	}
	time.Sleep(time.Millisecond + time.Duration(len(claims))*10*time.Microsecond) // and its commit
	for _, coupon := range coupons {
		<-s.locks[coupon]
	}
	for _, c := range claims {
		c.status = Claimed
	}
	s.claims.Add(int64(len(claims)))
	return true
}

func (s *lockingServer) sendShared(_ context.Context, claims []*claim) {
	if !s.call(claims, s.timeout) {
		for _, c := range claims {
			c.failed = failedOnLock
		}
	}
}

func (s *lockingServer) sendSolo(_ context.Context, claims []*claim) bool {
	if !s.call(claims, lockTimeout(testTimeout)) {
		for _, c := range claims {
			c.err = ErrUnavailable
		}
		return true
	}
	return false
}

// Instances that compete for the same coupons share them about equally, do not take them for
// locked, and make as many claims in all as one instance with all callers.
func TestBatcher_competingInstances(t *testing.T) {
	for _, coupons := range []int{1, 50} {
		t.Run(fmt.Sprintf("coupons=%d", coupons), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				run := func(instances int) (total int64, each []int64) {
					locks := map[string]chan struct{}{}
					for n := range coupons {
						locks[fmt.Sprint("c", n)] = make(chan struct{}, 1)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					var calls, callers sync.WaitGroup
					var servers []*lockingServer
					for range instances {
						s := &lockingServer{locks: locks, timeout: sharedLockTimeout(testTimeout)}
						servers = append(servers, s)
						b := newBatcher(s, 1, 1000, testTimeout, make(chan struct{}, 2), &calls)
						for caller := range 128 / instances {
							callers.Go(func() {
								for n := caller; ctx.Err() == nil; n++ {
									if _, err := b.claim(t.Context(), "u", fmt.Sprint("c", n%coupons)); err != nil {
										t.Error(err)
									}
								}
							})
						}
					}
					callers.Wait()
					calls.Wait()
					for _, s := range servers {
						each = append(each, s.claims.Load())
						total += s.claims.Load()
					}
					return total, each
				}
				one, _ := run(1)
				two, each := run(2)
				t.Logf("one instance: %d claims; two: %d", one, each)
				if least := slices.Min(each); least < two*4/10 {
					t.Errorf("two instances made %d claims; want at least 40 %% each", each)
				}
				// Their batches are half as large, and the fixed part of a call is 1 of 1.64 ms.
				if two < one*6/10 {
					t.Errorf("two instances made %d claims, one made %d; want at least 60 %%", two, one)
				}
			})
		})
	}
}
