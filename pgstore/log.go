package pgstore

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// RequestIDKey is the context key of the request's id, a *string (a pointer, so that looking it up
// for each claim allocates nothing). Log lines about the request contain the id.
type RequestIDKey struct{}

// requestID returns the id of the request that ctx belongs to; "": it has none.
func requestID(ctx context.Context) string {
	if id, ok := ctx.Value(RequestIDKey{}).(*string); ok {
		return *id
	}
	return ""
}

// withID adds the id of a request to a log line, if there is one.
func withID(id string) func(*zerolog.Event) {
	return func(line *zerolog.Event) {
		if id != "" {
			line.Str("request_id", id)
		}
	}
}

// maxLoggedIDs bounds the request ids in a log line about a batch.
const maxLoggedIDs = 16

// requestIDs returns the request ids of the first maxLoggedIDs claims.
func requestIDs(claims []*claim) []string {
	var ids []string
	for _, c := range claims[:min(len(claims), maxLoggedIDs)] {
		if c.requestID != "" {
			ids = append(ids, c.requestID)
		}
	}
	return ids
}

// logSlowCall counts the slow claims of a call that has just ended, and logs the one that waited
// longest: its time in the queue, and its time since it was sent for the first time (waiting for a
// connection, the call and its retries). Claims that will be sent again are counted then. The log
// is sampled, so that it does not slow an overloaded service down further; the metrics count all.
func (s *server) logSlowCall(claims []*claim) {
	ended := time.Now()
	bound := slowAfter(s.timeout)
	oldest := oldestOf(claims)
	if ended.Sub(oldest.arrived) < bound {
		return
	}
	slow := 0
	for _, c := range claims {
		if ended.Sub(c.arrived) >= bound && !c.toSendAgain() {
			slow++
		}
	}
	if slow == 0 {
		return
	}
	s.metrics.slowClaims.Add(float64(slow))
	s.sampled.Warn().
		Str("request_id", oldest.requestID).
		Str("coupon", oldest.coupon).
		Int64("queue_ms", oldest.sent.Sub(oldest.arrived).Milliseconds()).
		Int64("database_ms", ended.Sub(oldest.sent).Milliseconds()).
		Int("claims", len(claims)).
		Int("slow", slow).
		Msg("a claim was slow")
}

// logFailed logs the failure of the first attempt of claims. The log is sampled.
func (s *server) logFailed(claims []*claim, failed *failedAttempt, message string) {
	s.sampled.Warn().
		Err(failed.err).
		Strs("request_ids", requestIDs(claims)).
		Str("coupon", claims[0].coupon).
		Int("claims", len(claims)).
		Bool("not_committed", failed.notCommitted).
		Msg(message)
}

// oldestOf returns the claim that arrived first.
func oldestOf(claims []*claim) *claim {
	return slices.MinFunc(claims, func(a, b *claim) int { return a.arrived.Compare(b.arrived) })
}
