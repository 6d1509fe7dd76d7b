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

// bus is a fake of what lies behind the lanes: it notes each call, holds it until the
// test lets it go, and answers each claim with its own user's name, so that an answer
// that reaches the wrong caller shows.
type bus struct {
	calls chan busCall // each call as it begins
}

type busCall struct {
	users    []string
	deadline time.Duration // from the beginning of the call
	answer   chan struct{} // closed by the test
}

func newBus() *bus { return &bus{calls: make(chan busCall, 1000)} }

func (b *bus) send(ctx context.Context, claims []*claim) {
	call := busCall{answer: make(chan struct{})}
	for _, c := range claims {
		call.users = append(call.users, c.user)
	}
	if deadline, ok := ctx.Deadline(); ok {
		call.deadline = time.Until(deadline)
	}
	b.calls <- call
	<-call.answer
	for _, c := range claims {
		c.status = ClaimStatus(c.user)
	}
}

// next is the call that began next; it must have begun by now.
func (b *bus) next(t *testing.T) busCall {
	t.Helper()
	synctest.Wait()
	select {
	case call := <-b.calls:
		return call
	default:
		t.Fatal("no call is in flight")
		return busCall{}
	}
}

func (b *bus) none(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case call := <-b.calls:
		t.Fatalf("a call is in flight: %q", call.users)
	default:
	}
}

type answer struct {
	status ClaimStatus
	err    error
}

// claimers start claims in the background, each queued before the next begins, and
// collect their answers.
type claimers struct {
	t       *testing.T // that of the bubble
	lanes   *lanes
	answers map[string]chan answer
}

func (c *claimers) claim(ctx context.Context, users ...string) {
	for _, user := range users {
		ch := make(chan answer, 1)
		c.answers[user] = ch
		go func() {
			status, err := c.lanes.claim(ctx, user, "coupon")
			ch <- answer{status, err}
		}()
		synctest.Wait()
	}
}

func (c *claimers) answered(t *testing.T, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		select {
		case a := <-c.answers[user]:
			if a.err != nil || a.status != ClaimStatus(user) {
				t.Errorf("%s was answered %q, %v", user, a.status, a.err)
			}
		default:
			t.Errorf("%s has no answer", user)
		}
	}
}

func (c *claimers) refused(t *testing.T, want error, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		select {
		case a := <-c.answers[user]:
			if !errors.Is(a.err, want) || a.status != "" {
				t.Errorf("%s was answered %q, %v; want %v", user, a.status, a.err, want)
			}
		default:
			t.Errorf("%s has no answer", user)
		}
	}
}

func (c *claimers) waiting(t *testing.T, users ...string) {
	t.Helper()
	synctest.Wait()
	for _, user := range users {
		select {
		case a := <-c.answers[user]:
			t.Errorf("%s was answered already: %q, %v", user, a.status, a.err)
		default:
		}
	}
}

const testTimeout = 5 * time.Second

// withLane runs a test in a bubble of fake time, on one lane whose calls the test
// holds in its hand.
func withLane(t *testing.T, queue int, test func(c *claimers, b *bus)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		c := &claimers{t: t, lanes: newLanes(1, queue, testTimeout, b.send), answers: map[string]chan answer{}}
		test(c, b)
		c.lanes.close() // deadlocks, and so fails, when somebody has been forgotten
	})
}

func wantUsers(t *testing.T, call busCall, users ...string) {
	t.Helper()
	if !slices.Equal(call.users, users) {
		t.Errorf("the call carries %q, want %q", call.users, users)
	}
}

func TestLanesCarryTogetherWhatGathersDuringACall(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		ctx := t.Context()
		c.claim(ctx, "ann", "bob", "cyd", "dan")
		first := b.next(t)
		wantUsers(t, first, "ann")
		b.none(t) // one call in flight, whoever waits

		close(first.answer)
		c.answered(t, "ann")
		c.waiting(t, "bob", "cyd", "dan")

		second := b.next(t)
		wantUsers(t, second, "bob", "cyd", "dan") // in order of arrival
		c.claim(ctx, "eve")
		b.none(t)
		close(second.answer)
		c.answered(t, "bob", "cyd", "dan")

		third := b.next(t)
		wantUsers(t, third, "eve")
		close(third.answer)
		c.answered(t, "eve")

		// The lane is idle again: the next caller carries his own claim at once.
		c.claim(ctx, "fay")
		fourth := b.next(t)
		wantUsers(t, fourth, "fay")
		close(fourth.answer)
		c.answered(t, "fay")
	})
}

