package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// batcher sends concurrent claims to one server in batches.
//
// A coupon is one row, and its lock is held until commit, so claims sent one at a time are limited
// to one per commit. Therefore a coupon has at most one call in flight. Claims that arrive
// meanwhile are queued and sent together in the next call: one lock, one commit. There is no
// timer: an idle service adds no delay, and under load batches grow on their own (ADR 0008).
//
// There are two kinds of calls. A shared call has claims of all coupons that are ready, and waits
// for a lock only briefly. The claims of a coupon that another transaction keeps locked come back
// from it without an outcome, and are sent again in a solo call, which waits longer, on a
// connection that shared calls do not need. So a locked coupon delays no other (ADR 0019). A
// coupon is in one of these states:
//
//	unknown    it has no pending claims and no call in flight; it is not in coupons
//	ready      it has pending claims; the next shared call takes them
//	in flight  it is in a shared call
//	solo       it is in a solo call, or waits for a connection for one (a place in soloSlots)
//
//	unknown, ready ──shared call──▶ in flight ──has an outcome──▶ unknown, ready
//	                                   └─has no outcome─▶ solo ──is not locked──▶ unknown, ready
//
// A coupon that was locked not long ago (soloUntil) goes from unknown to solo at once.
//
// Ownership: mu guards all fields of the batcher and of its queues. A pending claim belongs to its
// queue until it is taken for a call, then to that call until done is signalled, then to its
// caller. A caller may leave while its claim is queued; the claim is then not sent.
//
// Bounds: a claim that was queued for half of the time-out is not sent, unless an earlier call may
// have committed it. So each call has the other half left, and the deadline of its oldest claim
// bounds the call.
type batcher struct {
	sender      sender
	limit       int             // pending claims, at most
	timeout     time.Duration   // longest that a claim waits for its outcome
	concurrency int             // shared calls in flight, at most
	soloSlots   chan struct{}   // holds an element per solo call in flight; the batchers of a Store share it
	calls       *sync.WaitGroup // counts sharedCalls and soloCoupons; the batchers of a Store share it
	reuse       sync.Pool       // of pending claims and their channels

	mu            sync.Mutex
	closed        bool
	coupons       map[string]*couponQueue
	ready         []*couponQueue       // in the order in which they became ready
	soloUntil     map[string]time.Time // until when a coupon is kept out of shared calls
	pending       int                  // claims in all queues
	pendingLocked int                  // those of coupons that are locked
	sharedCalls   int                  // in flight
	soloCoupons   int
}

// couponQueue holds the pending claims of one coupon.
type couponQueue struct {
	coupon string
	locked bool            // it is solo because it is locked
	claims []*pendingClaim // in the order of their arrival
}

// pendingClaim is a claim that waits for its outcome.
type pendingClaim struct {
	claim
	queue *couponQueue
	done  chan struct{} // signalled once, when the outcome is set
}

// sender makes the calls of a batcher. The claims of a coupon are in the order of their arrival,
// one after the other.
type sender interface {
	// sendShared makes one call for claims of one or several coupons. It sets the status or the err
	// of each claim, or only failed if the claim must be sent again in a solo call.
	sendShared(ctx context.Context, claims []*claim)
	// sendSolo makes one call for claims of one coupon, and sets the status or the err of each. It
	// returns true if the coupon would have delayed or failed the others in a shared call.
	sendSolo(ctx context.Context, claims []*claim) (keepSolo bool)
}

// maxBatch is the largest number of claims in one call. The row lock is held for the whole call, so
// larger batches delay other instances more than they gain (measured in ADR 0008).
const maxBatch = 512

var (
	errBatcherClosed = errors.New("the batcher does not accept claims any more")
	errTooManyLocked = fmt.Errorf("%w: too many claims are pending for coupons that are locked", ErrOverloaded)
)

// newBatcher returns a batcher. soloSlots and calls may be those of other batchers as well.
func newBatcher(s sender, concurrency, limit int, timeout time.Duration, soloSlots chan struct{}, calls *sync.WaitGroup) *batcher {
	return &batcher{
		sender: s, concurrency: concurrency, limit: limit, timeout: timeout, soloSlots: soloSlots, calls: calls,
		coupons: make(map[string]*couponQueue), soloUntil: make(map[string]time.Time),
	}
}

