package pgstore

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
)

// sharedReads lets callers that ask for the same key at the same time share one read (ADR 0012).
//
// A caller never joins a read that has started, because that read may have looked before the
// caller's own claim was answered. It joins the next read, which starts when the running one has
// ended. So a key has at most two reads: one running and one that collects callers. Nothing is
// cached: a value lives as long as a caller holds it.
//
// A read has a time-out but not the contexts of its callers, so a caller that gives up does not
// fail the others.
type sharedReads[V any] struct {
	read    func(ctx context.Context, key string) (V, error)
	limiter *limiter      // runs the reads of a key one after the other
	timeout time.Duration // of one read

	group singleflight.Group // of the reads that have not started
}

// get returns the value of a read that started after get was called. If ctx ends first, it returns
// the error of contextEnded.
func (r *sharedReads[V]) get(ctx context.Context, key string) (value V, err error) {
	result := r.group.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
		defer cancel()
		if err := r.limiter.enter(ctx, key); err != nil {
			return nil, err
		}
		defer r.limiter.exit(key)
		r.group.Forget(key) // later callers join the next read
		return r.read(ctx, key)
	})
	select {
	case read := <-result:
		if read.Err == nil {
			value, _ = read.Val.(V)
		}
		return value, read.Err
	case <-ctx.Done():
		return value, contextEnded(ctx)
	}
}
