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

// requestCounts returns the counts of requests in /metrics by their labels.
func (s *service) requestCounts() map[string]string {
	s.tb.Helper()
	got := s.do("GET", "/metrics", "")
	got.want(s.tb, 200, "")
	counts := map[string]string{}
	for line := range strings.Lines(got.body) {
		if rest, ok := strings.CutPrefix(line, "coupond_http_request_duration_seconds_count{"); ok {
			labels, count, _ := strings.Cut(strings.TrimSpace(rest), "} ")
			counts[labels] = count
		}
	}
	return counts
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
