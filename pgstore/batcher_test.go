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

// fakeServer is the send function of the batchers under test. It records each call, holds it until
// the test closes answer, and sets each claim's status to its user, so that an outcome that reaches
// the wrong caller is detected.
type fakeServer struct {
	calls chan fakeCall // in the order in which they start
}

type fakeCall struct {
	users   []string
	timeout time.Duration // from the start of the call to its deadline
	answer  chan struct{} // closed by the test
}

func newFakeServer() *fakeServer { return &fakeServer{calls: make(chan fakeCall, 1000)} }

func (f *fakeServer) send(ctx context.Context, claims []*claim) {
	call := fakeCall{answer: make(chan struct{})}
	for _, c := range claims {
		call.users = append(call.users, c.user)
	}
	if deadline, ok := ctx.Deadline(); ok {
		call.timeout = time.Until(deadline)
	}
	f.calls <- call
	<-call.answer
	for _, c := range claims {
		c.status = ClaimStatus(c.user)
	}
}

// nextCall returns the next call, which must have started.
func (f *fakeServer) nextCall(t *testing.T) fakeCall {
	t.Helper()
	synctest.Wait()
	select {
	case call := <-f.calls:
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

type outcome struct {
	status ClaimStatus
	err    error
}

// fakeCallers makes claims in the background, each queued before the next one starts, and collects
// their outcomes.
type fakeCallers struct {
	t        *testing.T // of the synctest bubble
	batchers *batchers
	outcomes map[string]chan outcome // by user
}

func (c *fakeCallers) claim(ctx context.Context, users ...string) {
	for _, user := range users {
		ch := make(chan outcome, 1)
		c.outcomes[user] = ch
		go func() {
			status, err := c.batchers.claim(ctx, user, "coupon")
			ch <- outcome{status, err}
		}()
		synctest.Wait()
	}
}

func (c *fakeCallers) wantAnswered(t *testing.T, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		select {
		case o := <-c.outcomes[user]:
			if o.err != nil || o.status != ClaimStatus(user) {
				t.Errorf("%s: status %q, error %v", user, o.status, o.err)
			}
		default:
			t.Errorf("%s: no outcome", user)
		}
	}
}

func (c *fakeCallers) wantError(t *testing.T, want error, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		select {
		case o := <-c.outcomes[user]:
			if !errors.Is(o.err, want) || o.status != "" {
				t.Errorf("%s: status %q, error %v; want error %v", user, o.status, o.err, want)
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
		select {
		case o := <-c.outcomes[user]:
			t.Errorf("%s has an outcome too early: status %q, error %v", user, o.status, o.err)
		default:
		}
	}
}

const testTimeout = 5 * time.Second

// withBatcher runs a test in a bubble of fake time, on one batcher.
func withBatcher(t *testing.T, queueLimit int, test func(c *fakeCallers, f *fakeServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		c := &fakeCallers{t: t, batchers: newBatchers(1, queueLimit, testTimeout, f.send), outcomes: map[string]chan outcome{}}
		test(c, f)
		c.batchers.close() // deadlocks, and so fails, if a pending claim is lost
	})
}

func wantUsers(t *testing.T, call fakeCall, users ...string) {
	t.Helper()
	if !slices.Equal(call.users, users) {
		t.Errorf("the call has the claims of %q, want %q", call.users, users)
	}
}

func TestBatcher_batchesClaimsQueuedDuringACall(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx := t.Context()
		c.claim(ctx, "ann", "bob", "cyd", "dan")
		first := f.nextCall(t)
		wantUsers(t, first, "ann")
		f.wantNoCall(t) // at most one call in flight

		close(first.answer)
		c.wantAnswered(t, "ann")
		c.wantPending(t, "bob", "cyd", "dan")

		second := f.nextCall(t)
		wantUsers(t, second, "bob", "cyd", "dan") // in order of arrival
		c.claim(ctx, "eve")
		f.wantNoCall(t)
		close(second.answer)
		c.wantAnswered(t, "bob", "cyd", "dan")

		third := f.nextCall(t)
		wantUsers(t, third, "eve")
		close(third.answer)
		c.wantAnswered(t, "eve")

		// The batcher is idle again: the next claim is sent at once.
		c.claim(ctx, "fay")
		fourth := f.nextCall(t)
		wantUsers(t, fourth, "fay")
		close(fourth.answer)
		c.wantAnswered(t, "fay")
	})
}