// claim sends user's claim for coupon and returns its outcome. If ctx ends before the claim is
// sent, claim returns the error of contextEnded, and the claim is never sent. Afterwards it waits
// for the outcome, for the time-out at most, whatever happens to ctx.
func (b *batcher) claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	if ctx.Err() != nil {
		return "", contextEnded(ctx)
	}
	p, reused := b.reuse.Get().(*pendingClaim)
	if !reused {
		p = &pendingClaim{done: make(chan struct{}, 1)}
	}
	p.claim = claim{user: user, coupon: coupon, requestID: requestID(ctx), arrived: time.Now()}
	inline, err := b.add(p)
	switch {
	case err != nil:
		p.err = err
	case inline && b.runInline(ctx, p):
	case !b.wait(ctx, p):
		p.err = contextEnded(ctx)
	}
	status, err := p.status, p.err
	p.claim, p.queue = claim{}, nil
	b.reuse.Put(p)
	return status, err
}

// add queues p. If nothing keeps p from being sent now, add starts a shared call with it instead,
// and returns true: the caller must make that call with runInline.
func (b *batcher) add(p *pendingClaim) (inline bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false, errBatcherClosed
	}
	q, known := b.coupons[p.coupon]
	switch {
	case b.pending >= b.limit:
		return false, fmt.Errorf("%w: %d claims are pending", ErrOverloaded, b.pending)
	case known && q.locked && b.pendingLocked >= b.lockedLimit():
		return false, errTooManyLocked
	}
	if !known {
		q = &couponQueue{coupon: p.coupon}
		b.coupons[p.coupon] = q
	}
	p.queue = q
	if !known && b.sharedCalls < b.concurrency && !b.isKeptSolo(p.coupon) {
		b.startShared()
		return true, nil
	}
	b.insert(q, len(q.claims), p)
	if !known {
		b.schedule(q)
	}
	return false, nil
}

// runInline sends p in a shared call on its caller's goroutine, which saves two goroutine switches.
// It returns false if p is to be sent again in a solo call.
func (b *batcher) runInline(ctx context.Context, p *pendingClaim) (answered bool) {
	// Deferred, because the HTTP layer recovers from panics: the coupon must not stay in flight.
	defer func() {
		answered = len(b.finish([]*pendingClaim{p})) > 0
		b.handOver()
	}()
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), p.arrived.Add(b.timeout))
	defer cancel()
	b.sender.sendShared(ctx, []*claim{&p.claim})
	return
}

// wait returns true when p has its outcome. It returns false if ctx ends first and p was withdrawn.
func (b *batcher) wait(ctx context.Context, p *pendingClaim) (answered bool) {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	if b.withdraw(p) {
		return false
	}
	<-p.done
	return true
}

// withdraw removes p from its queue, so that it is not sent. It returns false if p is not queued,
// or if an earlier call may have committed it.
func (b *batcher) withdraw(p *pendingClaim) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := p.queue
	i := slices.Index(q.claims, p)
	if i < 0 || p.failed != nil && p.failed.ambiguous() {
		return false
	}
	q.claims = slices.Delete(q.claims, i, i+1)
	b.count(q, -1)
	return true
}

// handOver ends a shared call that ran on its caller's goroutine. If coupons are ready, a new
// goroutine sends their claims.
func (b *batcher) handOver() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ready) > 0 {
		go b.runShared()
		return
	}
	b.endShared()
}

// runShared makes shared calls until no coupon is ready.
func (b *batcher) runShared() {
	var batch []*pendingClaim
	var claims []*claim
	for {
		if batch = b.takeShared(batch[:0]); len(batch) == 0 {
			return
		}
		claims = appendClaims(claims[:0], batch)
		ctx, cancel := context.WithDeadline(context.Background(), oldestOf(claims).arrived.Add(b.timeout))
		b.sender.sendShared(ctx, claims)
		cancel()
		answer(b.finish(batch))
	}
}

