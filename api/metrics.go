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

// durationBuckets, in seconds, range from half a millisecond, a claim on an idle service, to twice
// the default of CLAIM_TIMEOUT.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// requestMetrics counts requests and their durations by route, method and status. The histogram of
// each combination is looked up by its labels only once; later requests need one lookup in a map
// that never changes.
type requestMetrics struct {
	durations *prometheus.HistogramVec
	routes    map[endpoint]*byStatus
	noRoute   map[string]*byStatus // by method: those of HTTP, and otherMethod
}

// endpoint is a method and the pattern of a route.
type endpoint struct{ method, route string }

// byStatus has the histogram of each status that has occurred.
type byStatus struct {
	endpoint
	status [600]atomic.Pointer[prometheus.Observer]
}

// Labels that replace client input, so that the number of series stays bounded.
const (
	noRouteLabel = "none"  // the route of a request without one
	otherMethod  = "other" // a method that HTTP does not define
)

// newRequestMetrics registers the metrics of the requests to mux. All routes must have been added.
func newRequestMetrics(mux *chi.Mux, registry prometheus.Registerer) *requestMetrics {
	m := &requestMetrics{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coupond_http_request_duration_seconds",
			Help:    "Requests, from the end of the request header to the end of the response. 499: the client disconnected.",
			Buckets: durationBuckets,
		}, []string{"route", "method", "status"}),
		routes:  make(map[endpoint]*byStatus),
		noRoute: make(map[string]*byStatus),
	}
	registry.MustRegister(m.durations)
	_ = chi.Walk(mux, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		m.routes[endpoint{method, route}] = &byStatus{endpoint: endpoint{method, route}}
		return nil
	}) // returns only the errors of the function it calls
	for _, method := range []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace, otherMethod,
	} {
		m.noRoute[method] = &byStatus{endpoint: endpoint{method, noRouteLabel}}
	}
	return m
}

// observe counts a request.
func (m *requestMetrics) observe(method, route string, status int, took time.Duration) {
	b := m.routes[endpoint{method, route}]
	if b == nil {
		b = m.noRoute[method]
	}
	if b == nil {
		b = m.noRoute[otherMethod]
	}
	if status < 0 || status >= len(b.status) {
		status = 0
	}
	histogram := b.status[status].Load()
	if histogram == nil {
		o := m.durations.WithLabelValues(b.route, b.method, strconv.Itoa(status))
		histogram = &o
		b.status[status].Store(histogram)
	}
	(*histogram).Observe(took.Seconds())
}

// valueMetrics is the only format of /metrics: every scraper reads it, and openapi.yaml documents
// one type.
var valueMetrics = []string{"text/plain; version=0.0.4; charset=utf-8"}

// metrics handles GET /metrics, for Prometheus.
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
	if err := h.scrapes.take(text.Cap()); err != nil {
		x.fail(err)
		return
	}
	defer h.scrapes.give(text.Cap())
	x.Header()["Content-Type"] = valueMetrics
	x.send(http.StatusOK, text.Bytes())
}
