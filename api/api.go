// Package api serves the coupons over HTTP: it turns requests into calls of a Store, and the
// Store's outcomes into responses. Its contract is openapi.yaml at the top of the repository.
// docs/architecture.md has the way of a request through it.
package api

import (
	"cmp"
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

// Store is what the HTTP layer needs to know about coupons; *pgstore.Store implements it. Methods
// are called concurrently, with valid names and user ids and with amounts from 1 to 2147483647. The
// context ends when the client disconnects. An error that wraps none of pgstore's sentinel errors
// is answered with CodeInternal.
type Store interface {
	// Claim claims coupon for user, or returns the status that says why not.
	Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error)
	// CreateCoupon creates a coupon with a stock of amount, or returns the status that says why not.
	CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error)
	// Coupon reads one consistent state of a coupon; found is false if no coupon has this name.
	// Concurrent callers may get the same *Coupon.
	Coupon(ctx context.Context, name string) (coupon *pgstore.Coupon, found bool, err error)
	// Ready returns no error if claims can be made. Otherwise, also when ctx ends first, the error's
	// text is one sentence that is safe to publish. shards is the last known state of each server
	// behind a proxy; none without a proxy.
	Ready(ctx context.Context) (shards []pgstore.Shard, err error)
}

// Options is what New needs besides the Store.
type Options struct {
	// Log gets one line for each request. The zero Logger writes nothing.
	Log zerolog.Logger
	// Registry holds what GET /metrics shows; New adds the request metrics. The default is a new one.
	Registry *prometheus.Registry
	// MaxInFlight is the most memory, in bytes, that request bodies and responses in flight take
	// together. Requests that need more are answered with CodeOverloaded. The default, for 0, is
	// 256 MiB. Claims and small coupons need none of it.
	MaxInFlight int64
}

// Handler serves the whole API. Create it with New.
type Handler struct {
	store    Store
	log      zerolog.Logger
	mux      *chi.Mux
	registry *prometheus.Registry
	requests *requestMetrics
	budget   budget
	scrapes  budget // of GET /metrics, so that slow readers of coupons cannot hide the metrics
	bodies   sharedBodies
	draining atomic.Bool

	bodyTimeout  time.Duration
	stallTimeout time.Duration
}

// New returns a Handler that serves the coupons of store.
func New(store Store, o Options) *Handler {
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	h := &Handler{
		store:        store,
		log:          o.Log,
		mux:          chi.NewMux(),
		registry:     o.Registry,
		requests:     newRequestMetrics(o.Registry),
		bodyTimeout:  bodyTimeout,
		stallTimeout: stallTimeout,
	}
	h.budget.limit = cmp.Or(o.MaxInFlight, defaultMaxInFlight)
	h.scrapes.limit = h.budget.limit / 16
	h.bodies = sharedBodies{budget: &h.budget, held: make(map[*pgstore.Coupon]*sharedBody)}
	h.mux.NotFound(h.handle(h.noRoute))
	h.mux.MethodNotAllowed(h.handle(h.noRoute))

	h.mux.Post("/api/coupons", h.handle(h.createCoupon))
	h.mux.Post("/api/coupons/claim", h.handle(h.claim))
	// This route also serves GET for a coupon called "claim": if chi finds a literal path without a
	// matching method, it still tries patterns with parameters.
	h.get("/api/coupons/{name}", h.coupon)
	h.get(pathHealth, h.health)
	h.get(pathLive, h.live)
	h.get("/", h.root)
	h.get("/docs", h.docs)
	h.get("/docs/{file}", h.docs)
	h.get("/openapi.yaml", h.openAPI)
	h.get(pathMetrics, h.metrics)
	return h
}

// ServeHTTP serves one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Drain prepares for shutdown, once and for good: /health returns 503, so that load balancers stop
// sending requests, and every response closes its connection. Requests are otherwise served as
// before.
func (h *Handler) Drain() { h.draining.Store(true) }

// get routes GET and HEAD.
func (h *Handler) get(pattern string, f func(*exchange) error) {
	h.mux.Get(pattern, h.handle(f))
	h.mux.Head(pattern, h.handle(f))
}

// noRoute handles a request without a route: 405 if the path has a route with another method,
// otherwise 404. chi's own choice is not usable: it returns 405 for an unknown method at an unknown
// path, and does not export the list of allowed methods.
func (h *Handler) noRoute(x *exchange) error {
	path := cmp.Or(x.request.URL.RawPath, x.request.URL.Path)
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		if h.mux.Match(chi.NewRouteContext(), method, path) {
			allowed = append(allowed, method)
		}
	}
	if allowed == nil {
		return reject(CodeNotFound)
	}
	x.Header().Set("Allow", strings.Join(allowed, ", "))
	return reject(CodeMethodNotAllowed)
}
