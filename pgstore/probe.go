package pgstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// inquirySQL commits a record of the write-ahead log that nobody reads.
const inquirySQL = `select pg_catalog.pg_logical_emit_message(true, 'coupond', '')`

// commits tells whether commits come back. A server whose synchronous standbys are
// gone, or whose disk hangs, goes on to answer whatever it can read; so once a call
// that was sent did not come back, something is committed that harms nobody. Until
// that has come back, Ready does not say that all is well, and no call is sent that
// commits anything. Without doubt all of it costs a look. Behind a proxy all this is each
// shard's own affair (shards.go).
//
// PostgreSQL does not notice that a client has gone who waits for a synchronous
// standby: each call given up leaves a session behind, and they would take up
// max_connections (70 in 10 s, by 40 clients of a pool of 8). So there is one inquiry
// at a time, which waits as long as its commit does, and what is left behind is what
// was under way when the doubt began: a session for each connection of the pool.
type commits struct {
	mu      sync.Mutex
	doubt   bool
	inquiry *inquiry // under way; nil: there is none

	closing context.Context
	close   context.CancelFunc
}

// inquiry finds out whether commits come back.
type inquiry struct {
	began time.Time
	ended chan struct{} // closed when it has ended

	// Of a single server:
	sent atomic.Bool    // the database answers, and is committing
	why  *notReadyError // what it came to, when it has ended
}

// errNotSent is why a call is not sent while commits do not come back.
var errNotSent = errors.New("not sent: commits do not come back")

// doubted notes that a call for coupon was sent and not answered in time, or that its
// commit did not wait for the standby, and has that looked into; behind a proxy, on the
// shard that has the coupon (shards.go).
func (s *Store) doubted(coupon string) {
	if s.shardDoubted(coupon) {
		return
	}
	s.commits.mu.Lock()
	s.commits.doubt = true
	s.commits.mu.Unlock()
	s.inquire()
}

// inquire returns the inquiry under way, which it begins when there is doubt; nil:
// there is none.
func (s *Store) inquire() *inquiry {
	c := &s.commits
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inquiry != nil || !c.doubt {
		return c.inquiry
	}
	i := &inquiry{began: time.Now(), ended: make(chan struct{})}
	c.inquiry = i
	go func() {
		why := s.commitSomething(i)
		c.mu.Lock()
		c.inquiry, c.doubt, i.why = nil, why != nil, why
		c.mu.Unlock()
		close(i.ended)
	}()
	return i
}

// commitsDoNotComeBack is said of the database, or of a shard.
const commitsDoNotComeBack = "answers, but its commits do not come back: it waits for a synchronous standby, or for its disk"

// commitSomething is the work of an inquiry. A server that does not even answer is
// given up soon, as another one may do by then; one that commits is waited for.
func (s *Store) commitSomething(i *inquiry) *notReadyError {
	ctx, cancel := context.WithTimeout(s.commits.closing, readyTimeout)
	defer cancel()
	conn, err := s.watch.Acquire(ctx)
	if err != nil {
		return &notReadyError{whyNoConnection(err), err}
	}
	defer conn.Release()
	if why := s.whyNotReadable(ctx, conn); why != nil {
		return why
	}
	i.sent.Store(true)
	if err := commitOn(s.commits.closing, conn, inquirySQL); err != nil {
		return &notReadyError{"the database " + commitsDoNotComeBack, err}
	}
	return nil
}

// commitOn makes a call that commits; nil: the commit is all that it should be.
func commitOn(ctx context.Context, conn *pgxpool.Conn, sql string, args ...any) error {
	w := wireOf(conn.Conn())
	_, err := conn.Exec(ctx, sql, args...)
	if err == nil && w.inDoubt {
		err = errInDoubt
	}
	return err
}

// await waits for what the inquiry comes to, not longer than ctx.
func (i *inquiry) await(ctx context.Context) *notReadyError {
	select {
	case <-i.ended:
		return i.why
	case <-ctx.Done():
	}
	if i.sent.Load() {
		return &notReadyError{"the database " + commitsDoNotComeBack, context.Cause(ctx)}
	}
	return &notReadyError{"the database does not answer", context.Cause(ctx)}
}

// commit is try for a call that commits something, and has it looked into when that
// does not come back. While an inquiry is under way it waits; when that takes too
// long, the call is not sent.
func (s *Store) commit(ctx context.Context, coupon string, patience bool, call call) *failure {
	if err := s.knowPeer(ctx); err != nil { // the sessions of a proxy are of a kind of their own (behindProxy)
		return notSent(err)
	}
	for {
		if away := s.lanes.whyAway(coupon); away != nil {
			return notSent(away)
		}
		if i := s.underWay(coupon); i != nil && !i.over(ctx) {
			return notSent(errNotSent)
		}
		f := s.try(ctx, coupon, patience, func(ctx context.Context, conn *pgx.Conn) error {
			// One that began while we waited for the connection: perhaps that of a call given up.
			if s.underWay(coupon) != nil || s.lanes.whyAway(coupon) != nil {
				return errNotSent
			}
			err := call(ctx, conn)
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				s.doubted(coupon) // before its connection's place in the pool is somebody else's
			}
			return err
		})
		switch {
		case f == nil:
			return nil
		case errors.Is(f.cause, errNotSent):
			continue
		// A coupon stays locked while the commit of another instance's claim hangs.
		case sqlState(f.cause) == pgerrcode.LockNotAvailable, errors.Is(f.cause, errInDoubt):
			s.doubted(coupon)
		}
		return f
	}
}

// over waits until the inquiry has ended, as long as it may keep calls waiting; false:
// that was not long enough.
func (i *inquiry) over(ctx context.Context) bool {
	bounded, cancel := context.WithDeadline(ctx, i.began.Add(readyTimeout))
	defer cancel()
	select {
	case <-i.ended:
		return true
	case <-bounded.Done():
		return false
	}
}

// underWay is the inquiry under way on the server that has the coupon; nil: there is none.
func (s *Store) underWay(coupon string) *inquiry {
	if i := s.shards.underWay(coupon); i != nil {
		return i
	}
	return s.commits.underWay()
}

func (c *commits) underWay() *inquiry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inquiry
}
