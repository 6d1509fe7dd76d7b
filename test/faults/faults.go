package main

import (
	"context"
	"math/rand/v2"
	"slices"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/faultproxy"
)

// place is what a fault befalls. Two faults of one place never meet.
type place int

const (
	onPostgres place = iota
	onWire           // between the service and PostgreSQL
	onService
	places
)

// fault is one kind of what may go wrong.
type fault struct {
	name  string
	place place
	// does says what is done.
	does string
	// may are the answers that it may bring; any other but a clear one, at a moment when no other fault excuses it, breaks the
	// proof. What is true without exception is not said each time: no 500 at all, no answer that is late (no client ever gives
	// up), and whatever is told is true.
	may []load.Answer
	// because says why these and no others.
	because string
	// inflict does it, and has undone it when it returns. Its error is one of the proof itself, or a broken promise of a kind
	// that no answer shows.
	inflict func(ctx context.Context, w *world, random *rand.Rand) error
}

// Answers by what they mean.
var (
	surelyNot = []load.Answer{load.Unavailable, load.Overloaded}
	doubtful  = []load.Answer{load.Unavailable, load.Overloaded, load.OutcomeUnknown}
)

const sessionsGone = "A call that was under way may have been committed, and the second try may fail as well; so UNAVAILABLE, OVERLOADED " +
	"or OUTCOME_UNKNOWN. The HTTP connections stand: never an answer that does not come."

func allFaults() []*fault {
	faults := []*fault{
		{
			name: "backends terminated", place: onPostgres,
			does:    "pg_terminate_backend for every session of the service, up to eight times in a row",
			may:     doubtful,
			because: sessionsGone,
			inflict: terminate,
		},
		{
			name: "PostgreSQL crashed", place: onPostgres,
			does:    "stopped with -m immediate, and started up to three seconds later, into crash recovery",
			may:     doubtful,
			because: sessionsGone,
			inflict: crash,
		},
		{
			name: "row locked by a DBA", place: onPostgres,
			does: "select … for update of the coupon that is on sale, held for up to four seconds",
			may:  surelyNot,
			because: "PostgreSQL itself ends a statement that waits too long, which proves its rollback: UNAVAILABLE, or OVERLOADED for " +
				"those who queue behind it. Never OUTCOME_UNKNOWN, and nobody's connection is lost.",
			inflict: lockRow,
		},
		{
			name: "functions re-installed", place: onPostgres,
			does:    "coupond migrate, five to twenty times in a row",
			because: "Nobody may notice: create or replace keeps every session and every plan.",
			inflict: reinstall,
		},
		{
			name: "disk of the WAL full", place: onPostgres,
			does: "the file system of pg_wal (a small one in memory, mounted for this) filled to the last byte, until PostgreSQL panics and some time longer; then freed, and PostgreSQL " +
				"started again where it had given up",
			may: doubtful,
			because: "A commit that finds no room for its WAL ends in a panic, not in an answer: the claim may be on disk or not. " + sessionsGone +
				" What was answered before survives.",
			inflict: fillWAL,
		},
		{
			name: "connections cut", place: onWire,
			does:    "every connection between service and PostgreSQL reset at once, up to six times in a row",
			may:     doubtful,
			because: sessionsGone,
			inflict: cutAll,
		},
		{
			name: "PostgreSQL out of reach", place: onWire,
			does: "every connection reset, and new ones as soon as they are made, for up to three seconds",
			may:  doubtful,
			because: "Most claims are told UNAVAILABLE: no connection, so surely nothing was sent. OUTCOME_UNKNOWN for the calls that were under " +
				"way when it began.",
			inflict: outOfReach,
		},
		{
			name: "connections slow", place: onWire,
			does:    "every fourth call held back for up to a second on its way",
			may:     doubtful,
			because: "A call that we give up before PostgreSQL has it is one whose outcome we do not know. It may be carried out later.",
			inflict: slow,
		},
		{
			name: "connections stalled", place: onWire,
			does: "no byte in either direction for up to five seconds, longer than CLAIM_TIMEOUT; then all that was held back goes on its way",
			may:  doubtful,
			because: "Silence proves nothing, so OUTCOME_UNKNOWN; and calls that we gave up long ago are carried out in the end, which must not " +
				"contradict what was told since.",
			inflict: freeze,
		},
		{
			name: "calls swallowed", place: onWire,
			does:    "one call in twenty never reaches PostgreSQL, and its connection stands in silence until we close it",
			may:     doubtful,
			because: "As when it stalls.",
			inflict: cutting(faultproxy.Stall, 20),
		},
		{
			name: "instance killed", place: onService,
			does: "SIGKILL for one instance, or for both, and a start up to two seconds later",
			may:  []load.Answer{load.Cut, load.NotSent},
			because: "Its clients lose their connections, and who finds nobody goes to the other one. Nobody is told anything wrong: a 503 of the " +
				"instance that lives would be.",
			inflict: killInstance,
		},
		{
			name: "rolling restart", place: onService,
			does: "SIGTERM for one instance, a start when it has ended, and the same for the other",
			because: "Nobody may notice: every request that was let in is answered, and who finds a closed door goes to the other instance. Each " +
				"must end with exit status 0.",
			inflict: roll,
		},
	}
	for _, cut := range []struct {
		name, does string
		kind       faultproxy.Fault
	}{
		{"cut before the call", "PostgreSQL never sees the call", faultproxy.CutBeforeCall},
		{"cut before the commit", "PostgreSQL executes the call, and rolls it back", faultproxy.CutBeforeCommit},
		{"cut after an answer without a commit", "we have all of the answer, and PostgreSQL rolls it back", faultproxy.CutAnsweredBeforeCommit},
		{"cut during the call", "PostgreSQL has all of the call; whether it commits is for it to know", faultproxy.CutDuring},
		{"cut after the commit", "PostgreSQL has committed, and we have no byte of the answer", faultproxy.CutAfterCommit},
		{"cut after the answer and the commit", "PostgreSQL has committed, and we have all of the answer but that", faultproxy.CutAnsweredAfterCommit},
	} {
		faults = append(faults, &fault{
			name: cut.name, place: onWire,
			does: "the connection reset in up to half of all calls: " + cut.does,
			may:  doubtful,
			because: "The service cannot tell one cut from another: what the second try says is told where it is exact, and is OUTCOME_UNKNOWN " +
				"where it may be the echo of the first.",
			inflict: cutting(cut.kind, 2),
		})
	}
	return faults
}

// possibleFaults leaves out what cannot be done here, and says so.
func possibleFaults(w *world) (faults []*fault, leftOut []string) {
	faults = allFaults()
	if w.wal == nil {
		leftOut = append(leftOut, "disk of the WAL full ("+w.noWAL+")")
		faults = slices.DeleteFunc(faults, func(f *fault) bool { return f.name == "disk of the WAL full" })
	}
	return faults, leftOut
}
