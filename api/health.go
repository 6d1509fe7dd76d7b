package api

import (
	"context"
	"net/http"
	"time"
)

const (
	pathHealth = "/health"
	pathLive   = "/health/live"

	// readyTimeout bounds the question to the Store, so that /health is answered
	// within 2 s. pgstore allows itself less, so that it can say what it waited for.
	readyTimeout = 1750 * time.Millisecond
)

var (
	bodyHealthy = []byte("{\"status\":\"healthy\"}\n")
	bodyAlive   = []byte("{\"status\":\"alive\"}\n")
)

// health answers GET /health: may this instance be sent requests?
func (h *Handler) health(x *exchange) {
	if h.draining.Load() {
		x.unhealthy("the service is shutting down")
		return
	}
	ctx, cancel := context.WithTimeout(x.context(), readyTimeout)
	defer cancel()
	err := h.store.Ready(ctx)
	if err == nil {
		x.send(http.StatusOK, bodyHealthy)
		return
	}
	x.abortIfGone(err)
	x.err = err
	x.unhealthy(err.Error())
}

// live answers GET /health/live: does the process run?
func (h *Handler) live(x *exchange) { x.send(http.StatusOK, bodyAlive) }

// unhealthy is an error like any other, with the status that load balancers and
// people look for on top.
func (x *exchange) unhealthy(sentence string) {
	x.send(http.StatusServiceUnavailable,
		appendError(nil, `"status":"unhealthy",`, CodeUnavailable, sentence, x.id[0]))
}
