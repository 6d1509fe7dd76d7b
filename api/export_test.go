package api

import "time"

// SetTimeouts replaces a Handler's limits for the arrival of a body and for a client that does not
// read the response.
func (h *Handler) SetTimeouts(body, stall time.Duration) { h.bodyTimeout, h.stallTimeout = body, stall }
