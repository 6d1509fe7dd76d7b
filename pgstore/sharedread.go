package pgstore

import (
	"context"
	"sync"
	"time"
)

// sharedReads lets callers that ask for the same key at the same time share one read (ADR 0012).
//
// A caller never joins a read that has started, because that read may have looked before the
// caller's own claim was answered. It joins the next read, which starts when the running one has
// ended. So a key has at most two reads: one running and one that collects callers. Nothing is
// cached: a value lives as long as a caller holds it.
//
// A read runs in its own goroutine, with a time-out but without its callers' contexts, so a caller
// that gives up does not fail the others. A read that all of its callers have given up before it
// starts is not started.
type sharedReads[V any] struct {
	read    func(ctx context.Context, key string) (V, error)
	timeout time.Duration // of one read

	mu      sync.Mutex
	running map[string]*sharedRead[V]
}

// sharedRead is one read. Its value and err are set when done is closed.
type sharedRead[V any] struct {
	done  chan struct{}
	value V
	err   error

	waiting int            // callers that have not given up; guarded by sharedReads.mu
	next    *sharedRead[V] // collects callers while this one is running; guarded by sharedReads.mu
}

// get returns the value of a read that started after get was called. If ctx ends first, it returns
// the error of contextEnded.
func (r *sharedReads[V]) get(ctx context.Context, key string) (V, error) {
	read := r.join(key)
	select {
	case <-read.done:
		return read.value, read.err
	case <-ctx.Done():
	}
	r.mu.Lock()
	read.waiting--
	r.mu.Unlock()
	var zero V
	return zero, contextEnded(ctx)
}

// join adds the caller to a read that has not started. If no read is running, it starts one.
func (r *sharedReads[V]) join(key string) *sharedRead[V] {
	r.mu.Lock()
	defer r.mu.Unlock()

	current, ok := r.running[key]
	if !ok {
		first := &sharedRead[V]{done: make(chan struct{}), waiting: 1}
		if r.running == nil {
			r.running = make(map[string]*sharedRead[V])
		}
		r.running[key] = first
		go r.run(key, first)
		return first
	}
	if current.next == nil {
		current.next = &sharedRead[V]{done: make(chan struct{})}
	}
	current.next.waiting++
	return current.next
}

// run performs the read, then the ones that collected callers meanwhile.
func (r *sharedReads[V]) run(key string, current *sharedRead[V]) {
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
			r.running[key] = next
		} else {
			delete(r.running, key)
		}
		r.mu.Unlock()

		close(current.done)
		current = next
	}
}
