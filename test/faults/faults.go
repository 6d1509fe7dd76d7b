package main

import (
	"context"
	"math/rand/v2"
	"regexp"
	"slices"

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
	clientLayer // load, or a lock, that must not slow down other clients
)

// fault is one kind of fault.
type fault struct {
	name  string
	layer layer
	// action describes what inject does.
	action string
	// allowed are the answers that the fault may cause besides the conclusive ones (see isConclusive).
	// All other answers are violations unless another active fault allows them. No fault allows a 500
	// or a client's time-out, or answers that contradict each other or the stored state.
	allowed []load.Answer
	// reason says why these answers and no others.
	reason string
	// inject injects the fault and has undone it when it returns. Its error is a failure of the test
	// itself, or a violation that no answer shows.
	inject func(ctx context.Context, e *environment, random *rand.Rand) error
	// start is set instead of inject for the faults of clientLayer. It returns when the fault has its
	// full effect. undo, called after ctx has ended, ends it. Such a fault comes alone, and meanwhile
	// the claims of other clients may take at most slowdown times as long as before.
	start    func(ctx context.Context, t *faultTest, random *rand.Rand) (undo func() error, err error)
	slowdown float64
}

// What faults allow.
var (
	notExecuted = []load.Answer{load.Unavailable, load.Overloaded}
	ambiguous   = []load.Answer{load.Unavailable, load.Overloaded, load.OutcomeUnknown}
)

const connectionsLost = "A call in flight may have committed, and the retry may fail as well: UNAVAILABLE, OVERLOADED or OUTCOME_UNKNOWN. " +
	"The HTTP connections are not affected, so every request gets an answer."

const walDiskFull = "WAL disk full"

func allFaults() []*fault {
	faults := []*fault{
		{
			name: "backends terminated", layer: postgresLayer,
			action:  "pg_terminate_backend for every session of the service, up to eight times in a row",
			allowed: ambiguous,
			reason:  connectionsLost,
			inject:  terminateBackends,
		},
		{
			name: "PostgreSQL crashed", layer: postgresLayer,
			action:  "stopped with -m immediate, and started up to three seconds later, with crash recovery",
			allowed: ambiguous,
			reason:  connectionsLost,
			inject:  crashPostgres,
		},
		{
			name: "row locked by a DBA", layer: postgresLayer,
			action:  "select … for update of the coupon on sale, held for up to four seconds",
			allowed: notExecuted,
			reason: "PostgreSQL cancels a statement that waits too long, which proves that it is rolled back: UNAVAILABLE, or OVERLOADED " +
				"for claims that wait behind it. Never OUTCOME_UNKNOWN, and no connection is lost.",
			inject: lockRow,
		},
		{
			name: "functions reinstalled", layer: postgresLayer,
			action: "coupond migrate, five to twenty times in a row",
			reason: "Clients must not notice: create or replace keeps every session and every plan.",
			inject: reinstallFunctions,
		},
		{
			name: walDiskFull, layer: postgresLayer,
			action: "the file system of pg_wal (a small one in memory, mounted for this test) filled completely until PostgreSQL panics, and for " +
				"some time after; then freed, and PostgreSQL started if it exited",
			allowed: ambiguous,
			reason: "A commit without room for its WAL ends in a panic instead of an answer: the claim may be on disk or not. " + connectionsLost +
				" Earlier answers stay true.",
			inject: fillWAL,
		},
		{
			name: "connections cut", layer: networkLayer,
			action:  "all connections between service and PostgreSQL reset at once, up to six times in a row",
			allowed: ambiguous,
			reason:  connectionsLost,
			inject:  cutConnections,
		},
		{
			name: "PostgreSQL unreachable", layer: networkLayer,
			action:  "all connections reset, and new ones as soon as they are made, for up to three seconds",
			allowed: ambiguous,
			reason: "UNAVAILABLE for most claims: without a connection nothing was sent. OUTCOME_UNKNOWN for the calls that were in " +
				"flight when it began.",
			inject: makeUnreachable,
		},
		{
			name: "connections slow", layer: networkLayer,
			action:  "one call in four delayed by up to a second on its way to PostgreSQL",
			allowed: ambiguous,
			reason:  "The outcome of a call that timed out before PostgreSQL received it is unknown. It may be executed later.",
			inject:  slowConnections,
		},
		{
			name: "connections stalled", layer: networkLayer,
			action:  "no byte in either direction for up to five seconds, longer than CLAIM_TIMEOUT; then everything held back is forwarded",
			allowed: ambiguous,
			reason: "No answer proves nothing, so OUTCOME_UNKNOWN. Calls that timed out are executed in the end, which must not contradict " +
				"answers given since.",
			inject: stallConnections,
		},
		{
			name: "calls dropped", layer: networkLayer,
			action:  "one call in twenty never reaches PostgreSQL, and its connection stays open and silent until the service closes it",
			allowed: ambiguous,
			reason:  "As with stalled connections.",
			inject:  injectIntoCalls(faultproxy.Stall, 20),
		},
		{
			name: "instance killed", layer: serviceLayer,
			action:  "SIGKILL for one instance, or for both, and a start up to two seconds later",
			allowed: []load.Answer{load.Cut, load.NotSent},
			reason: "The clients of the instance lose their connections; those that cannot connect use the other one. Other answers stay right: " +
				"a 503 of the other instance would not be.",
			inject: killInstance,
		},
		{
			name: "rolling restart", layer: serviceLayer,
			action: "SIGTERM for one instance, a start when it has exited, and the same for the other",
			reason: "Clients must not notice: every accepted request is answered, and clients that cannot connect use the other " +
				"instance. Each instance must exit with status 0.",
			inject: restartInstances,
		},
	}
	faults = append(faults, clientFaults()...)
	for _, cut := range []struct {
		name, action string
		kind         faultproxy.Fault
	}{
		{"cut before the call", "PostgreSQL never receives the call", faultproxy.CutBeforeCall},
		{"cut before the commit", "PostgreSQL executes the call and rolls it back", faultproxy.CutBeforeCommit},
		{"cut after an answer without a commit", "the service receives the whole answer, and PostgreSQL rolls the call back", faultproxy.CutAnsweredBeforeCommit},
		{"cut during the call", "PostgreSQL receives the whole call; whether it commits is open", faultproxy.CutDuring},
		{"cut after the commit", "PostgreSQL commits, and the service receives nothing", faultproxy.CutAfterCommit},
		{"cut after the answer and the commit", "PostgreSQL commits, and the service receives the answer but not its end", faultproxy.CutAnsweredAfterCommit},
	} {
		faults = append(faults, &fault{
			name: cut.name, layer: networkLayer,
			action:  "the connection reset in up to half of all calls: " + cut.action,
			allowed: ambiguous,
			reason: "The service cannot distinguish these cuts. It gives the answer of the retry if that is exact, and OUTCOME_UNKNOWN " +
				"if it may be the effect of the first attempt.",
			inject: injectIntoCalls(cut.kind, 2),
		})
	}
	return faults
}

// availableFaults returns the faults that match only and can be injected on this machine, and
// describes those that match and cannot.
func availableFaults(e *environment, only *regexp.Regexp) (faults []*fault, leftOut []string) {
	faults = slices.DeleteFunc(allFaults(), func(f *fault) bool { return !only.MatchString(f.name) })
	if e.walDisk == nil && only.MatchString(walDiskFull) {
		leftOut = append(leftOut, walDiskFull+" ("+e.noWALDisk+")")
		faults = slices.DeleteFunc(faults, func(f *fault) bool { return f.name == walDiskFull })
	}
	return faults, leftOut
}
