package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"scalable-coupon-system/pgstore"
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
		x.send(http.StatusOK, healthy(h.shards()))
		return
	}
	x.abortIfGone(err)
	x.err = err
	x.unhealthy(err.Error())
}

// healthy is the body of an instance that may be sent requests, and how the shards are
// behind a proxy: one that is away costs its own coupons, which is no reason to send the
// others' requests elsewhere.
func healthy(shards []pgstore.Shard) []byte {
	if len(shards) == 0 {
		return bodyHealthy
	}
	body := []byte(`{"status":"healthy","shards":[`)
	for i, shard := range shards {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, `{"shard":`...)
		body = strconv.AppendInt(body, int64(shard.Number), 10)
		if shard.Reason == "" {
			body = append(body, `,"status":"healthy"}`...)
			continue
		}
		body = append(body, `,"status":"unhealthy","error":`...)
		body = append(appendString(body, shard.Reason), '}')
	}
	return append(body, "]}\n"...)
}

// live answers GET /health/live: does the process run?
func (h *Handler) live(x *exchange) { x.send(http.StatusOK, bodyAlive) }

// unhealthy is an error like any other, with the status that load balancers and
// people look for on top.
func (x *exchange) unhealthy(sentence string) {
	x.send(http.StatusServiceUnavailable,
		appendError(nil, `"status":"unhealthy",`, CodeUnavailable, sentence, x.id[0]))
}
