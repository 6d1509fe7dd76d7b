package pgstore

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// limiter bounds calls of one kind: how many run, because each needs a connection, and how many
// wait. Calls with the same key run one after the other, so that one that waits for a lock keeps
// those of its key from running, and no others.
type limiter struct {
	slots      chan struct{} // holds one element per running call
	maxWaiting int
	maxWait    time.Duration

	mu      sync.Mutex
	waiting int
	keys    map[string]chan struct{} // of running calls; closed when the call ends
}

// newLimiter returns a limiter. A call waits for at most half of timeout, so that it has the other
// half left when it runs.
func newLimiter(running, waiting int, timeout time.Duration) *limiter {
	return &limiter{
		slots: make(chan struct{}, running), maxWaiting: waiting, maxWait: timeout / 2,
		keys: make(map[string]chan struct{}),
	}
}

// enter waits until a call may run. It returns ErrOverloaded if too many calls wait, or if this one
// has waited for too long, and the error of contextEnded if ctx ends first. After nil, the caller
// must call exit with the same key. Calls with the key "" exclude no others.
func (l *limiter) enter(ctx context.Context, key string) error {
	if l.tryEnter(key) {
		return nil
	}
	if err := l.queue(); err != nil {
		return err
	}
	defer l.unqueue()
	late := time.NewTimer(l.maxWait)
	defer late.Stop()
	for {
		running := l.lockKey(key)
		var slot chan<- struct{}
		if running == nil {
			slot = l.slots
		}
		select {
		case <-running:
			continue
		case slot <- struct{}{}:
			return nil
		case <-late.C:
			l.unlockKey(key, running == nil)
			return fmt.Errorf("%w: the call waited for half of the time-out", ErrOverloaded)
		case <-ctx.Done():
			l.unlockKey(key, running == nil)
			return contextEnded(ctx)
		}
	}
}

// tryEnter is enter for a call that need not wait. Otherwise it returns false.
func (l *limiter) tryEnter(key string) bool {
	if l.lockKey(key) != nil {
		return false
	}
	select {
	case l.slots <- struct{}{}:
		return true
	default:
		l.unlockKey(key, true)
		return false
	}
}

// exit ends a call that enter let run.
func (l *limiter) exit(key string) {
	<-l.slots
	l.unlockKey(key, true)
}

// queue counts a call that waits.
func (l *limiter) queue() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting >= l.maxWaiting {
		return fmt.Errorf("%w: %d calls of this kind are waiting", ErrOverloaded, l.waiting)
	}
	l.waiting++
	return nil
}

func (l *limiter) unqueue() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
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
func (l *limiter) unlockKey(key string, has bool) {
	if key == "" || !has {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.keys[key])
	delete(l.keys, key)
}
