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

// batchers sends concurrent claims to PostgreSQL in batches.
//
// A coupon is one row, and its lock is held until commit: claims sent one at a time are limited to
// one per commit. Therefore a coupon always maps to the same batcher, and a batcher has at most one
// call in flight. Claims that arrive meanwhile are queued and sent together in the next call: one
// lock, one commit. No timer is needed: an idle service adds no delay, and under load batches grow
// on their own (ADR 0008). Behind a proxy a batcher belongs to one shard, so that a call waits for
// that shard only (ADR 0016).
//
// A claim that finds its batcher idle is sent at once, on its caller's goroutine, which saves two
// goroutine switches. When a call ends and claims are queued, a goroutine sends them, batch after
// batch, until the queue is empty.
//
// Ownership: a batcher's fields are guarded by its mutex. A pending claim belongs to the queue
// until it is taken for a call, then to that call until done is signalled, then to its caller.
// Until it is taken, its caller may give up, and the claim is not sent. Once taken, its caller
// waits for the outcome, which arrives when the call has returned, after the commit.
//
// Bounds: a claim that was queued for half of the time-out is not sent. So each batch has the other
// half left, and the deadline of its oldest claim bounds the call: every caller is answered within
// the time-out, without a timer per claim.
type batchers struct {
	send       func(ctx context.Context, claims []*claim) // sets each claim's status or err
	queueLimit int                                        // pending claims per batcher, at most
	timeout    time.Duration                              // longest that a claim waits for its outcome
	seed       maphash.Seed
	running    sync.WaitGroup // counts the busy batchers

	// partitions maps a coupon's partition to the batchers of the shard that has it. A single server
	// is one partition.
	partitions atomic.Pointer[[]group]
	groupSize  int           // batchers per group
	mu         sync.Mutex    // guards groups
	groups     map[int]group // by the shard's number; 0 without a proxy

	// pool reuses pending claims and their channels. An abandoned one is not returned to the pool,
	// because the queue still refers to it.
	pool sync.Pool
}

// maxBatch is the largest number of claims in one call. The row lock is held for the whole call, so
// larger batches delay other instances more than they gain (measured in ADR 0008).
const maxBatch = 512

// group holds the batchers of one server.
type group []batcher

// batcher sends the claims for the coupons that map to it.
type batcher struct {
	set       *batchers
	mu        sync.Mutex
	busy      bool // a call is in flight, or about to start
	closed    bool
	refusal   error           // why claims are not accepted; nil: they are
	queue     []*pendingClaim // in order of arrival
	abandoned int             // claims in the queue that their callers gave up
}

// pendingClaim is a claim that waits for its outcome.
type pendingClaim struct {
	claim
	taken     bool          // removed from the queue: its caller can no longer withdraw it
	abandoned bool          // its caller gave up: it is not sent
	done      chan struct{} // signalled once, when the outcome is set
}

func newBatchers(groupSize, queueLimit int, timeout time.Duration, send func(context.Context, []*claim)) *batchers {
	bs := &batchers{
		send:       send,
		queueLimit: queueLimit,
		timeout:    timeout,
		seed:       maphash.MakeSeed(),
		groupSize:  groupSize,
		groups:     make(map[int]group),
	}
	bs.pool.New = func() any { return &pendingClaim{done: make(chan struct{}, 1)} }
	bs.setPartitions([]int{0})
	return bs
}

// setPartitions gives each shard a group of batchers. shards[p] is the number of the shard that has
// partition p; there are 2^n partitions. Claims already queued stay where they are, even if their
// coupon moves to another shard: the proxy routes them correctly.
func (bs *batchers) setPartitions(shards []int) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	partitions := make([]group, len(shards))
	for p, shard := range shards {
		g, ok := bs.groups[shard]
		if !ok {
			g = make(group, bs.groupSize)
			for i := range g {
				g[i].set = bs
			}
			bs.groups[shard] = g
		}
		partitions[p] = g
	}
	bs.partitions.Store(&partitions)
}

// claim sends user's claim for coupon, alone or in a batch, and returns its outcome. If ctx ends
// before the claim is taken for a call, claim returns the error of contextEnded and the claim is
// never sent. Afterwards it waits for the outcome, for the time-out at most (if send keeps its
// deadline), whatever happens to ctx.
func (bs *batchers) claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	if ctx.Err() != nil {
		return "", contextEnded(ctx)
	}
	p := bs.pool.Get().(*pendingClaim)
	p.claim = claim{user: user, coupon: coupon, requestID: requestID(ctx), arrived: time.Now()}
	p.taken = false

	b := bs.batcherOf(coupon)
	start, err := b.startOrQueue(p)
	switch {
	case err != nil:
	case start:
		b.runOwn(ctx, p)
	default:
		if !b.wait(ctx, p) {
			return "", contextEnded(ctx)
		}
	}

	status := p.status
	if err == nil {
		err = p.err
	}
	p.claim = claim{}
	bs.pool.Put(p)
	return status, err
}

// batcherOf returns the batcher that sends the coupon's claims.
func (bs *batchers) batcherOf(coupon string) *batcher {
	partitions := *bs.partitions.Load()
	g := partitions[0]
	if len(partitions) > 1 {
		g = partitions[hashText(coupon)&uint32(len(partitions)-1)]
	}
	return &g[maphash.String(bs.seed, coupon)%uint64(len(g))]
}

