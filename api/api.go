// Package api is the HTTP face of the coupons: it turns requests into calls of a
// Store, and the Store's outcomes into answers. The contract it keeps is
// openapi.yaml at the top of the repository.
//
// A request passes, in this order, the request id, the access log and the
// recovery from panics (exchange.go), its route (this file), the media type, the
// size and the arrival of its body (body.go), the JSON and its fields (decode.go,
// names.go), the Store (claim.go, coupon.go, health.go), and the one table and
// the one writer of answers (answer.go). What the first of these refuses, the
// later ones never see.
package api

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// Store is what the HTTP layer needs to know about coupons; *pgstore.Store is
// the real one. All of it is called concurrently, with names and user ids that
// keep the rule for names and amounts from 1 to 2147483647. The context ends
// when the client goes away. An error that wraps none of pgstore's sentinel
// errors is answered as a fault of ours.
type Store interface {
	// Claim gives user one piece of coupon, or tells why not.
	Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error)
	// CreateCoupon creates a coupon of amount pieces, or tells why not.
	CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error)
	// Coupon reads one consistent state of a coupon; found is false when there is
	// none of that name. Concurrent callers may get the same *Coupon.
	Coupon(ctx context.Context, name string) (coupon *pgstore.Coupon, found bool, err error)
	// Ready returns nil when claims can be made, else one sentence that may be
	// shown to anybody, also when ctx ends while it asks.
	Ready(ctx context.Context) error
}

// Sharded is a Store whose coupons may be on several servers.
type Sharded interface {
	// Shards are the servers as they were found last; none where there is but one. It asks
	// nobody.
	Shards() []pgstore.Shard
}

// Options is what New needs besides the Store.
type Options struct {
	// Log gets one line a request. The zero Logger writes nowhere.
	Log zerolog.Logger
	// Registry holds what GET /metrics shows; New adds the requests. nil: nothing else
	// is shown.
	Registry *prometheus.Registry
}

// Handler answers the whole API. Make it with New.
type Handler struct {
	store    Store
	shards   func() []pgstore.Shard
	log      zerolog.Logger
	mux      *chi.Mux
	registry *prometheus.Registry
	traffic  *traffic
	draining atomic.Bool

	bodyTimeout  time.Duration
	stallTimeout time.Duration
}

// New makes the Handler that answers for store.
func New(store Store, o Options) *Handler {
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	h := &Handler{
		store:        store,
		log:          o.Log,
		mux:          chi.NewMux(),
		registry:     o.Registry,
		bodyTimeout:  bodyTimeout,
		stallTimeout: stallTimeout,
	}
	if sharded, ok := store.(Sharded); ok {
		h.shards = sharded.Shards
	} else {
		h.shards = func() []pgstore.Shard { return nil }
	}
	h.mux.Use(h.observe)
	h.mux.NotFound(h.unrouted)
	h.mux.MethodNotAllowed(h.unrouted)

	h.mux.Post("/api/coupons", on(h.createCoupon))
	h.mux.Post("/api/coupons/claim", on(h.claim))
	// This route also reads the coupon called claim: to chi, a path that matches
	// word for word but not in its method is still free for a parameter.
	h.get("/api/coupons/{name}", h.coupon)
	h.get(pathHealth, h.health)
	h.get(pathLive, h.live)
	h.get(pathDocs, h.docs)
	h.get(pathDocsFile, h.docsFile)
	h.get(pathOpenAPI, h.openAPI)
	h.get(pathMetrics, h.metrics)
	h.traffic = newTraffic(h.mux, o.Registry) // after all routes
	return h
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Drain begins the end: from now on /health says 503, so that load balancers
// send no more, and every answer closes its connection. Requests are answered as
// before. There is no way back.
func (h *Handler) Drain() { h.draining.Store(true) }

// get routes GET, and HEAD with it.
func (h *Handler) get(pattern string, answer func(*exchange)) {
	h.mux.Get(pattern, on(answer))
	h.mux.Head(pattern, on(answer))
}

// on lets chi call what answers an exchange.
func on(answer func(*exchange)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { answer(exchangeOf(w)) }
}

// exchangeOf is the exchange behind what chi hands to a handler.
func exchangeOf(w http.ResponseWriter) *exchange {
	return w.(*exchange)
}

// unrouted answers what no route takes: 405 when another method would be
// answered at this path, else 404. chi's own choice between the two is no use:
// it says 405 to an unknown method at an unknown path, and tells its list of
// methods to nobody but its own handler.
func (h *Handler) unrouted(w http.ResponseWriter, r *http.Request) {
	x := exchangeOf(w)
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if h.mux.Match(chi.NewRouteContext(), method, path) {
			allowed = append(allowed, method)
		}
	}
	if allowed == nil {
		x.answer(CodeNotFound)
		return
	}
	x.Header().Set("Allow", strings.Join(allowed, ", "))
	x.answer(CodeMethodNotAllowed)
}
