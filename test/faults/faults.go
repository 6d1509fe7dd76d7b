package main

import (
	"context"
	"math/rand/v2"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/faultproxy"
)

// layer is the part of the system that a fault affects. Two faults of one layer are never active
// together.
type layer int

const (
	postgresLayer layer = iota
	networkLayer        // between the service and PostgreSQL
	serviceLayer
	clientLayer // comes alone
)

// fault is one kind of fault.
type fault struct {
	name  string
	layer layer
	// allowed are the answers that the fault may cause besides the expected ones. All other answers
	// are violations unless another active fault allows them. No fault allows a 500 or a client's
	// time-out, or answers that contradict each other or the stored state.
	allowed []load.Answer
	// inject injects the fault and has undone it when it returns. Its error is a failure of the test
	// itself, or a violation that no answer shows.
	inject func(ctx context.Context, e *environment, random *rand.Rand) error
	// disturb is set instead of inject for the faults of clientLayer: load, or a lock, that must not
	// slow down other clients. It calls measure when the fault has its full effect, and has undone it
	// when it returns. Meanwhile the claims of other clients may take at most slowdown times as long
	// as before.
	disturb  func(ctx context.Context, t *faultTest, random *rand.Rand, measure func() error) error
	slowdown float64
}

func (f *fault) String() string { return f.name }

var (
	notExecuted = []load.Answer{load.Unavailable, load.Overloaded}
	// A call that was in flight may have committed, and the retry may fail as well. No answer proves
	// nothing. The HTTP connections are not affected, so every request gets an answer.
	ambiguous = append(notExecuted, load.OutcomeUnknown)
)

const walDiskFull = "WAL disk full"

func allFaults() []*fault {
	return []*fault{
		{name: "backends terminated", layer: postgresLayer, allowed: ambiguous, inject: terminateBackends},
		{name: "PostgreSQL crashed", layer: postgresLayer, allowed: ambiguous, inject: crashPostgres},
		// PostgreSQL cancels a statement that waits too long, which proves that it is rolled back.
		{name: "row locked by a DBA", layer: postgresLayer, allowed: notExecuted, inject: lockRow},
		// Clients do not notice: create or replace keeps every session and every plan.
		{name: "functions reinstalled", layer: postgresLayer, inject: reinstallFunctions},
		// A commit without room for its WAL ends in a panic instead of an answer.
		{name: walDiskFull, layer: postgresLayer, allowed: ambiguous, inject: fillWAL},

		{name: "connections cut", layer: networkLayer, allowed: ambiguous, inject: cutConnections},
		{name: "PostgreSQL unreachable", layer: networkLayer, allowed: ambiguous, inject: makeUnreachable},
		// A call that timed out before PostgreSQL received it may be executed later.
		{name: "connections slow", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.Pass, 1, time.Second)},
		{name: "connections stalled", layer: networkLayer, allowed: ambiguous, inject: stallConnections},
		{name: "calls dropped", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.Stall, 20, 0)},

		// The clients of the instance lose their connections; those that cannot connect use the other
		// one, whose answers stay right: a 503 would not be.
		{name: "instance killed", layer: serviceLayer, allowed: []load.Answer{load.Cut, load.NotSent}, inject: killInstance},
		// Clients do not notice: every accepted request is answered, and each instance exits with 0.
		{name: "rolling restart", layer: serviceLayer, inject: restartInstances},

		// Claims on a locked coupon wait until PostgreSQL cancels the statement, others do not wait.
		{name: "coupons locked for long", layer: clientLayer, allowed: notExecuted, disturb: lockCoupons, slowdown: 5},
		// Creations beyond a bound are refused. Claims always find a connection to PostgreSQL.
		{name: "creation storm", layer: clientLayer, allowed: notExecuted, disturb: createMany, slowdown: 10},
		// Reads beyond a bound are refused. An answer that is not read costs a bounded amount of memory.
		{name: "slow readers", layer: clientLayer, allowed: []load.Answer{load.Overloaded}, disturb: readSlowly, slowdown: 10},
		// All of them share one recent answer, which is 200.
		{name: "health storm", layer: clientLayer, disturb: askHealth, slowdown: 10},

		// The service cannot distinguish these. It gives the answer of the retry if that is exact, and
		// OUTCOME_UNKNOWN if it may be the effect of the first attempt.
		{name: "cut before the call", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutBeforeCall, 2, 0)},
		{name: "cut before the commit", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutBeforeCommit, 2, 0)},
		{name: "cut after an answer without a commit", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutAnsweredBeforeCommit, 2, 0)},
		{name: "cut during the call", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutDuring, 2, 0)},
		{name: "cut after the commit", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutAfterCommit, 2, 0)},
		{name: "cut after the answer and the commit", layer: networkLayer, allowed: ambiguous, inject: injectIntoCalls(faultproxy.CutAnsweredAfterCommit, 2, 0)},
	}
}
