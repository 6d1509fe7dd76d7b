package pgstore

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// How claims travel together.
//
// A coupon on sale is one row, and its lock is held until the commit: claims that go
// one by one are capped at one a commit, however many connections carry them. So
// claims that arrive while a call is in flight wait for it, and then go together: one
// call, one lock, one commit for all of them. There is no timer: an idle service adds
// no delay, and a busy one grows its crowds by itself.
//
// The way of a claim:
//
//  1. A coupon always maps to the same lane. A lane has at most one call in flight. Behind
//     a proxy a lane belongs to one shard (shards.go), so that a call costs one shard and
//     waits for no other.
//  2. A caller who finds his lane idle takes its turn and carries his own claim, on his
//     own goroutine. (A goroutine standing by for it would cost him two switches.)
//  3. A caller who finds it busy queues. If the queue is full he hears ErrOverloaded at
//     once; if he leaves while he waits, his claim leaves with him.
//  4. Whoever ends a call hands the turn on: to a goroutine that carries all who have
//     gathered meanwhile, and those who gather while it does, until nobody waits.
//  5. Boarding a call is the point of no return: from then on the claim stands, its
//     caller stays for the answer, and gets it when the call has returned, which is
//     after the commit.
//
// Who owns what: a lane's fields belong to its mutex. A waiter belongs to the mutex as
// long as he queues, to the carrier from boarding until done is signalled, to his
// caller after that.
//
// Bounds: a claim that has queued for half of the time-out is not boarded any more, so
// each crowd has the other half left, and send is bound by its oldest claim's deadline.
// That way everybody is answered within the time-out and no claim needs a timer.
type lanes struct {
	send    func(ctx context.Context, claims []*claim) // sets each claim's status or err
	limit   int                                        // claims that may queue in a lane
	timeout time.Duration                              // longest a claim waits for its answer
	seed    maphash.Seed
	running sync.WaitGroup // lanes that are not idle

	// partitions is where a coupon's lane is looked up: each partition has its shard's
	// lanes. A single server is one partition.
	partitions atomic.Pointer[[]group]
	count      int           // lanes of a group
	groups     map[int]group // by the shard's number
	grouping   sync.Mutex    // guards groups

	// waiters spares a claim the allocation of its waiter and channel. One whose caller
	// left is not put back: the queue has it still.
	waiters sync.Pool
}

// mostInCall is the most claims that one call carries. The row lock is held for the
// whole call, so what one instance gains by larger crowds the others wait for. With
// 2,000 connections on one coupon (2 cores, medians of 3 interleaved rounds):
//
//	most in a call        128     256     512   1,024   2,048
//	claims a second    28,600  30,200  30,700  30,900  30,500
const mostInCall = 512

// group is the lanes of one server.
type group []lane

type lane struct {
	*lanes
	mu     sync.Mutex
	busy   bool // somebody has the turn
	closed bool
	away   error     // why nobody is let in; nil: the server is there
	queue  []*waiter // in order of arrival
	left   int       // those in the queue whose callers have left
}

// waiter is a claim on its way through a lane.
type waiter struct {
	claim
	boarded bool          // taken from the queue: it is too late to leave
	left    bool          // his caller has left: he is not boarded
	done    chan struct{} // signalled once: the claim is answered
}

func newLanes(count, limit int, timeout time.Duration, send func(context.Context, []*claim)) *lanes {
	ls := &lanes{send: send, limit: limit, timeout: timeout, seed: maphash.MakeSeed(), count: count, groups: make(map[int]group)}
	ls.waiters.New = func() any { return &waiter{done: make(chan struct{}, 1)} }
	ls.regroup([]int{0})
	return ls
}

// regroup gives each shard lanes of its own, count of them: shards[p] is the number of the
// shard that has partition p, and there are 2^n partitions. Claims that wait in a lane
// which is another shard's from now on stay there: the proxy knows where they belong.
func (ls *lanes) regroup(shards []int) {
	ls.grouping.Lock()
	defer ls.grouping.Unlock()
	partitions := make([]group, len(shards))
	for p, shard := range shards {
		g, ok := ls.groups[shard]
		if !ok {
			g = make(group, ls.count)
			for i := range g {
				g[i].lanes = ls
			}
			ls.groups[shard] = g
		}
		partitions[p] = g
	}
	ls.partitions.Store(&partitions)
}

// claim carries user's claim for coupon to its outcome. It returns within the time-out
// (as far as send keeps its deadline), whatever becomes of ctx after boarding.
func (ls *lanes) claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	if ctx.Err() != nil {
		return "", gaveUp(ctx)
	}
	w := ls.waiters.Get().(*waiter)
	w.claim = claim{user: user, coupon: coupon, request: requestID(ctx), since: time.Now()}
	w.boarded = false

	l := ls.of(coupon)
	carry, err := l.enter(w)
	switch {
	case err != nil:
	case carry:
		l.carryOwn(ctx, w)
	default:
		if !l.await(ctx, w) {
			return "", gaveUp(ctx)
		}
	}

	status := w.status
	if err == nil {
		err = w.err
	}
	w.claim = claim{}
	ls.waiters.Put(w)
	return status, err
}

// of is the coupon's lane.
func (ls *lanes) of(coupon string) *lane {
	partitions := *ls.partitions.Load()
	g := partitions[0]
	if len(partitions) > 1 {
		g = partitions[hashText(coupon)&uint32(len(partitions)-1)]
	}
	return &g[maphash.String(ls.seed, coupon)%uint64(len(g))]
}

