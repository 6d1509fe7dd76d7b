package api

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

const pathMetrics = "/metrics"

// durationBuckets, in seconds, range from half a millisecond, a claim on an idle service, to twice
// the default of CLAIM_TIMEOUT.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Labels that replace client input, so that the number of series stays bounded.
const (
	noRoute     = "none"  // the route of a request without one
	otherMethod = "other" // a method that HTTP does not define
)

var knownMethods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace,
}

// requestMetrics counts requests and their durations by route, method and status. The histogram of
// each combination is looked up by its labels only once; later requests find it in a map that is
// replaced and never changed.
type requestMetrics struct {
	durations *prometheus.HistogramVec
	seen      atomic.Pointer[map[series]prometheus.Observer]
}

type series struct {
	route, method string
	status        int
}

func newRequestMetrics(registry prometheus.Registerer) *requestMetrics {
	m := &requestMetrics{durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "coupond_http_request_duration_seconds",
		Help:    "Requests, from the end of the request header to the end of the response. 499: the client disconnected.",
		Buckets: durationBuckets,
	}, []string{"route", "method", "status"})}
	m.seen.Store(&map[series]prometheus.Observer{})
	registry.MustRegister(m.durations)
	return m
}

// observe counts a request.
func (m *requestMetrics) observe(method, route string, status int, took time.Duration) {
	if route == noRoute && !slices.Contains(knownMethods, method) {
		method = otherMethod
	}
	key := series{route, method, status}
	seen := *m.seen.Load()
	histogram, known := seen[key]
	if !known {
		histogram = m.durations.WithLabelValues(route, method, strconv.Itoa(status))
		next := maps.Clone(seen)
		next[key] = histogram
		m.seen.Store(&next) // may lose what another request adds now, which is then added again
	}
	histogram.Observe(took.Seconds())
}

// valueMetrics is the only format of /metrics: every scraper reads it, and openapi.yaml documents
// one type.
var valueMetrics = []string{"text/plain; version=0.0.4; charset=utf-8"}

// metrics handles GET /metrics, for Prometheus.
func (h *Handler) metrics(x *exchange) error {
	families, err := h.registry.Gather()
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			return err
		}
	}
	if err := h.scrapes.take(text.Cap()); err != nil {
		return err
	}
	defer h.scrapes.give(text.Cap())
	x.Header()["Content-Type"] = valueMetrics
	return x.send(http.StatusOK, text.Bytes())
}