func TestBatcher_answersAfterTheCallReturned(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		first := f.nextCall(t)
		time.Sleep(testTimeout / 4)
		c.wantPending(t, "ann", "bob")
		close(first.answer)
		second := f.nextCall(t)
		time.Sleep(testTimeout / 4)
		c.wantPending(t, "bob")
		close(second.answer)
		c.wantAnswered(t, "ann", "bob")
	})
}

func TestBatcher_abandonedClaimIsNotSent(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann")
		c.claim(ctx, "bob")
		c.claim(t.Context(), "cyd")
		first := f.nextCall(t)
		cancel()
		c.wantError(t, ErrUnavailable, "bob")
		close(first.answer)
		second := f.nextCall(t)
		wantUsers(t, second, "cyd")
		close(second.answer)
		c.wantAnswered(t, "ann", "cyd")
	})
}

func TestBatcher_takenClaimIsAnswered(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(ctx, "ann", "bob") // ann's claim is sent at once, bob's is queued
		first := f.nextCall(t)
		close(first.answer)
		second := f.nextCall(t)
		c.wantAnswered(t, "ann")
		cancel()
		c.wantPending(t, "bob") // taken: bob waits for the outcome
		close(second.answer)
		c.wantAnswered(t, "bob")
	})
}

func TestBatcher_canceledOwnCallIsAnswered(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(ctx, "ann")
		c.claim(t.Context(), "bob")
		first := f.nextCall(t)
		cancel()
		c.wantPending(t, "ann")
		close(first.answer)
		second := f.nextCall(t)
		close(second.answer)
		c.wantAnswered(t, "ann", "bob")
	})
}

func TestBatcher_canceledContextIsRefused(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c.claim(ctx, "ann")
		c.wantError(t, ErrUnavailable, "ann")
		f.wantNoCall(t)
	})
}

func TestBatcher_fullQueueIsOverloaded(t *testing.T) {
	withBatcher(t, 2, func(c *fakeCallers, f *fakeServer) {
		t := c.t
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
		second := f.nextCall(t)
		wantUsers(t, second, "bob", "eve")
		close(second.answer)
		c.wantAnswered(t, "ann", "bob", "eve")
	})
}

func TestBatcher_claimQueuedForHalfOfTheTimeoutIsNotSent(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
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

		// cyd's claim was queued for exactly half of the time-out: the other half is left for its call.
		second := f.nextCall(t)
		wantUsers(t, second, "cyd")
		if second.timeout != testTimeout/2 {
			t.Errorf("the second call has a time-out of %v, want %v", second.timeout, testTimeout/2)
		}
		close(second.answer)
		c.wantAnswered(t, "ann", "cyd")
	})
}

func TestBatcher_isIdleWhenNoClaimIsLeftToSend(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		time.Sleep(testTimeout)
		close(f.nextCall(t).answer)
		c.wantError(t, ErrOverloaded, "bob")
		f.wantNoCall(t)
		c.claim(t.Context(), "cyd")
		close(f.nextCall(t).answer)
		c.wantAnswered(t, "ann", "cyd")
	})
}