func TestLanesAnswerOnlyAfterTheCallReturned(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		first := b.next(t)
		time.Sleep(testTimeout / 4)
		c.waiting(t, "ann", "bob")
		close(first.answer)
		second := b.next(t)
		time.Sleep(testTimeout / 4)
		c.waiting(t, "bob")
		close(second.answer)
		c.answered(t, "ann", "bob")
	})
}

func TestLanesCallerWhoLeavesInTheQueueTakesHisClaimWithHim(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		leaving, leave := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann")
		c.claim(leaving, "bob")
		c.claim(t.Context(), "cyd")
		first := b.next(t)
		leave()
		c.refused(t, ErrUnavailable, "bob")
		close(first.answer)
		second := b.next(t)
		wantUsers(t, second, "cyd")
		close(second.answer)
		c.answered(t, "ann", "cyd")
	})
}

func TestLanesClaimStandsOnceItBoarded(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		leaving, leave := context.WithCancel(t.Context())
		c.claim(leaving, "ann", "bob") // ann carries herself, bob queues
		first := b.next(t)
		close(first.answer)
		second := b.next(t)
		c.answered(t, "ann")
		leave()
		c.waiting(t, "bob") // on his way: he hears what became of his claim
		close(second.answer)
		c.answered(t, "bob")
	})
}

func TestLanesCarrierWhoLeavesIsAnsweredAndHandsOn(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		leaving, leave := context.WithCancel(t.Context())
		c.claim(leaving, "ann")
		c.claim(t.Context(), "bob")
		first := b.next(t)
		leave()
		c.waiting(t, "ann")
		close(first.answer)
		second := b.next(t)
		close(second.answer)
		c.answered(t, "ann", "bob")
	})
}

func TestLanesRefuseACallerWhoHasLeftAlready(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		left, leave := context.WithCancel(t.Context())
		leave()
		c.claim(left, "ann")
		c.refused(t, ErrUnavailable, "ann")
		b.none(t)
	})
}

func TestLanesFullQueueRefusesAtOnce(t *testing.T) {
	withLane(t, 2, func(c *claimers, b *bus) {
		t := c.t
		leaving, leave := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann", "bob")
		c.claim(leaving, "cyd")
		c.claim(t.Context(), "dan")
		c.refused(t, ErrOverloaded, "dan")

		leave() // his place is free again
		c.refused(t, ErrUnavailable, "cyd")
		c.claim(t.Context(), "eve", "fay")
		c.waiting(t, "eve")
		c.refused(t, ErrOverloaded, "fay")

		close(b.next(t).answer)
		second := b.next(t)
		wantUsers(t, second, "bob", "eve")
		close(second.answer)
		c.answered(t, "ann", "bob", "eve")
	})
}

func TestLanesDoNotBoardWhoQueuedForHalfOfTheTimeout(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		first := b.next(t)
		if first.deadline != testTimeout {
			t.Errorf("the first call may take %v, want %v", first.deadline, testTimeout)
		}
		time.Sleep(testTimeout / 4)
		c.claim(t.Context(), "cyd")
		time.Sleep(testTimeout / 2)
		c.waiting(t, "bob")
		close(first.answer)
		c.refused(t, ErrOverloaded, "bob")

		// cyd queued for half of it to the tick: she has the other half for the call.
		second := b.next(t)
		wantUsers(t, second, "cyd")
		if second.deadline != testTimeout/2 {
			t.Errorf("the second call may take %v, want %v", second.deadline, testTimeout/2)
		}
		close(second.answer)
		c.answered(t, "ann", "cyd")
	})
}

func TestLanesAreIdleAfterNobodyBoarded(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		time.Sleep(testTimeout)
		close(b.next(t).answer)
		c.refused(t, ErrOverloaded, "bob")
		b.none(t)
		c.claim(t.Context(), "cyd")
		close(b.next(t).answer)
		c.answered(t, "ann", "cyd")
	})
}

func TestLanesCallCarriesAtMostMostInCall(t *testing.T) {
	withLane(t, 3*mostInCall, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "first")
		first := b.next(t)
		for range 2*mostInCall + 1 {
			go func() { _, _ = c.lanes.claim(t.Context(), "x", "coupon") }()
		}
		synctest.Wait()
		close(first.answer)
		for _, want := range []int{mostInCall, mostInCall, 1} {
			call := b.next(t)
			if len(call.users) != want {
				t.Errorf("a call carries %d claims, want %d", len(call.users), want)
			}
			close(call.answer)
		}
		c.answered(t, "first")
	})
}