// takeShared appends the claims of ready coupons to batch, maxBatch at most. If there is none, it
// ends the shared call.
func (b *batcher) takeShared(batch []*pendingClaim) []*pendingClaim {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := 0
	for _, q := range b.ready {
		if len(batch) == maxBatch {
			break
		}
		taken++
		before := len(batch)
		if batch = b.take(q, batch); len(batch) == before {
			delete(b.coupons, q.coupon) // its callers have left, or were answered
		}
	}
	b.ready = slices.Delete(b.ready, 0, taken)
	if len(batch) == 0 {
		b.endShared()
	}
	return batch
}

// finish ends the call of a batch. Claims that the call left without an outcome go back to the
// front of their queues. finish returns the others.
func (b *batcher) finish(batch []*pendingClaim) (answered []*pendingClaim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	answered = batch[:0]
	for len(batch) > 0 {
		q, n := batch[0].queue, 0 // claims of a coupon follow each other
		var again []*pendingClaim
		for ; n < len(batch) && batch[n].queue == q; n++ {
			if p := batch[n]; p.toSendAgain() {
				again = append(again, p)
			} else {
				answered = append(answered, p)
			}
		}
		batch = batch[n:]
		b.insert(q, 0, again...)
		b.schedule(q)
	}
	return answered
}

// answer tells callers that their claims have an outcome. The claims belong to them from then on.
func answer(batch []*pendingClaim) {
	for _, p := range batch {
		p.done <- struct{}{}
	}
}

// appendClaims appends the claims of a batch to claims.
func appendClaims(claims []*claim, batch []*pendingClaim) []*claim {
	for _, p := range batch {
		claims = append(claims, &p.claim)
	}
	return claims
}

// runSolo makes solo calls for a coupon until its claims can share a call again.
func (b *batcher) runSolo(q *couponQueue) {
	for b.continueSolo(q) {
		b.waitForSlot(q)
		b.mu.Lock()
		batch := b.take(q, nil)
		b.mu.Unlock()
		if len(batch) > 0 {
			claims := appendClaims(nil, batch)
			ctx, cancel := context.WithDeadline(context.Background(), claims[0].arrived.Add(b.timeout))
			keep := b.sender.sendSolo(ctx, claims)
			cancel()
			b.keepSolo(q.coupon, keep)
			answer(batch)
		}
		<-b.soloSlots
	}
}

// continueSolo reports whether a coupon needs another solo call. If not, it schedules the coupon.
func (b *batcher) continueSolo(q *couponQueue) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clean(q)
	if b.mustBeSolo(q) {
		b.setSolo(q, true) // it may be locked only now
		return true
	}
	b.setSolo(q, false)
	b.schedule(q)
	b.soloCoupons--
	b.calls.Done()
	return false
}

// waitForSlot waits for a connection for a solo call. Meanwhile it answers claims that were queued
// for too long.
func (b *batcher) waitForSlot(q *couponQueue) {
	for {
		b.mu.Lock()
		next := b.clean(q)
		b.mu.Unlock()
		select {
		case b.soloSlots <- struct{}{}:
			return
		case <-time.After(next):
		}
	}
}

// keepSolo notes how a solo call ended. A coupon that was still locked is kept out of shared calls
// until a solo call finds it free, and for a fifth of the time-out more: a coupon that is locked
// again and again would otherwise delay the others each time. A solo call of a free coupon costs
// little, so the first bound is long; it only keeps the map from growing.
func (b *batcher) keepSolo(coupon string, keep bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(b.soloUntil, func(_ string, until time.Time) bool { return now.After(until) })
	if keep {
		b.soloUntil[coupon] = now.Add(60 * b.timeout)
	} else if until, kept := b.soloUntil[coupon]; kept && until.After(now.Add(b.timeout/5)) {
		b.soloUntil[coupon] = now.Add(b.timeout / 5)
	}
}

// The methods below are for callers that hold b.mu.

// schedule decides how the claims of a coupon that has no call in flight are sent.
func (b *batcher) schedule(q *couponQueue) {
	b.clean(q)
	switch {
	case len(q.claims) == 0:
		delete(b.coupons, q.coupon)
	case b.mustBeSolo(q):
		b.setSolo(q, true)
		b.soloCoupons++
		b.calls.Add(1)
		go b.runSolo(q)
	default:
		b.ready = append(b.ready, q)
		if b.sharedCalls < b.concurrency {
			b.startShared()
			go b.runShared()
		}
	}
}