func TestBatcher_maxBatch(t *testing.T) {
	withBatcher(t, 3*maxBatch, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		c.claim(t.Context(), "first")
		first := f.nextCall(t)
		for range 2*maxBatch + 1 {
			go func() { _, _ = c.batchers.claim(t.Context(), "x", "coupon") }()
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

func TestBatchers_couponKeepsItsBatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeServer()
		bs := newBatchers(4, 100, testTimeout, f.send)
		var callers sync.WaitGroup
		for i := range 400 {
			callers.Go(func() {
				_, _ = bs.claim(t.Context(), fmt.Sprintf("coupon-%d", i%100), fmt.Sprintf("coupon-%d", i%100))
			})
		}
		synctest.Wait()
		if len(f.calls) != 4 {
			t.Errorf("%d calls are in flight, want one for each of the 4 batchers", len(f.calls))
		}
		var calls []fakeCall
		for {
			synctest.Wait()
			if len(f.calls) == 0 {
				break
			}
			call := <-f.calls
			calls = append(calls, call)
			close(call.answer)
		}
		callers.Wait()

		// Four calls have one claim each, and four more have all the others. No coupon is in two of the
		// latter.
		in := map[string]int{}
		for _, call := range calls {
			if len(call.users) == 1 {
				continue
			}
			users := slices.Clone(call.users)
			slices.Sort(users)
			for _, coupon := range slices.Compact(users) {
				in[coupon]++
			}
		}
		for coupon, n := range in {
			if n > 1 {
				t.Errorf("the queued claims for %s were sent by %d batchers", coupon, n)
			}
		}
		bs.close()
	})
}

// Behind a proxy a call has the claims of one shard, and shards do not wait for each other.
func TestBatchers_separateShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const groupSize, coupons = 2, 200
		shards := []int{0, 1, 2, 2, 0, 1, 0, 7}
		f := newFakeServer()
		bs := newBatchers(groupSize, 100, testTimeout, f.send)
		bs.setPartitions(shards)
		var callers sync.WaitGroup
		for i := range 2 * coupons {
			callers.Go(func() {
				coupon := fmt.Sprintf("coupon-%d", i%coupons)
				_, _ = bs.claim(t.Context(), coupon, coupon)
			})
		}
		synctest.Wait()
		if len(f.calls) != 4*groupSize {
			t.Errorf("%d calls are in flight, want %d for each of 4 shards", len(f.calls), groupSize)
		}
		for synctest.Wait(); len(f.calls) > 0; synctest.Wait() {
			call := <-f.calls
			for _, coupon := range call.users {
				shard, first := shards[hashText(coupon)&7], shards[hashText(call.users[0])&7]
				if shard != first {
					t.Errorf("a call has claims of shard %d and of shard %d", shard, first)
				}
			}
			close(call.answer)
		}
		callers.Wait()
		bs.close()
	})
}

// No pending claim is lost when the map of partitions is set or changes.
func TestBatchers_setPartitionsWithPendingClaims(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		before := c.batchers.batcherOf("coupon")
		c.batchers.setPartitions([]int{1, 1})
		if c.batchers.batcherOf("coupon") == before {
			t.Fatal("the coupon still has the same batcher")
		}
		first := f.nextCall(t)
		c.claim(t.Context(), "cyd") // sent by the new batcher, while the old one has a call in flight
		second := f.nextCall(t)
		wantUsers(t, second, "cyd")
		close(first.answer)
		third := f.nextCall(t)
		wantUsers(t, third, "bob")
		close(second.answer)
		close(third.answer)
		c.wantAnswered(t, "ann", "bob", "cyd")
	})
}

// setRefusal answers the pending claims of a shard and those that arrive later; none is sent.
// Claims of other shards, and claims already taken for a call, are not affected.
func TestBatchers_setRefusal(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		ctx, cancel := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann", "bob")
		c.claim(ctx, "cyd")
		c.claim(t.Context(), "dan")
		cancel()
		c.wantError(t, ErrUnavailable, "cyd")
		refusal := fmt.Errorf("%w: unreachable", ErrUnavailable)
		c.batchers.setRefusal(1, refusal) // another shard
		c.wantPending(t, "bob", "dan")
		c.batchers.setRefusal(0, refusal)
		c.wantError(t, refusal, "bob", "dan")
		c.wantPending(t, "ann")
		c.claim(t.Context(), "eve")
		c.wantError(t, refusal, "eve")
		if err := c.batchers.refusal("coupon"); !errors.Is(err, refusal) {
			t.Errorf("refusal: %v, want %v", err, refusal)
		}

		// The refusal is lifted before the call has ended.
		c.batchers.setRefusal(0, nil)
		c.claim(t.Context(), "fay")
		close(f.nextCall(t).answer)
		c.wantAnswered(t, "ann")
		second := f.nextCall(t)
		wantUsers(t, second, "fay")
		c.batchers.setRefusal(0, refusal)
		close(second.answer)
		c.wantAnswered(t, "fay")
		f.wantNoCall(t)
		if err := c.batchers.refusal("coupon"); err == nil {
			t.Error("refusal: nil, want an error")
		}
	})
}