// startOrQueue marks an idle batcher busy and returns start = true: the caller must then send p
// with runOwn. If the batcher is busy, it queues p.
func (b *batcher) startOrQueue(p *pendingClaim) (start bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return false, fmt.Errorf("%w: the service is stopping", ErrUnavailable)
	case b.refusal != nil:
		return false, b.refusal
	case !b.busy:
		b.busy = true
		b.set.running.Add(1)
		return true, nil
	}
	if len(b.queue) >= b.set.queueLimit && b.abandoned > 0 {
		b.dropAbandoned()
	}
	if len(b.queue) >= b.set.queueLimit {
		return false, fmt.Errorf("%w: %d claims are pending", ErrOverloaded, len(b.queue))
	}
	b.queue = append(b.queue, p)
	return false, nil
}

// runOwn sends p alone, on its caller's goroutine, then starts the next call.
func (b *batcher) runOwn(ctx context.Context, p *pendingClaim) {
	// Deferred, because the HTTP layer recovers from panics: the batcher must not stay busy.
	defer b.next()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.arrived.Add(b.set.timeout))
	defer cancel()
	b.set.send(ctx, []*claim{&p.claim})
}

// wait returns true when p has its outcome. It returns false if ctx ends before p is taken for a
// call; p then stays in the queue and is never sent.
func (b *batcher) wait(ctx context.Context, p *pendingClaim) (answered bool) {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	if b.abandon(p) {
		return false
	}
	<-p.done
	return true
}

// abandon marks p as not to be sent. It returns false if p was already taken for a call.
func (b *batcher) abandon(p *pendingClaim) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.taken {
		return false
	}
	p.abandoned = true
	b.abandoned++
	return true
}

// next starts a goroutine that sends the queued claims, or marks the batcher idle if none is
// queued.
func (b *batcher) next() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		b.setIdle()
		return
	}
	go b.run()
}

// run sends batch after batch until the queue is empty.
func (b *batcher) run() {
	var batch []*pendingClaim
	var claims []*claim
	for {
		if batch = b.take(batch[:0]); len(batch) == 0 {
			return
		}
		claims = claims[:0]
		for _, p := range batch {
			claims = append(claims, &p.claim)
		}

		ctx, cancel := context.WithDeadline(context.Background(), batch[0].arrived.Add(b.set.timeout))
		b.set.send(ctx, claims)
		cancel()

		for _, p := range batch {
			p.done <- struct{}{}
		}
	}
}

// take removes up to maxBatch claims from the queue and appends them to batch. Claims that were
// queued for too long get their error instead. If no claim is left to send, take marks the batcher
// idle and returns an empty batch.
func (b *batcher) take(batch []*pendingClaim) []*pendingClaim {
	latest := time.Now().Add(-b.set.timeout / 2)

	b.mu.Lock()
	defer b.mu.Unlock()
	removed := 0
	for _, p := range b.queue {
		if len(batch) == maxBatch {
			break
		}
		removed++
		switch {
		case p.abandoned:
			b.abandoned--
		case p.arrived.Before(latest):
			p.taken = true
			p.err = fmt.Errorf("%w: the claim was queued for half of the time-out", ErrOverloaded)
			p.done <- struct{}{}
		default:
			p.taken = true
			batch = append(batch, p)
		}
	}
	rest := copy(b.queue, b.queue[removed:])
	clear(b.queue[rest:])
	b.queue = b.queue[:rest]

	if len(batch) == 0 {
		b.setIdle()
	}
	return batch
}

// setIdle marks the batcher idle. The caller holds b.mu.
func (b *batcher) setIdle() {
	b.busy = false
	b.set.running.Done()
}

// dropAbandoned removes abandoned claims from the queue. The caller holds b.mu.
func (b *batcher) dropAbandoned() {
	kept := b.queue[:0]
	for _, p := range b.queue {
		if !p.abandoned {
			kept = append(kept, p)
		}
	}
	clear(b.queue[len(kept):])
	b.queue, b.abandoned = kept, 0
}

// all yields the batchers with their names: an index ("0"), behind a proxy preceded by the shard's
// number ("16/0").
func (bs *batchers) all() iter.Seq2[string, *batcher] {
	return func(yield func(string, *batcher) bool) {
		bs.mu.Lock()
		defer bs.mu.Unlock()
		for shard, g := range bs.groups {
			for i := range g {
				name := strconv.Itoa(i)
				if len(*bs.partitions.Load()) > 1 {
					name = strconv.Itoa(shard) + "/" + name
				}
				if !yield(name, &g[i]) {
					return
				}
			}
		}
	}
}

// load returns the number of pending claims and of calls in flight (0 or 1).
func (b *batcher) load() (pending, inFlight int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy {
		inFlight = 1
	}
	return len(b.queue) - b.abandoned, inFlight
}

// anyBusy reports whether a call is in flight.
func (bs *batchers) anyBusy() bool {
	for _, b := range bs.all() {
		if _, inFlight := b.load(); inFlight > 0 {
			return true
		}
	}
	return false
}

// setRefusal answers the pending claims of a shard, and those that arrive later, with err: none of
// them is sent. With err = nil claims are accepted again. A call in flight is not affected.
func (bs *batchers) setRefusal(shard int, err error) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for i := range bs.groups[shard] {
		bs.groups[shard][i].setRefusal(err)
	}
}

func (b *batcher) setRefusal(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusal = err
	if err == nil {
		return
	}
	for _, p := range b.queue {
		if !p.abandoned {
			p.taken = true
			p.err = err
			p.done <- struct{}{}
		}
	}
	clear(b.queue)
	b.queue, b.abandoned = b.queue[:0], 0
}

// refusal returns why nothing is sent to the coupon's server. If the error is errNotCommitting,
// reads are still sent. nil: everything is sent.
func (bs *batchers) refusal(coupon string) error {
	b := bs.batcherOf(coupon)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusal
}

// close refuses new claims and returns when all pending claims have their outcome.
func (bs *batchers) close() {
	for _, b := range bs.all() {
		b.close()
	}
	bs.running.Wait()
}

func (b *batcher) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
