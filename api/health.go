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

	// readyTimeout limits Store.Ready, so that /health responds within 2 s. pgstore's own limit is
	// shorter, so that its error can say what it waited for.
	readyTimeout = 1750 * time.Millisecond
)

var (
	bodyHealthy = []byte("{\"status\":\"healthy\"}\n")
	bodyAlive   = []byte("{\"status\":\"alive\"}\n")
)

// health handles GET /health, which reports whether this instance can serve requests.
func (h *Handler) health(x *exchange) error {
	if h.draining.Load() {
		return unhealthy("the service is shutting down")
	}
	ctx, cancel := context.WithTimeout(x.context(), readyTimeout)
	defer cancel()
	shards, err := h.store.Ready(ctx)
	if err == nil {
		return x.send(http.StatusOK, healthyBody(shards))
	}
	x.abortIfClientClosed(err)
	x.err = err
	return unhealthy(err.Error())
}

// healthyBody returns the body of a 200, with the state of each shard behind a proxy. An unhealthy
// shard does not make the instance unhealthy: it affects only the coupons it stores.
func healthyBody(shards []pgstore.Shard) []byte {
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

// live handles GET /health/live, which always returns 200.
func (h *Handler) live(x *exchange) error { return x.send(http.StatusOK, bodyAlive) }

// unhealthy returns UNAVAILABLE with an additional member, the status.
func unhealthy(message string) error {
	return rejection{CodeUnavailable, message, `"status":"unhealthy",`}
}
