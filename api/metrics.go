package api

import (
	"bytes"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const pathMetrics = "/metrics"

// durationBuckets, in seconds, go from what an idle service needs for a claim, half a
// millisecond, to twice the default of CLAIM_TIMEOUT.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// traffic counts requests and how long they took, by route, method and status. Each
// combination is looked up by its labels once, when it first occurs; from then on a
// request pays one look into a map that never changes, and the histogram's additions.
type traffic struct {
	durations *prometheus.HistogramVec
	routes    map[endpoint]*byStatus
	unrouted  map[string]*byStatus // by method, of those that HTTP has
}

// endpoint is a method and the pattern of a route.
type endpoint struct{ method, route string }

// byStatus holds the histogram of each status, from when it first occurs.
type byStatus struct {
	endpoint
	status [600]atomic.Pointer[prometheus.Observer]
}

// The labels of what has no bounded name: a request that no route takes, and a method
// that nobody has heard of.
const (
	unroutedRoute = "none"
	otherMethod   = "other"
)

// newTraffic counts the requests of all routes that mux has by now.
func newTraffic(mux *chi.Mux, registry prometheus.Registerer) *traffic {
	t := &traffic{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coupond_http_request_duration_seconds",
			Help:    "Requests, from the end of their header to the end of their answer. 499: the client left.",
			Buckets: durationBuckets,
		}, []string{"route", "method", "status"}),
		routes:   make(map[endpoint]*byStatus),
		unrouted: make(map[string]*byStatus),
	}
	registry.MustRegister(t.durations)
	_ = chi.Walk(mux, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		t.routes[endpoint{method, route}] = &byStatus{endpoint: endpoint{method, route}}
		return nil
	}) // its error would be ours, and is nil
	for _, method := range []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace, otherMethod,
	} {
		t.unrouted[method] = &byStatus{endpoint: endpoint{method, unroutedRoute}}
	}
	return t
}

// observe counts a request.
func (t *traffic) observe(method, route string, status int, took time.Duration) {
	b := t.routes[endpoint{method, route}]
	if b == nil {
		b = t.unrouted[method]
	}
	if b == nil {
		b = t.unrouted[otherMethod]
	}
	if status < 0 || status >= len(b.status) {
		status = 0
	}
	histogram := b.status[status].Load()
	if histogram == nil {
		o := t.durations.WithLabelValues(b.route, b.method, strconv.Itoa(status))
		histogram = &o
		b.status[status].Store(histogram)
	}
	(*histogram).Observe(took.Seconds())
}

// valueMetrics is the one format we speak: all who scrape read it, and openapi.yaml has
// one type to name.
var valueMetrics = []string{"text/plain; version=0.0.4; charset=utf-8"}

// metrics answers GET /metrics, for Prometheus.
func (h *Handler) metrics(x *exchange) {
	families, err := h.registry.Gather()
	if err != nil {
		x.fail(err)
		return
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			x.fail(err)
			return
		}
	}
	x.Header()["Content-Type"] = valueMetrics
	x.send(http.StatusOK, text.Bytes())
}