func TestLanesAreIndependentAndACouponKeepsItsLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		ls := newLanes(4, 100, testTimeout, b.send)
		var asked sync.WaitGroup
		for i := range 400 {
			asked.Go(func() {
				_, _ = ls.claim(t.Context(), fmt.Sprintf("coupon-%d", i%100), fmt.Sprintf("coupon-%d", i%100))
			})
		}
		synctest.Wait()
		if len(b.calls) != 4 {
			t.Errorf("%d calls are in flight, want one for each of the 4 lanes", len(b.calls))
		}
		var calls []busCall
		for {
			synctest.Wait()
			if len(b.calls) == 0 {
				break
			}
			call := <-b.calls
			calls = append(calls, call)
			close(call.answer)
		}
		asked.Wait()

		// Four calls carried one claim each, four more all the others: a coupon's claims
		// that waited were never in two of the latter.
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
				t.Errorf("the claims for %s travelled in %d lanes", coupon, n)
			}
		}
		ls.close()
	})
}

// Behind a proxy a call carries the claims of one shard, and shards do not wait for each other.
func TestLanesKeepShardsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count, coupons = 2, 200
		shards := []int{0, 1, 2, 2, 0, 1, 0, 7}
		b := newBus()
		ls := newLanes(count, 100, testTimeout, b.send)
		ls.regroup(shards)
		var asked sync.WaitGroup
		for i := range 2 * coupons {
			asked.Go(func() {
				coupon := fmt.Sprintf("coupon-%d", i%coupons)
				_, _ = ls.claim(t.Context(), coupon, coupon)
			})
		}
		synctest.Wait()
		if len(b.calls) != 4*count {
			t.Errorf("%d calls are in flight, want %d for each of 4 shards", len(b.calls), count)
		}
		for synctest.Wait(); len(b.calls) > 0; synctest.Wait() {
			call := <-b.calls
			for _, coupon := range call.users {
				shard, first := shards[hashText(coupon)&7], shards[hashText(call.users[0])&7]
				if shard != first {
					t.Errorf("a claim of shard %d travels with one of shard %d", shard, first)
				}
			}
			close(call.answer)
		}
		asked.Wait()
		ls.close()
	})
}

// A map of partitions that comes or changes while claims wait loses none of them.
func TestLanesAreRegroupedWhileClaimsWait(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "ann", "bob")
		before := c.lanes.of("coupon")
		c.lanes.regroup([]int{1, 1})
		if c.lanes.of("coupon") == before {
			t.Fatal("the coupon has the lane that it had")
		}
		first := b.next(t)
		c.claim(t.Context(), "cyd") // by the new map, beside the call in flight
		second := b.next(t)
		wantUsers(t, second, "cyd")
		close(first.answer)
		third := b.next(t)
		wantUsers(t, third, "bob")
		close(second.answer)
		close(third.answer)
		c.answered(t, "ann", "bob", "cyd")
	})
}

// Who waits for a shard that is away is refused at once, and so is who comes; none of them
// is sent. The others, and those who boarded before, are not concerned.
func TestLanesRefuseForAShardThatIsAway(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		leaving, leave := context.WithCancel(t.Context())
		c.claim(t.Context(), "ann", "bob")
		c.claim(leaving, "cyd")
		c.claim(t.Context(), "dan")
		leave()
		c.refused(t, ErrUnavailable, "cyd")
		away := fmt.Errorf("%w: away", ErrUnavailable)
		c.lanes.setAway(1, away) // another shard
		c.waiting(t, "bob", "dan")
		c.lanes.setAway(0, away)
		c.refused(t, away, "bob", "dan")
		c.waiting(t, "ann")
		c.claim(t.Context(), "eve")
		c.refused(t, away, "eve")
		if err := c.lanes.whyAway("coupon"); !errors.Is(err, away) {
			t.Error(err)
		}

		// It is back before the call has ended: the lane is as it was.
		c.lanes.setAway(0, nil)
		c.claim(t.Context(), "fay")
		close(b.next(t).answer)
		c.answered(t, "ann")
		second := b.next(t)
		wantUsers(t, second, "fay")
		c.lanes.setAway(0, away)
		close(second.answer)
		c.answered(t, "fay")
		b.none(t)
		if err := c.lanes.whyAway("coupon"); err == nil {
			t.Error("it is not away")
		}
	})
}

