package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"
	"github.com/rs/zerolog"
)

// server is one PostgreSQL server that stores coupons: the only one, or a shard behind a proxy.
//
// A server that has lost its synchronous standbys, or that waits for its disk, still answers
// reads, but its commits hang. PostgreSQL does not notice that a client has given up a commit that
// waits for a standby: the session stays. So nothing is sent to a server that is known not to
// answer, and no write to one that is not known to commit:
//
//	healthy        all calls are sent
//	suspect        a write was not answered; reads are sent, writes wait for the probe
//	notCommitting  the probe is answered, but its commit hangs; reads are sent, writes are refused
//	unreachable    the probe is not answered; all calls are refused
//
//	healthy ──a write is not answered──▶ suspect ──the probe commits──▶ healthy
//	                                      ├─its commit hangs─▶ notCommitting ──it commits──▶ healthy
//	                                      └─no answer─▶ unreachable ──an answer──▶ suspect
//	healthy ──a health check of a shard is not answered (proxy.go)──▶ unreachable
//
// A probe runs whenever the server is not healthy (probe.go). There is one at a time, so the
// sessions left behind on the server are those of the writes in flight when it became suspect.
// Other signs make a server suspect as well: a solo call or a creation that waits for a lock in
// vain, because a claim may hold it that cannot commit; a commit that did not wait for its standby;
// a connection that cannot be had in time although the pool is not full.
//
// admit is the only place that refuses a call before it is sent. execute makes the second attempt,
// and outcome.go decides what the failure of the first one proves. (After a lock time-out, which
// proves that nothing was done, a shared call is repeated without the locked coupons: claim.go.)
type server struct {
	timeout time.Duration // Config.ClaimTimeout
	pool    *pgxpool.Pool // for calls; the shards behind a proxy have the same pool
	batcher *batcher
	probe   probe
	metrics *metrics
	log     zerolog.Logger
	sampled zerolog.Logger // for what may happen on each call

	retired    atomic.Bool  // the map of the proxy has changed: another server has its coupons
	defective  atomic.Bool  // a write failed with an error that other writes may meet too (health.go)
	locksUntil atomic.Int64 // shared calls ask for locked coupons first (claim.go); in Unix nanoseconds

	mu      sync.Mutex
	state   serverState
	reason  string        // why the server is not healthy, or may not be; "": it is
	changed chan struct{} // closed when state changes
	logged  bool          // the log says that the server is not healthy
}

// serverState is what is known of a server.
type serverState string

const (
	healthy       serverState = "healthy"
	suspect       serverState = "suspect"
	notCommitting serverState = "not committing"
	unreachable   serverState = "unreachable"
)

// refusedError is why admit refused a call.
type refusedError struct{ reason string }

func (e refusedError) Error() string { return "not sent: " + e.reason }

// callFunc makes one call on a connection.
type callFunc func(context.Context, *pgx.Conn) error

// callKind is what attempt must know about a call.
type callKind struct {
	write     bool // it commits something, or takes locks, which a commit releases
	shared    bool // it waits for a lock only briefly, so that the end of this wait means nothing
	reconnect bool // try to connect until ctx ends, instead of failing at once
}

// execute makes a call, and once more if that fails. If an attempt was made before, failed is its
// failure, and execute makes the second one only. It returns the failure of the first attempt, nil
// if there is none, and an error if neither attempt was answered. An answer after an ambiguous
// first attempt may be that attempt's effect.
func (s *server) execute(ctx context.Context, write bool, failed *failedAttempt, call callFunc) (first *failedAttempt, err error) {
	if failed == nil {
		firstCtx, cancel := firstAttempt(ctx)
		failed = s.attempt(firstCtx, callKind{write: write}, call)
		cancel()
		if failed == nil {
			return nil, nil
		}
	}
	if !write && failed.rejected {
		return failed, readFailed(failed)
	}
	// If the first attempt may have been committed, wait for a server that is restarting, because
	// only a second answer resolves it. If it was not committed, the client can retry as well.
	second := s.attempt(ctx, callKind{write: write, reconnect: write && failed.ambiguous()}, call)
	switch {
	case second == nil:
		return failed, nil
	case write:
		return failed, bothFailed(failed, second)
	}
	return failed, readFailed(second)
}

// attempt makes a call once. It returns nil if the call was answered and its effects are committed.
func (s *server) attempt(ctx context.Context, kind callKind, call callFunc) *failedAttempt {
	conn, err := s.connection(ctx, kind)
	if err != nil {
		return notSent(err)
	}
	defer conn.Release()
	sc := beginCall(conn.Conn())
	err = call(ctx, conn.Conn())
	if err != nil && kind.write && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		s.markSuspect() // before another call uses the connection's place in the pool
	}
	if err == nil && sc.ambiguous {
		err = errNotReplicated
	}
	if err == nil {
		return nil
	}
	failed := classify(err, sc.executed(), sc.mayBeProxy(err))
	switch {
	case !kind.write:
	// While the commit of another instance's claim hangs, the coupon stays locked.
	case failed.lockTimeout && !kind.shared, errors.Is(err, errNotReplicated):
		s.markSuspect()
	case failed.defective:
		s.defective.Store(true)
	}
	return failed
}

