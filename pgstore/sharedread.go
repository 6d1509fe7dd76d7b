package pgstore

import (
	"context"
	"sync"
	"time"
)

// reads lets callers who ask for the same key at the same time share one read.
//
// A caller never joins a read that has begun: it may have looked before the
// caller's own claim was answered. He joins the next one, which begins when the one
// under way has ended. So a key has at most two rides: one under way, and one that
// gathers callers. Whoever finds no ride under way starts one; it takes the
// gathered rides after it along, and ends with the last of them. Nothing is kept:
// a value lives as long as a caller has it.
//
// A ride belongs to nobody: it runs in a goroutine of its own, with a time-out but
// without its callers' contexts, so that one who leaves fails no other. A ride that
// all have left before it began is not begun.
type reads[V any] struct {
	read    func(ctx context.Context, key string) (V, error)
	timeout time.Duration // of one read

	mu       sync.Mutex
	underWay map[string]*ride[V]
}

// ride is one read and its outcome, which is there when done is closed.
type ride[V any] struct {
	done  chan struct{}
	value V
	err   error

	waiting int      // callers who have not left; under mu
	next    *ride[V] // gathers those who come while this one is under way; under mu
}

// join returns the value of a read that began after join was called. It waits
// until ctx ends, and then has gaveUp's error.
func (r *reads[V]) join(ctx context.Context, key string) (V, error) {
	mine := r.board(key)
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
	}
	r.mu.Lock()
	mine.waiting--
	r.mu.Unlock()
	var none V
	return none, gaveUp(ctx)
}

// board finds the caller a place in a ride that has not begun.
func (r *reads[V]) board(key string) *ride[V] {
	r.mu.Lock()
	defer r.mu.Unlock()

	current, busy := r.underWay[key]
	if !busy {
		mine := &ride[V]{done: make(chan struct{}), waiting: 1}
		if r.underWay == nil {
			r.underWay = make(map[string]*ride[V])
		}
		r.underWay[key] = mine
		go r.run(key, mine)
		return mine
	}
	if current.next == nil {
		current.next = &ride[V]{done: make(chan struct{})}
	}
	current.next.waiting++
	return current.next
}

// run makes the ride, and those that gather meanwhile.
func (r *reads[V]) run(key string, current *ride[V]) {
	for current != nil {
		ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
		current.value, current.err = r.read(ctx, key)
		cancel()

		r.mu.Lock()
		next := current.next
		if next != nil && next.waiting == 0 {
			next = nil
		}
		if next != nil {
			r.underWay[key] = next
		} else {
			delete(r.underWay, key)
		}
		r.mu.Unlock()

		close(current.done)
		current = next
	}
}

// encoding is what a Coupon carries for those who share it.
type encoding struct {
	once sync.Once
	body []byte
}

// EncodeOnce returns what encode made of the coupon: encode is called for the first
// of those who share the coupon, and all of them get its result, which is not to be
// changed. It is meant for coupons that are Whole.
func (c *Coupon) EncodeOnce(encode func(*Coupon) []byte) []byte {
	c.encoded.once.Do(func() { c.encoded.body = encode(c) })
	return c.encoded.body
}

// Whole returns the user ids in claim order when they are all at hand: when the
// coupon has at most a page of them. They are not to be changed. A bigger coupon is
// read by each reader for himself, by Claimers.
func (c *Coupon) Whole() (claimers []string, ok bool) {
	return c.claimers, c.whole
}