// mustBeSolo reports whether the next call of a coupon with pending claims is a solo call: its
// claims come from a shared call, or the coupon was locked not long ago.
func (b *batcher) mustBeSolo(q *couponQueue) bool {
	return len(q.claims) > 0 && (q.claims[0].failed != nil || b.isKeptSolo(q.coupon))
}

// isKeptSolo reports whether a coupon is kept out of shared calls.
func (b *batcher) isKeptSolo(coupon string) bool {
	return len(b.soloUntil) > 0 && time.Now().Before(b.soloUntil[coupon])
}

// setSolo notes whether a coupon is solo. If it is because the coupon is locked, its claims and
// those of the other locked coupons must leave room for the others: if there are too many, setSolo
// answers those that arrived last.
func (b *batcher) setSolo(q *couponQueue, solo bool) {
	n := len(q.claims)
	b.count(q, -n)
	q.locked = solo && (b.isKeptSolo(q.coupon) || q.claims[0].failed != nil && q.claims[0].failed.lockTimeout)
	b.count(q, n)
	for last := n - 1; q.locked && b.pendingLocked > b.lockedLimit() && last >= 0 && q.claims[last].failed == nil; last-- {
		b.count(q, -1)
		reject(q.claims[last], errTooManyLocked)
		q.claims = slices.Delete(q.claims, last, last+1)
	}
}

// lockedLimit is the largest number of pending claims of coupons that are locked.
func (b *batcher) lockedLimit() int { return max(1, b.limit/2) }

// startShared and endShared count shared calls.
func (b *batcher) startShared() {
	b.sharedCalls++
	b.calls.Add(1)
}

func (b *batcher) endShared() {
	b.sharedCalls--
	b.calls.Done()
}

// insert adds claims to a queue.
func (b *batcher) insert(q *couponQueue, at int, claims ...*pendingClaim) {
	q.claims = slices.Insert(q.claims, at, claims...)
	b.count(q, len(claims))
}

// count notes that n claims were added to a queue.
func (b *batcher) count(q *couponQueue, n int) {
	b.pending += n
	if q.locked {
		b.pendingLocked += n
	}
}

// take moves claims of a coupon to batch, up to a length of maxBatch. Claims that come from a
// failed call are not mixed with others, because their outcomes are judged by that failure.
func (b *batcher) take(q *couponQueue, batch []*pendingClaim) []*pendingClaim {
	b.clean(q)
	n := 0
	for n < len(q.claims) && len(batch)+n < maxBatch && q.claims[n].failed == q.claims[0].failed {
		n++
	}
	batch = append(batch, q.claims[:n]...)
	q.claims = slices.Delete(q.claims, 0, n)
	b.count(q, -n)
	return batch
}

// clean answers the claims of a coupon that were queued for too long, and returns how long the next
// one may stay queued.
func (b *batcher) clean(q *couponQueue) time.Duration {
	now, next := time.Now(), b.timeout/2 // a claim that arrives meanwhile may stay as long
	q.claims = slices.DeleteFunc(q.claims, func(p *pendingClaim) bool {
		left := p.arrived.Add(b.queueTime(p)).Sub(now)
		if left < 0 {
			b.count(q, -1)
			reject(p, p.expired())
			return true
		}
		next = min(next, left+1)
		return false
	})
	return next
}

// queueTime returns how long after its arrival p may be queued: half of the time-out, or all of it
// if an earlier call may have committed it, because only a second answer can tell.
func (b *batcher) queueTime(p *pendingClaim) time.Duration {
	if p.failed != nil && p.failed.ambiguous() {
		return b.timeout
	}
	return b.timeout / 2
}

// reject answers a claim that is removed from its queue.
func reject(p *pendingClaim, err error) {
	p.err = err
	p.done <- struct{}{}
}

// load is what a batcher has to do.
type load struct {
	pending int // claims in its queues
	shared  int // shared calls in flight
	solo    int // coupons that are in a solo call, or wait for a connection for one
}

func (b *batcher) load() load {
	b.mu.Lock()
	defer b.mu.Unlock()
	return load{b.pending, b.sharedCalls, b.soloCoupons}
}

// busy reports whether a call is in flight.
func (b *batcher) busy() bool {
	l := b.load()
	return l.shared+l.solo > 0
}

// close refuses new claims. Pending claims are sent as before.
func (b *batcher) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
