package pgstore

import (
	"fmt"
	"time"
)

// couponQueue holds the pending claims of one coupon, in the order of their arrival. It is a linked
// list, so that a caller can leave from the middle of a long one.
type couponQueue struct {
	coupon      string
	locked      bool // it is alone because it is locked
	first, last *pendingClaim
	length      int
}

// pendingClaim is a claim that waits for its outcome.
type pendingClaim struct {
	claim
	queue      *couponQueue
	queued     bool
	prev, next *pendingClaim
	done       chan struct{} // signalled once, when the outcome is set
}

// newPendingClaim returns a claim that arrives now.
func (b *batcher) newPendingClaim(user, coupon, requestID string) *pendingClaim {
	p, reused := b.reuse.Get().(*pendingClaim)
	if !reused {
		p = &pendingClaim{done: make(chan struct{}, 1)}
	}
	p.claim = claim{user: user, coupon: coupon, requestID: requestID, arrived: time.Now()}
	return p
}

// release returns the outcome of p, which must not be used afterwards.
func (b *batcher) release(p *pendingClaim) (ClaimStatus, error) {
	status, err := p.status, p.err
	p.claim, p.queue = claim{}, nil
	b.reuse.Put(p)
	return status, err
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

// The methods below are for callers that hold b.mu.

// pushBack adds p to the end of a queue.
func (b *batcher) pushBack(q *couponQueue, p *pendingClaim) { b.insert(q, p, q.last, nil) }

// pushFront puts p back to the front of its queue.
func (b *batcher) pushFront(p *pendingClaim) { b.insert(p.queue, p, nil, p.queue.first) }

// insert adds p to a queue, between two neighbours; nil: an end of the queue.
func (b *batcher) insert(q *couponQueue, p, prev, next *pendingClaim) {
	p.queue, p.queued, p.prev, p.next = q, true, prev, next
	if prev == nil {
		q.first = p
	} else {
		prev.next = p
	}
	if next == nil {
		q.last = p
	} else {
		next.prev = p
	}
	b.count(q, +1)
}

// remove takes p out of its queue.
func (b *batcher) remove(p *pendingClaim) {
	q := p.queue
	if p.prev == nil {
		q.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		q.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.queued, p.prev, p.next = false, nil, nil
	b.count(q, -1)
}

// count notes that n claims were added to a queue.
func (b *batcher) count(q *couponQueue, n int) {
	q.length += n
	b.pending += n
	if q.locked {
		b.pendingLocked += n
	}
}

// setAlone notes whether a coupon is alone. If it is because the coupon is locked, its claims and
// those of the other locked coupons must leave room for the others: if there are too many, setAlone
// answers those that arrived last.
func (b *batcher) setAlone(q *couponQueue, alone bool) {
	locked := alone && (b.isApart(q.coupon) || q.first.failed != nil && q.first.failed.lockTimeout)
	n := q.length
	b.count(q, -n)
	q.locked = locked
	b.count(q, n)
	if !locked {
		return
	}
	for p := q.last; b.pendingLocked > b.lockedLimit() && p != nil && p.failed == nil; p = q.last {
		b.reject(p, errTooManyLocked)
	}
}

// errTooManyLocked answers claims of locked coupons.
var errTooManyLocked = fmt.Errorf("%w: too many claims are pending for coupons that are locked", ErrOverloaded)

// lockedLimit is the largest number of pending claims of coupons that are locked.
func (b *batcher) lockedLimit() int { return max(1, b.limit/2) }

// reject takes p out of its queue and answers it with err.
func (b *batcher) reject(p *pendingClaim, err error) {
	b.remove(p)
	p.err = err
	p.done <- struct{}{}
}

// take moves claims of a coupon to batch, up to a length of maxBatch. Claims that come from a
// failed call are not mixed with others, because their outcomes are judged by that failure.
func (b *batcher) take(q *couponQueue, batch []*pendingClaim) []*pendingClaim {
	b.expire(q)
	for p := q.first; p != nil && len(batch) < maxBatch; p = q.first {
		if n := len(batch); n > 0 && batch[n-1].failed != p.failed {
			break
		}
		b.remove(p)
		batch = append(batch, p)
	}
	return batch
}

// expire answers the claims of a coupon that were queued for too long, and returns how long the
// next one may stay queued.
func (b *batcher) expire(q *couponQueue) time.Duration {
	now, next := time.Now(), b.timeout/2 // a claim that arrives meanwhile may stay as long
	for p := q.first; p != nil; {
		this := p
		p = p.next
		left := this.arrived.Add(b.queueTime(this)).Sub(now)
		if left < 0 {
			b.reject(this, this.expired())
			continue
		}
		next = min(next, left+1)
		if this.failed == nil {
			break // the others arrived later
		}
	}
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
