package api_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"scalable-coupon-system/pgstore"
)

// brokenCollector is a collector that fails.
var brokenCollector = prometheus.CollectorFunc(func(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Cannot be collected.", nil, nil), errFault)
})

// scrape returns the samples of /metrics that have labels, except the buckets.
func (s *service) scrape() map[string]string {
	s.tb.Helper()
	got := s.do("GET", "/metrics", "")
	if got.status != 200 {
		s.tb.Fatalf("status %d: %s", got.status, got.body)
	}
	samples := map[string]string{}
	for line := range strings.Lines(got.body) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && !strings.Contains(name, "_bucket{") {
			samples[name+"}"] = value
		}
	}
	return samples
}

const requestCount = `coupond_http_request_duration_seconds_count`

// Each request is counted under its route, method and status. No label has a path, a name or a
// method that a client made up, so the number of series stays bounded.
func TestMetrics_countRequests(t *testing.T) {
	s := serve(t)
	s.create("sale", 2)
	for _, user := range []string{"ada", "grace", "alan", "ada"} {
		s.claim(user, "sale")
	}
	s.do("GET", "/api/coupons/sale", "")
	s.do("HEAD", "/api/coupons/sale", "")
	s.do("GET", "/api/coupons/claim", "")
	s.do("GET", "/api/coupons/a/b", "")
	s.do("DELETE", "/api/coupons/sale", "")
	s.do("BREW", "/api/coupons/sale", "")
	s.do("TEAPOT", "/nothing", "")
	s.do("GET", "/health", "")
	s.scrape()
	got := s.scrape() // counts the first scrape
	for labels, want := range map[string]string{
		`method="POST",route="/api/coupons",status="201"`:        "1",
		`method="POST",route="/api/coupons/claim",status="201"`:  "2",
		`method="POST",route="/api/coupons/claim",status="400"`:  "1",
		`method="POST",route="/api/coupons/claim",status="409"`:  "1",
		`method="GET",route="/api/coupons/{name}",status="200"`:  "1",
		`method="HEAD",route="/api/coupons/{name}",status="200"`: "1",
		`method="GET",route="/api/coupons/{name}",status="404"`:  "1",
		`method="GET",route="none",status="404"`:                 "1",
		`method="DELETE",route="none",status="405"`:              "1",
		`method="other",route="none",status="405"`:               "1",
		`method="other",route="none",status="404"`:               "1",
		`method="GET",route="/health",status="200"`:              "1",
		`method="GET",route="/metrics",status="200"`:             "1",
	} {
		if value := got[requestCount+"{"+labels+"}"]; value != want {
			t.Errorf("%s: %q, want %s", labels, value, want)
		}
		delete(got, requestCount+"{"+labels+"}")
	}
	for name := range got {
		if strings.HasPrefix(name, requestCount) {
			t.Errorf("unexpected series %s", name)
		}
	}
}

// The Store gets the request id in its context.
func TestRequestID_reachesStore(t *testing.T) {
	t.Parallel()
	s := serve(t)
	var seen []string
	s.store.called = func(ctx context.Context) { seen = append(seen, *ctx.Value(pgstore.RequestIDKey{}).(*string)) }
	s.do("POST", "/api/coupons/claim", adaClaims, "X-Request-ID", "claim")
	s.do("POST", "/api/coupons", sale, "X-Request-ID", "create")
	s.do("GET", "/api/coupons/sale", "", "X-Request-ID", "read")
	s.do("GET", "/health", "", "X-Request-ID", "ready")
	if want := []string{"claim", "create", "read", "ready"}; !slices.Equal(seen, want) {
		t.Errorf("the Store is called with the request ids %q, want %q", seen, want)
	}
}
