package pgstore

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// probeSQL commits a record of the write-ahead log that nobody reads.
const probeSQL = `select pg_catalog.pg_logical_emit_message(true, 'coupond', '')`

// commits tells whether commits come back. A server whose synchronous standbys are
// gone, or whose disk hangs, goes on to answer whatever it can read; so once a call
// that was sent did not come back, Ready commits something before it says that all
// is well. Until then it costs nothing.
type commits struct {
	mu    sync.Mutex
	doubt bool
	probe chan struct{} // closed when the probe under way ends; nil: there is none
	why   error         // of the last probe
}

// doubted notes that a call was sent and not answered in time, or that its commit
// did not wait for the standby.
func (c *commits) doubted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubt = true
}

// underWay returns the probe that waits, if there is one.
func (c *commits) underWay() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probe
}

// begin makes conn the probe's, when there is doubt; nil: there is none.
//
// There is one probe at a time, and it waits as long as the commit does: PostgreSQL
// does not notice that a client has gone who waits for a synchronous standby, so
// each probe given up would leave a session behind.
func (c *commits) begin(closing context.Context, conn *pgxpool.Conn) chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.doubt {
		return nil
	}
	ended := make(chan struct{})
	c.probe = ended
	go func() {
		w := wireOf(conn.Conn())
		_, err := conn.Exec(closing, probeSQL)
		if err == nil && w.inDoubt {
			err = errInDoubt
		}
		conn.Release()
		c.mu.Lock()
		c.probe, c.doubt, c.why = nil, err != nil, err
		c.mu.Unlock()
		close(ended)
	}()
	return ended
}

// await waits for the probe, not longer than ctx.
func (c *commits) await(ctx context.Context, ended chan struct{}) *notReadyError {
	const sentence = "the database answers, but its commits do not come back:" +
		" it waits for a synchronous standby, or for its disk"
	select {
	case <-ended:
	case <-ctx.Done():
		return &notReadyError{sentence, context.Cause(ctx)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return &notReadyError{sentence, c.why}
	}
	return nil
}
