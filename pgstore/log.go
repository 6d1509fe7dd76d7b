package pgstore

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// RequestIDKey is the key under which a context holds the id of the request that it
// belongs to, as a *string: so that looking it up, which every claim does, allocates
// nothing. The log names it in each line about the request.
type RequestIDKey struct{}

// requestID is the id of the request that ctx belongs to, "" for none.
func requestID(ctx context.Context) string {
	if id, ok := ctx.Value(RequestIDKey{}).(*string); ok {
		return *id
	}
	return ""
}

// withRequestID puts the id into a line of the log.
func withRequestID(ctx context.Context) func(*zerolog.Event) {
	return func(line *zerolog.Event) {
		if id := requestID(ctx); id != "" {
			line.Str("request_id", id)
		}
	}
}

// mostIDs bounds the ids in a line about a crowd. The line of each request has its own.
const mostIDs = 16

// requestIDs are the ids of the requests of a crowd, of the first of them.
func requestIDs(claims []*claim) []string {
	var ids []string
	for _, c := range claims[:min(len(claims), mostIDs)] {
		if c.request != "" {
			ids = append(ids, c.request)
		}
	}
	return ids
}

// tellSlow logs a call after which somebody had waited too long, and where the time
// went: in the queue of his lane, or from then on, which is the wait for a connection,
// the call, and being asked again. It is one line a call, by the one who has waited
// longest, and a few lines a second: a night on which everything is slow must not be
// slowed down further by telling it. The metrics count all.
func (s *Store) tellSlow(claims []*claim, sent time.Time) {
	ended := time.Now()
	bound := slowAfter(s.timeout)
	first := claims[0]
	if ended.Sub(first.since) < bound {
		return // then nobody has: a crowd is in order of arrival
	}
	slow := 0
	for _, c := range claims {
		if ended.Sub(c.since) >= bound {
			slow++
		}
	}
	s.metrics.slow.Add(float64(slow))
	s.slow.Warn().
		Str("request_id", first.request).
		Str("coupon", first.coupon).
		Int64("queue_ms", sent.Sub(first.since).Milliseconds()).
		Int64("database_ms", ended.Sub(sent).Milliseconds()).
		Int("claims", len(claims)).
		Int("slow", slow).
		Msg("a claim was slow")
}
