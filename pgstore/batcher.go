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
//	alone      it is in a solo call, or waits for a connection for one (a place in solo)
//
//	unknown, ready ──shared call──▶ in flight ──has an outcome──▶ unknown, ready
//	                                   └─has no outcome─▶ alone ──is not locked──▶ unknown, ready
//
// A coupon that was locked not long ago is kept apart: it goes from unknown to alone at once.
//
// Ownership: mu guards all fields of the batcher and of its queues. A pending claim belongs to its
// queue until it is taken for a call, then to that call until done is signalled, then to its
// caller. A caller may leave while its claim is queued; the claim is then not sent.
//
// Bounds: a claim that was queued for half of the time-out is not sent, unless an earlier call may
// have committed it. So each call has the other half left, and the deadline of its oldest claim
// bounds the call.
type batcher struct {
	sender  sender
	limit   int             // pending claims, at most
	timeout time.Duration   // longest that a claim waits for its outcome
	shares  int             // shared calls in flight, at most
	solo    chan struct{}   // holds an element per solo call in flight; the batchers of a Store share it
	calls   *sync.WaitGroup // counts shared and soloing; the batchers of a Store share it
	reuse   sync.Pool       // of pending claims and their channels

	mu            sync.Mutex
	closed        bool
	coupons       map[string]*couponQueue
	ready         []*couponQueue       // in the order in which they became ready
	apart         map[string]time.Time // until when a coupon is kept out of shared calls
	pending       int                  // claims in all queues
	pendingLocked int                  // those of coupons that are locked
	shared        int                  // shared calls in flight
	soloing       int                  // coupons that are alone
}

// sender makes the calls of a batcher. The claims of a coupon are in the order of their arrival,
// one after the other.
type sender interface {
	// sendShared makes one call for claims of one or several coupons. It sets the status or the err of
	// each claim, or only failed if the claim must be sent again in a solo call.
	sendShared(ctx context.Context, claims []*claim)
	// sendSolo makes one call for claims of one coupon, and sets the status or the err of each. It
	// returns true if the coupon would have delayed or failed the others in a shared call.
	sendSolo(ctx context.Context, claims []*claim) (apart bool)
}

// maxBatch is the largest number of claims in one call. The row lock is held for the whole call, so
// larger batches delay other instances more than they gain (measured in ADR 0008).
const maxBatch = 512

// errBatcherClosed: the batcher does not accept claims any more.
var errBatcherClosed = errors.New("the batcher is closed")

// newBatcher returns a batcher. solo and calls may be those of other batchers as well.
func newBatcher(s sender, shares, limit int, timeout time.Duration, solo chan struct{}, calls *sync.WaitGroup) *batcher {
	return &batcher{
		sender: s, shares: shares, limit: limit, timeout: timeout, solo: solo, calls: calls,
		coupons: make(map[string]*couponQueue), apart: make(map[string]time.Time),
	}
}

// claim sends user's claim for coupon and returns its outcome. If ctx ends before the claim is
// sent, claim returns the error of contextEnded, and the claim is never sent. Afterwards it waits
// for the outcome, for the time-out at most, whatever happens to ctx.
func (b *batcher) claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	if ctx.Err() != nil {
		return "", contextEnded(ctx)
	}
	p := b.newPendingClaim(user, coupon, requestID(ctx))
	own, err := b.add(p)
	switch {
	case err != nil:
		p.err = err
	case own && b.runOwn(ctx, p):
	case !b.wait(ctx, p):
		p.err = contextEnded(ctx)
	}
	return b.release(p)
}

// add queues p. If nothing keeps p from being sent now, add starts a shared call with it instead,
// and returns own = true: the caller must make that call with runOwn.
func (b *batcher) add(p *pendingClaim) (own bool, err error) {
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
	if known {
		b.pushBack(q, p)
		return false, nil
	}
	q = &couponQueue{coupon: p.coupon}
	b.coupons[p.coupon] = q
	if b.shared < b.shares && !b.isApart(p.coupon) {
		p.queue = q
		b.startShared()
		return true, nil
	}
	b.pushBack(q, p)
	b.schedule(q)
	return false, nil
}

// runOwn sends p in a shared call on its caller's goroutine, which saves two goroutine switches. It
// returns false if p is to be sent again in a solo call.
func (b *batcher) runOwn(ctx context.Context, p *pendingClaim) (answered bool) {
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

// wait returns true when p has its outcome. It returns false if ctx ends first and p was removed
// from its queue.
func (b *batcher) wait(ctx context.Context, p *pendingClaim) (answered bool) {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
	}
	if b.leave(p) {
		return false
	}
	<-p.done
	return true
}

