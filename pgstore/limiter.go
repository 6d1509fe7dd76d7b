package pgstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// limiter bounds calls of one kind: how many run, because each needs a connection, and how many
// wait. Calls with the same key run one after the other, so that one that waits for a lock keeps
// those of its key from running, and no others.
type limiter struct {
	slots      chan struct{} // holds one element per running call
	maxWaiting int32
	maxWait    time.Duration
	waiting    atomic.Int32

	mu   sync.Mutex
	keys map[string]chan struct{} // of calls that run or wait for a slot only; closed when they end
}

// newLimiter returns a limiter. A call waits for at most half of timeout, so that it has the other
// half left when it runs.
func newLimiter(running, waiting int, timeout time.Duration) *limiter {
	return &limiter{
		slots: make(chan struct{}, running), maxWaiting: int32(waiting), maxWait: timeout / 2,
		keys: make(map[string]chan struct{}),
	}
}

// enter waits until a call may run. It returns ErrOverloaded if too many calls wait, or if this one
// has waited for too long, and the error of contextEnded if ctx ends first. After nil, the caller
// must call exit with the same key. Calls with the key "" exclude no others.
func (l *limiter) enter(ctx context.Context, key string) (err error) {
	running := l.lockKey(key)
	defer func() {
		if err != nil && running == nil {
			l.unlockKey(key)
		}
	}()
	if running == nil {
		select {
		case l.slots <- struct{}{}:
			return nil
		default:
		}
	}
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > l.maxWaiting {
		return fmt.Errorf("%w: %d calls of this kind are waiting", ErrOverloaded, l.maxWaiting)
	}
	late := time.NewTimer(l.maxWait)
	defer late.Stop()
	for {
		var slot chan<- struct{}
		if running == nil {
			slot = l.slots
		}
		select {
		case <-running:
			running = l.lockKey(key)
		case slot <- struct{}{}:
			return nil
		case <-late.C:
			return fmt.Errorf("%w: the call waited for half of the time-out", ErrOverloaded)
		case <-ctx.Done():
			return contextEnded(ctx)
		}
	}
}

// exit ends a call that enter let run.
func (l *limiter) exit(key string) {
	<-l.slots
	l.unlockKey(key)
}

// lockKey gives the key to the caller and returns nil. If another call has the key, lockKey returns
// a channel that is closed when that call ends.
func (l *limiter) lockKey(key string) (running <-chan struct{}) {
	if key == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, taken := l.keys[key]; taken {
		return other
	}
	l.keys[key] = make(chan struct{})
	return nil
}

// unlockKey gives back the key of a caller that has it.
func (l *limiter) unlockKey(key string) {
	if key == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.keys[key])
	delete(l.keys, key)
}