// enter gives w the turn of an idle lane (carry), or a place in the queue of a busy one.
func (l *lane) enter(w *waiter) (carry bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return false, fmt.Errorf("%w: the service is stopping", ErrUnavailable)
	case l.away != nil:
		return false, l.away
	case !l.busy:
		l.busy = true
		l.running.Add(1)
		return true, nil
	}
	if len(l.queue) >= l.limit && l.left > 0 {
		l.forgetLeft()
	}
	if len(l.queue) >= l.limit {
		return false, fmt.Errorf("%w: %d claims wait in the lane already", ErrOverloaded, len(l.queue))
	}
	l.queue = append(l.queue, w)
	return false, nil
}

// carryOwn sends w alone, on its caller's goroutine, and hands the turn on.
func (l *lane) carryOwn(ctx context.Context, w *waiter) {
	// Deferred, so that a panic, which the HTTP layer survives, does not leave the lane
	// without anybody who has its turn.
	defer l.handOn()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), w.since.Add(l.timeout))
	defer cancel()
	l.send(ctx, []*claim{&w.claim})
}

// await waits until w is answered, or until its caller leaves before it was boarded:
// then it returns false, and w stays with the queue.
func (l *lane) await(ctx context.Context, w *waiter) (answered bool) {
	select {
	case <-w.done:
		return true
	case <-ctx.Done():
	}
	if l.leave(w) {
		return false
	}
	<-w.done
	return true
}

// leave marks w as gone from the queue; false: it has boarded already.
func (l *lane) leave(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.boarded {
		return false
	}
	w.left = true
	l.left++
	return true
}

// handOn ends a turn: the lane is idle again, or those who gathered get a carrier.
func (l *lane) handOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.idle()
		return
	}
	go l.carry()
}

// carry has the lane's turn and carries crowd after crowd until nobody waits.
func (l *lane) carry() {
	var crowd []*waiter
	var claims []*claim
	for {
		if crowd = l.board(crowd[:0]); len(crowd) == 0 {
			return
		}
		claims = claims[:0]
		for _, w := range crowd {
			claims = append(claims, &w.claim)
		}

		ctx, cancel := context.WithDeadline(context.Background(), crowd[0].since.Add(l.timeout))
		l.send(ctx, claims)
		cancel()

		for _, w := range crowd {
			w.done <- struct{}{}
		}
	}
}

// board takes the next crowd from the queue. Those who have waited too long are
// answered instead. With nobody left it ends the turn and returns an empty crowd.
func (l *lane) board(crowd []*waiter) []*waiter {
	latest := time.Now().Add(-l.timeout / 2)

	l.mu.Lock()
	defer l.mu.Unlock()
	taken := 0
	for _, w := range l.queue {
		if len(crowd) == mostInCall {
			break
		}
		taken++
		switch {
		case w.left:
			l.left--
		case w.since.Before(latest):
			w.boarded = true
			w.err = fmt.Errorf("%w: the claim queued for half of the time-out", ErrOverloaded)
			w.done <- struct{}{}
		default:
			w.boarded = true
			crowd = append(crowd, w)
		}
	}
	rest := copy(l.queue, l.queue[taken:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]

	if len(crowd) == 0 {
		l.idle()
	}
	return crowd
}

// idle ends the last turn. The caller holds the mutex.
func (l *lane) idle() {
	l.busy = false
	l.running.Done()
}

// forgetLeft gives the places of those who left to others. The caller holds the mutex.
func (l *lane) forgetLeft() {
	staying := l.queue[:0]
	for _, w := range l.queue {
		if !w.left {
			staying = append(staying, w)
		}
	}
	clear(l.queue[len(staying):])
	l.queue, l.left = staying, 0
}

// all yields the lanes with their names: a number, behind a proxy after the shard's (16/0).
func (ls *lanes) all() iter.Seq2[string, *lane] {
	return func(yield func(string, *lane) bool) {
		ls.grouping.Lock()
		defer ls.grouping.Unlock()
		for shard, g := range ls.groups {
			for i := range g {
				name := strconv.Itoa(i)
				if len(*ls.partitions.Load()) > 1 {
					name = strconv.Itoa(shard) + "/" + name
				}
				if !yield(name, &g[i]) {
					return
				}
			}
		}
	}
}

// load is what a lane has to do: claims that wait, and calls in flight.
func (l *lane) load() (waiting, inFlight int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy {
		inFlight = 1
	}
	return len(l.queue) - l.left, inFlight
}

// busy: claims are under way.
func (ls *lanes) busy() bool {
	for _, l := range ls.all() {
		if _, inFlight := l.load(); inFlight > 0 {
			return true
		}
	}
	return false
}

// setAway answers err to all who queue for a shard and to whoever comes: none of them is
// sent. nil lets them in again. A call in flight is left to its own end.
func (ls *lanes) setAway(shard int, err error) {
	ls.grouping.Lock()
	defer ls.grouping.Unlock()
	for i := range ls.groups[shard] {
		ls.groups[shard][i].setAway(err)
	}
}

func (l *lane) setAway(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = err
	if err == nil {
		return
	}
	for _, w := range l.queue {
		if !w.left {
			w.boarded = true
			w.err = err
			w.done <- struct{}{}
		}
	}
	clear(l.queue)
	l.queue, l.left = l.queue[:0], 0
}

// whyAway is why the coupon's server is not asked for anything, or (errNotSent) for nothing
// that commits; nil: it is.
func (ls *lanes) whyAway(coupon string) error {
	l := ls.of(coupon)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.away
}

// close refuses new claims and returns when all who wait have been answered.
func (ls *lanes) close() {
	for _, l := range ls.all() {
		l.close()
	}
	ls.running.Wait()
}

func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