func TestLanesCloseAnswersAllWhoWaitAndRefusesTheRest(t *testing.T) {
	withLane(t, 100, func(c *claimers, b *bus) {
		t := c.t
		c.claim(t.Context(), "ann", "bob", "cyd")
		var closed atomic.Bool
		go func() {
			c.lanes.close()
			closed.Store(true)
		}()
		synctest.Wait() // close has begun: dan is late
		c.claim(t.Context(), "dan")
		c.refused(t, ErrUnavailable, "dan")

		close(b.next(t).answer)
		second := b.next(t)
		if closed.Load() {
			t.Error("close returned while claims were on their way")
		}
		close(second.answer)
		c.answered(t, "ann", "bob", "cyd")
		if !closed.Load() {
			t.Error("close has not returned")
		}
	})
}

func TestLanesTurnIsHandedOnAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		release := make(chan struct{})
		ls := newLanes(1, 100, testTimeout, func(_ context.Context, claims []*claim) {
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
			_, _ = ls.claim(t.Context(), "ann", "coupon")
		}()
		synctest.Wait()
		bob := make(chan answer, 1)
		go func() {
			status, err := ls.claim(t.Context(), "bob", "coupon")
			bob <- answer{status, err}
		}()
		synctest.Wait()
		close(release)
		if a := <-bob; a.status != Claimed || a.err != nil {
			t.Errorf("who waited behind a panic was answered %q, %v", a.status, a.err)
		}
		ls.close()
	})
}

// Whatever callers do, everybody hears his own answer and nobody else's, a claim is
// sent at most once, never after its caller was told that it was not, and never two
// calls of a lane at once.
func TestLanesRandomCrowds(t *testing.T) {
	const lanesCount, callers, rounds = 3, 60, 40
	var mu sync.Mutex
	sent := map[string]int{}
	var inFlight [lanesCount]atomic.Int32
	var ls *lanes
	send := func(_ context.Context, claims []*claim) {
		lane := laneOf(ls, claims[0].coupon)
		if inFlight[lane].Add(1) > 1 {
			t.Error("two calls of one lane at once")
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		mu.Lock()
		for _, c := range claims {
			sent[c.user]++
			if laneOf(ls, c.coupon) != lane {
				t.Errorf("a claim for %s travels in another lane", c.coupon)
			}
			if strings.HasSuffix(c.user, "7") {
				c.err = fmt.Errorf("%w: for %s", ErrOutcomeUnknown, c.user)
			} else {
				c.status = ClaimStatus(c.user)
			}
		}
		mu.Unlock()
		inFlight[lane].Add(-1)
	}
	ls = newLanes(lanesCount, 16, testTimeout, send)

	var asked sync.WaitGroup
	for i := range callers {
		asked.Go(func() {
			for k := range rounds {
				user := fmt.Sprintf("user-%d-%d", i, k)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(500))*time.Microsecond)
				if k%2 == 0 {
					cancel()
					ctx, cancel = context.WithCancel(t.Context())
				}
				status, err := ls.claim(ctx, user, fmt.Sprintf("coupon-%d", rand.IntN(5)))
				cancel()

				mu.Lock()
				n := sent[user]
				mu.Unlock()
				switch {
				case err == nil:
					if n != 1 || status != ClaimStatus(user) {
						t.Errorf("%s was sent %d times and answered %q", user, n, status)
					}
				case errors.Is(err, ErrOutcomeUnknown):
					if n != 1 || !strings.HasSuffix(err.Error(), " "+user) {
						t.Errorf("%s was sent %d times and answered %v", user, n, err)
					}
				case n != 0:
					t.Errorf("%s was sent, and told: %v", user, err)
				}
			}
		})
	}
	answered := make(chan struct{})
	go func() {
		asked.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(4 * testTimeout):
		t.Fatal("somebody is never answered")
	}
	ls.close()
	for user, n := range sent {
		if n != 1 {
			t.Errorf("%s was sent %d times", user, n)
		}
	}
}

func laneOf(ls *lanes, coupon string) int {
	for i := range ls.groups[0] {
		if ls.of(coupon) == &ls.groups[0][i] {
			return i
		}
	}
	return -1
}
