package pgstore

import (
	"context"
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

// withRequestID adds the request's id to a log line.
func withRequestID(ctx context.Context) func(*zerolog.Event) {
	return func(line *zerolog.Event) {
		if id := requestID(ctx); id != "" {
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
// longest: its time in the queue, and its time from sent on (waiting for a connection, the call and
// its retries). The log is sampled, so that it does not slow an overloaded service down further;
// the metrics count all.
func (s *Store) logSlowCall(claims []*claim, sent time.Time) {
	ended := time.Now()
	bound := slowAfter(s.timeout)
	oldest := claims[0] // a batch is in order of arrival
	if ended.Sub(oldest.arrived) < bound {
		return
	}
	slow := 0
	for _, c := range claims {
		if ended.Sub(c.arrived) >= bound {
			slow++
		}
	}
	s.metrics.slowClaims.Add(float64(slow))
	s.slow.Warn().
		Str("request_id", oldest.requestID).
		Str("coupon", oldest.coupon).
		Int64("queue_ms", sent.Sub(oldest.arrived).Milliseconds()).
		Int64("database_ms", ended.Sub(sent).Milliseconds()).
		Int("claims", len(claims)).
		Int("slow", slow).
		Msg("a claim was slow")
}
