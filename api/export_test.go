package api

import "time"

// Hurry shortens the bounds of a Handler for tests that wait for them.
func (h *Handler) Hurry(body, stall time.Duration) { h.bodyTimeout, h.stallTimeout = body, stall }
