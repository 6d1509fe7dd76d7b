package pgstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// probe is how a server that is not healthy is asked whether it answers and commits.
type probe struct {
	subject    string        // of a sentence about the server
	pool       *pgxpool.Pool // not that of the calls, which may all be waiting for the server
	read       string        // SQL that reads something small
	commit     string        // SQL that commits something without an effect
	args       []any         // of both
	background *background

	// problem returns a sentence that says what an error of read proves about the server; "":
	// nothing.
	problem func(err error) string
}

// The statements that probe a single server. The second one commits a record of the write-ahead
// log.
const (
	probeReadSQL   = `select`
	probeCommitSQL = `select pg_catalog.pg_logical_emit_message(true, 'coupond', '')`
)

// The predicates of sentences about a server.
const (
	silentReason        = " does not answer"
	notCommittingReason = " answers, but its commits do not complete: it waits for a synchronous standby or for its disk"
)

// unreachableAfter is the time without an answer after which a server is unreachable, and the time
// without a commit after which it is notCommitting: 0.2 T.
func unreachableAfter(claim time.Duration) time.Duration { return claim / 5 }

// startProbe probes the server, which was healthy until now, until it is healthy again or belongs
// to no map any more.
func (s *server) startProbe() {
	s.probe.background.start(func(ctx context.Context) {
		const maxPause, maxCommitTimeout = 250 * time.Millisecond, time.Hour
		pause, commitTimeout := 10*time.Millisecond, max(time.Minute, s.timeout)
		began := time.Now()
		for !s.probeOnce(ctx, commitTimeout) && !s.retired.Load() {
			if time.Since(began) > unreachableAfter(s.timeout) { // although each attempt failed at once
				s.change(unreachable, s.probe.subject+silentReason, suspect)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause, commitTimeout = min(2*pause, maxPause), min(2*commitTimeout, maxCommitTimeout)
		}
	})
}

// probeOnce probes the server, and records its state once it is known. It returns true if
// the server is healthy. It waits for an answer for at most ClaimTimeout, because another server
// may take the place of this one, and for the commit for at most commitTimeout: a session that is
// given up while it commits stays on the server.
func (s *server) probeOnce(ctx context.Context, commitTimeout time.Duration) bool {
	readCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var conn *pgxpool.Conn
	err := s.meanwhile(unreachable, s.probe.subject+silentReason, func() (err error) {
		conn, err = s.probe.pool.Acquire(readCtx)
		if sqlState(err) == pgerrcode.TooManyConnections {
			conn, err = s.pool.Acquire(readCtx) // one of those that calls use
		}
		if err == nil {
			_, err = conn.Exec(readCtx, s.probe.read, s.probe.args...)
		}
		return err
	})
	if conn != nil {
		defer conn.Release()
	}
	if err != nil {
		if reason := s.probe.problem(err); reason != "" && ctx.Err() == nil {
			s.record(unreachable, reason)
		}
		return false
	}

	hangs := s.probe.subject + notCommittingReason
	s.change(suspect, hangs, unreachable, suspect)
	s.change(notCommitting, hangs, notCommitting)
	commitCtx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err = s.meanwhile(notCommitting, hangs, func() error {
		sc := beginCall(conn.Conn())
		_, err := conn.Exec(commitCtx, s.probe.commit, s.probe.args...)
		if err == nil && sc.ambiguous {
			err = errNotReplicated
		}
		return err
	})
	switch {
	case isNotInstalled(sqlState(err)):
		s.log.Warn().Err(err).Msg("commits cannot be probed: grant the privilege, or run coupond migrate")
		err = nil
	case sqlState(err) != "":
		hangs = s.probe.subject + " answers, but cannot commit: " + callProblem(err)
	}
	if err != nil {
		s.record(notCommitting, hangs)
		return false
	}
	s.record(healthy, "")
	return true
}

// meanwhile runs f. If f takes longer than unreachableAfter, it changes the state before f has
// ended.
func (s *server) meanwhile(late serverState, reason string, f func() error) error {
	changed := make(chan struct{})
	timer := time.AfterFunc(unreachableAfter(s.timeout), func() {
		s.record(late, reason)
		close(changed)
	})
	err := f()
	if !timer.Stop() {
		<-changed // the state does not change after f has ended
	}
	return err
}

// singleProblem is the problem of a probe of a single server.
func singleProblem(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "the database" + silentReason
	}
	if _, connecting := errors.AsType[*pgconn.ConnectError](err); !connecting && sqlState(err) != "" {
		return callProblem(err)
	}
	return ConnectProblem(err)
}