// connection returns a connection for a call that may be sent now.
func (s *server) connection(ctx context.Context, kind callKind) (*pgxpool.Conn, error) {
	for {
		if err := s.admit(ctx, kind.write); err != nil {
			return nil, err
		}
		conn, err := s.acquire(ctx, kind.reconnect)
		if err != nil {
			if stat := s.pool.Stat(); errors.Is(err, context.DeadlineExceeded) && stat.AcquiredConns() < stat.MaxConns() {
				s.markSuspect() // neither an idle connection nor a new one was answered
			}
			return nil, err
		}
		if deadline, bounded := ctx.Deadline(); bounded && time.Until(deadline) < s.timeNeeded(kind) {
			conn.Release()
			return nil, fmt.Errorf("%w: the call got its connection too late", ErrOverloaded)
		}
		// The state may have changed while the call waited for its connection, which may even come
		// from a call that was given up.
		if state, _, _ := s.current(); state.admits(kind.write) {
			return conn, nil
		}
		conn.Release()
	}
}

// acquire returns a connection of the pool. With reconnect it tries again until ctx ends.
func (s *server) acquire(ctx context.Context, reconnect bool) (*pgxpool.Conn, error) {
	const maxPause = 250 * time.Millisecond
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, maxPause) {
		conn, err := s.pool.Acquire(ctx)
		if err == nil || !reconnect || errors.Is(err, puddle.ErrClosedPool) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// timeNeeded returns the time without which a call is not sent: enough for the server's own
// time-outs to end a write, because their errors prove that nothing was committed. A call that
// reconnects is sent as long as it can be answered, because its outcome is unknown anyway.
func (s *server) timeNeeded(kind callKind) time.Duration {
	if kind.write && !kind.reconnect {
		return statementTimeout(s.timeout)
	}
	return s.timeout / 100
}

// admit returns nil if a call may be sent now. While the server is suspect a write waits, at most
// until ctx ends.
func (s *server) admit(ctx context.Context, write bool) error {
	state, reason := s.settled(ctx, write)
	if state.admits(write) {
		return nil
	}
	return refusedError{reason}
}

func (st serverState) admits(write bool) bool {
	return st == healthy || !write && st != unreachable
}

// settled waits as long as the server is suspect, unless it admits the call nevertheless, and at
// most until ctx ends. It returns the state and why it is not healthy; "": it is.
func (s *server) settled(ctx context.Context, write bool) (state serverState, reason string) {
	for {
		state, reason, changed := s.current()
		if state != suspect || state.admits(write) || ctx.Err() != nil {
			return state, reason
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// current returns the state and its reason, and a channel that is closed when the state changes.
func (s *server) current() (state serverState, reason string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.reason, s.changed
}

// isHealthy reports whether nothing is known to be wrong.
func (s *server) isHealthy() bool {
	state, _, _ := s.current()
	return state == healthy
}

// refusalReason returns why calls are refused; "": they are not.
func (s *server) refusalReason() string {
	if state, reason, _ := s.current(); state == notCommitting || state == unreachable {
		return reason
	}
	return ""
}

// markSuspect notes that a write was not answered in time, or that there is another sign that
// commits hang.
func (s *server) markSuspect() {
	if s.change(suspect, s.probe.subject+silentReason, healthy) {
		s.startProbe()
	}
}

// markUnreachable notes that a health check was not answered.
func (s *server) markUnreachable(reason string) {
	if s.change(unreachable, reason, healthy) {
		s.startProbe()
	}
}

// record changes the state, whatever it was.
func (s *server) record(to serverState, reason string) {
	s.change(to, reason, healthy, suspect, notCommitting, unreachable)
}

// change changes the state if it is one of from, and reports whether it was. reason is a sentence
// that says what is wrong; for suspect, what may be.
func (s *server) change(to serverState, reason string, from ...serverState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(from, s.state) {
		return false
	}
	s.reason = reason
	if s.state == to {
		return true
	}
	s.state = to
	close(s.changed)
	s.changed = make(chan struct{})
	switch {
	case to == notCommitting, to == unreachable:
		s.log.Warn().Str("state", string(to)).Str("reason", reason).Msg("the server is not healthy: calls are refused")
		s.logged = true
	case to == healthy && s.logged:
		s.log.Info().Msg("the server is healthy again")
		s.logged = false
	}
	return true
}
