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

	// problem returns a sentence that says what an error of read proves about the server; "": nothing.
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

// startProbe probes the server until it is healthy, or belongs to no map any more. The caller
// holds s.mu, and the server was healthy until now.
func (s *server) startProbe() {
	s.probe.background.start(func(ctx context.Context) {
		const maxPause, maxPatience = 250 * time.Millisecond, time.Hour
		pause, patience := 10*time.Millisecond, max(time.Minute, s.timeout)
		began := time.Now()
		for !s.probeOnce(ctx, patience) && !s.retired.Load() {
			if time.Since(began) > unreachableAfter(s.timeout) {
				s.giveUp() // although each attempt failed at once
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause, patience = min(2*pause, maxPause), min(2*patience, maxPatience)
		}
	})
}

// probeOnce probes the server, and records its state as soon as it is known. It returns true if
// the server is healthy. It waits for an answer for at most ClaimTimeout, because another server
// may take the place of this one, and for the commit for at most patience: a session that is given
// up while it commits stays on the server.
func (s *server) probeOnce(ctx context.Context, patience time.Duration) bool {
	readCtx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var conn *pgxpool.Conn
	err := s.meanwhile(unreachable, s.probe.subject+silentReason, func() (err error) {
		if conn, err = s.probeConnection(readCtx); err != nil {
			return err
		}
		_, err = conn.Exec(readCtx, s.probe.read, s.probe.args...)
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
	s.recordAnswer(hangs)
	commitCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = s.meanwhile(notCommitting, hangs, func() error {
		return execCommit(commitCtx, conn, s.probe.commit, s.probe.args...)
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

// probeConnection returns a connection for a probe. If the server has none left, it takes one of
// those that calls use.
func (s *server) probeConnection(ctx context.Context) (*pgxpool.Conn, error) {
	conn, err := s.probe.pool.Acquire(ctx)
	if sqlState(err) == pgerrcode.TooManyConnections {
		return s.pool.Acquire(ctx)
	}
	return conn, err
}

// meanwhile runs f. If f takes longer than unreachableAfter, it changes the state before f has
// ended.
func (s *server) meanwhile(late state, reason string, f func() error) error {
	ended := false
	timer := time.AfterFunc(unreachableAfter(s.timeout), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !ended {
			s.setState(late, reason)
		}
	})
	err := f()
	timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	ended = true
	return err
}

// record records a result of the probe.
func (s *server) record(to state, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setState(to, reason)
}

// giveUp records that a suspect server is unreachable.
func (s *server) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == suspect {
		s.setState(unreachable, s.probe.subject+silentReason)
	}
}

// recordAnswer records that the server answers. reason is what may be wrong nevertheless.
func (s *server) recordAnswer(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == unreachable {
		s.setState(suspect, reason)
	}
	s.reason = reason
}

// execCommit executes SQL that commits. It returns errNotReplicated if the commit did not wait for
// the synchronous standby.
func execCommit(ctx context.Context, conn *pgxpool.Conn, sql string, args ...any) error {
	sc := beginCall(conn.Conn())
	_, err := conn.Exec(ctx, sql, args...)
	if err == nil && sc.ambiguous {
		err = errNotReplicated
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
