package api

import (
	"maps"
	"slices"
	"time"
)

// Codes returns every Code, in no particular order.
func Codes() []Code { return slices.Collect(maps.Keys(errorResponses)) }

// IsWhiteSpace reports whether a name of only this character is blank.
func IsWhiteSpace(r rune) bool { return !notWhiteSpace(r) }

// SetTimeouts replaces a Handler's limits for the arrival of a body and for a client that does not
// read the response.
func (h *Handler) SetTimeouts(body, stall time.Duration) { h.bodyTimeout, h.stallTimeout = body, stall }

// SetMaxInFlight replaces Options.MaxInFlight, except for GET /metrics.
func (h *Handler) SetMaxInFlight(bytes int64) { h.budget.limit = bytes }

// SetMaxScrapes replaces the budget of GET /metrics.
func (h *Handler) SetMaxScrapes(bytes int64) { h.scrapes.limit = bytes }

// InFlight returns how many bytes request bodies and responses take.
func (h *Handler) InFlight() int64 { return h.budget.used.Load() + h.scrapes.used.Load() }