func TestBatchers_close(t *testing.T) {
	withBatcher(t, 100, func(c *fakeCallers, f *fakeServer) {
		t := c.t
		c.claim(t.Context(), "ann", "bob", "cyd")
		var closed atomic.Bool
		go func() {
			c.batchers.close()
			closed.Store(true)
		}()
		synctest.Wait() // close has started: dan is too late
		c.claim(t.Context(), "dan")
		c.wantError(t, ErrUnavailable, "dan")

		close(f.nextCall(t).answer)
		second := f.nextCall(t)
		if closed.Load() {
			t.Error("close returned while a call was in flight")
		}
		close(second.answer)
		c.wantAnswered(t, "ann", "bob", "cyd")
		if !closed.Load() {
			t.Error("close has not returned")
		}
	})
}

func TestBatcher_continuesAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		release := make(chan struct{})
		bs := newBatchers(1, 100, testTimeout, func(_ context.Context, claims []*claim) {
			if calls.Add(1) == 1 {
				<-release
				panic("broken")
			}
			for _, c := range claims {
				c.status = Claimed
			}
		})
		go func() {
			defer func() { _ = recover() }() // as the HTTP layer does
			_, _ = bs.claim(t.Context(), "ann", "coupon")
		}()
		synctest.Wait()
		bob := make(chan outcome, 1)
		go func() {
			status, err := bs.claim(t.Context(), "bob", "coupon")
			bob <- outcome{status, err}
		}()
		synctest.Wait()
		close(release)
		if o := <-bob; o.status != Claimed || o.err != nil {
			t.Errorf("the claim queued during a call that panicked: status %q, error %v", o.status, o.err)
		}
		bs.close()
	})
}

// Each caller gets the outcome of its own claim. A claim is sent at most once, and never after its
// caller got an error that says it was not sent. A batcher never has two calls in flight.
func TestBatchers_random(t *testing.T) {
	const groupSize, callers, rounds = 3, 60, 40
	var mu sync.Mutex
	sent := map[string]int{}
	var inFlight [groupSize]atomic.Int32
	var bs *batchers
	send := func(_ context.Context, claims []*claim) {
		batcher := batcherIndex(bs, claims[0].coupon)
		if inFlight[batcher].Add(1) > 1 {
			t.Error("a batcher has two calls in flight")
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		mu.Lock()
		for _, c := range claims {
			sent[c.user]++
			if batcherIndex(bs, c.coupon) != batcher {
				t.Errorf("a claim for %s was sent by another batcher", c.coupon)
			}
			if strings.HasSuffix(c.user, "7") {
				c.err = fmt.Errorf("%w: for %s", ErrOutcomeUnknown, c.user)
			} else {
				c.status = ClaimStatus(c.user)
			}
		}
		mu.Unlock()
		inFlight[batcher].Add(-1)
	}
	bs = newBatchers(groupSize, 16, testTimeout, send)

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
				status, err := bs.claim(ctx, user, fmt.Sprintf("coupon-%d", rand.IntN(5)))
				cancel()

				mu.Lock()
				n := sent[user]
				mu.Unlock()
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
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(4 * testTimeout):
		t.Fatal("a claim is never answered")
	}
	bs.close()
	for user, n := range sent {
		if n != 1 {
			t.Errorf("%s: sent %d times", user, n)
		}
	}
}

// batcherIndex returns the index of the coupon's batcher in its group.
func batcherIndex(bs *batchers, coupon string) int {
	for i := range bs.groups[0] {
		if bs.batcherOf(coupon) == &bs.groups[0][i] {
			return i
		}
	}
	return -1
}
