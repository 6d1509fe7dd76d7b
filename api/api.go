// Package api is the HTTP face of the coupons: it turns requests into calls of a
// Store and the Store's outcomes into answers. The contract it keeps is
// openapi.yaml at the top of the repository.
//
// A request passes, in this order: the access log with the request id and the
// recovery from panics (access.go), the route (this file), the media type and
// the size of its body (body.go), the JSON and its fields (decode.go, names.go),
// the Store, and the one table and the one writer of answers (answer.go).
package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// Store is what the HTTP layer needs to know about coupons; *pgstore.Store is
// the real one. All of it is called concurrently. An error that wraps none of
// pgstore's sentinel errors is answered as a fault of ours.
type Store interface {
	// Claim gives user one piece of coupon, or tells why not.
	Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error)
	// CreateCoupon creates a coupon with amount pieces, or tells why not.
	CreateCoupon(ctx context.Context, name string, amount int32) (pgstore.CreateStatus, error)
	// Coupon reads one consistent state of a coupon; found is false when there is
	// none of that name.
	Coupon(ctx context.Context, name string) (coupon *pgstore.Coupon, found bool, err error)
	// Ready returns nil when claims can be made, else one sentence that may be
	// shown to anybody.
	Ready(ctx context.Context) error
}


// Options is what New needs besides the Store.
type Options struct {
	// Log gets one line a request; the zero Logger writes nowhere.
	Log zerolog.Logger
}

// Handler answers the whole API. Make it with New.
type Handler struct {
	store    Store
	log      zerolog.Logger
	mux      *chi.Mux
	draining atomic.Bool

	bodyTimeout  time.Duration // a request body has to be here within this time
	stallTimeout time.Duration // a reader who takes nothing for so long is cut
}

// New makes the Handler that answers for store.
func New(store Store, o Options) *Handler {
	return &Handler{store: store, log: o.Log, mux: chi.NewMux()}
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Drain begins the end: from now on /health says 503, so that load balancers
// send no more requests, and every answer closes its connection. Requests are
// answered as before. There is no way back.
func (h *Handler) Drain() { h.draining.Store(true) }