// leave removes p from its queue. It returns false if p is in a call, or if an earlier call may
// have committed it.
func (b *batcher) leave(p *pendingClaim) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.queued || p.failed != nil && p.failed.ambiguous() {
		return false
	}
	b.remove(p)
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
	rest := copy(b.ready, b.ready[taken:])
	clear(b.ready[rest:])
	b.ready = b.ready[:rest]
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
	for _, p := range slices.Backward(batch) {
		if p.toSendAgain() {
			b.pushFront(p)
		}
	}
	var q *couponQueue
	answered = batch[:0]
	for _, p := range batch {
		if p.queue != q { // claims of a coupon follow each other
			q = p.queue
			b.schedule(q)
		}
		if !p.queued {
			answered = append(answered, p)
		}
	}
	return answered
}

// schedule decides how the claims of a coupon that has no call in flight are sent. The caller holds
// b.mu.
func (b *batcher) schedule(q *couponQueue) {
	switch {
	case q.first == nil:
		delete(b.coupons, q.coupon)
	case b.mustBeAlone(q):
		b.setAlone(q, true)
		b.soloing++
		b.calls.Add(1)
		go b.runSolo(q)
	default:
		b.ready = append(b.ready, q)
		if b.shared < b.shares {
			b.startShared()
			go b.runShared()
		}
	}
}

// mustBeAlone reports whether the next call of a coupon with pending claims is a solo call: its
// claims come from a shared call, or the coupon was locked not long ago. The caller holds b.mu.
func (b *batcher) mustBeAlone(q *couponQueue) bool {
	return q.first != nil && (q.first.failed != nil || b.isApart(q.coupon))
}

// isApart reports whether a coupon is kept out of shared calls. The caller holds b.mu.
func (b *batcher) isApart(coupon string) bool {
	return len(b.apart) > 0 && time.Now().Before(b.apart[coupon])
}

// keepApart notes how a solo call ended. A coupon that was still locked is kept out of shared calls
// until a solo call finds it free, and for a fifth of the time-out more: a coupon that is locked
// again and again would otherwise delay the others each time. A solo call of a free coupon costs
// little, so the first bound is long; it only keeps the map from growing.
func (b *batcher) keepApart(coupon string, apart bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(b.apart, func(_ string, until time.Time) bool { return now.After(until) })
	if apart {
		b.apart[coupon] = now.Add(60 * b.timeout)
	} else if until, kept := b.apart[coupon]; kept && until.After(now.Add(b.timeout/5)) {
		b.apart[coupon] = now.Add(b.timeout / 5)
	}
}

// runSolo makes solo calls for a coupon until its claims can share a call again.
func (b *batcher) runSolo(q *couponQueue) {
	for b.continueSolo(q) {
		b.waitForSolo(q)
		if batch := b.takeSolo(q); len(batch) > 0 {
			claims := appendClaims(nil, batch)
			ctx, cancel := context.WithDeadline(context.Background(), claims[0].arrived.Add(b.timeout))
			apart := b.sender.sendSolo(ctx, claims)
			cancel()
			b.keepApart(q.coupon, apart)
			answer(batch)
		}
		<-b.solo
	}
}

// continueSolo reports whether a coupon needs another solo call. If not, it schedules the coupon.
func (b *batcher) continueSolo(q *couponQueue) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mustBeAlone(q) {
		b.setAlone(q, true) // it may be locked only now
		return true
	}
	b.setAlone(q, false)
	b.schedule(q)
	b.soloing--
	b.calls.Done()
	return false
}

// waitForSolo waits for a connection for a solo call. Meanwhile it answers claims that were queued
// for too long.
func (b *batcher) waitForSolo(q *couponQueue) {
	for {
		b.mu.Lock()
		next := b.expire(q)
		b.mu.Unlock()
		select {
		case b.solo <- struct{}{}:
			return
		case <-time.After(next):
		}
	}
}

// takeSolo takes up to maxBatch claims of a coupon.
func (b *batcher) takeSolo(q *couponQueue) []*pendingClaim {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.take(q, nil)
}

// startShared and endShared count shared calls. The caller holds b.mu.
func (b *batcher) startShared() {
	b.shared++
	b.calls.Add(1)
}

func (b *batcher) endShared() {
	b.shared--
	b.calls.Done()
}

// load is what a batcher has to do.
type load struct {
	pending int // claims in its queues
	shared  int // shared calls in flight
	alone   int // coupons that are in a solo call, or wait for a connection for one
}

func (b *batcher) load() load {
	b.mu.Lock()
	defer b.mu.Unlock()
	return load{b.pending, b.shared, b.soloing}
}

// busy reports whether a call is in flight.
func (b *batcher) busy() bool {
	l := b.load()
	return l.shared+l.alone > 0
}

// close refuses new claims. Pending claims are sent as before.
func (b *batcher) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}
