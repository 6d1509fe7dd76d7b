package pgstore

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the store counts while it works. What can be read when somebody
// looks (lanes, pool, schema) is not counted but read then: see Collect.
//
// A claim pays one look into a map that never changes and one atomic addition for it;
// the rest is paid once a call.
type metrics struct {
	outcomes map[string]*atomic.Int64
	slow     prometheus.Counter
	crowd    prometheus.Histogram
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
	calls    map[string]callMetrics // by their SQL
}

// callMetrics is what is known of the calls of one function.
type callMetrics struct {
	duration prometheus.Observer
	failures prometheus.Counter
}

// The outcomes of a claim that are no ClaimStatus.
const (
	outcomeOverloaded  = "overloaded"      // ErrOverloaded
	outcomeUnavailable = "unavailable"     // ErrUnavailable
	outcomeUnknown     = "outcome_unknown" // ErrOutcomeUnknown
	outcomeLeft        = "caller_left"     // the caller left before his claim was sent
	outcomeFailed      = "failed"          // a fault of ours
)

// outcomes lists all that can come of a claim, in the order of Store.Outcomes.
func outcomes() []string {
	var all []string
	for _, status := range ClaimStatuses() {
		all = append(all, string(status))
	}
	return append(all, outcomeOverloaded, outcomeUnavailable, outcomeUnknown, outcomeLeft, outcomeFailed)
}

// callBuckets, in seconds, go from a look that finds nothing left, on a machine with
// nothing else to do, to the default of CLAIM_TIMEOUT.
var callBuckets = []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

func newMetrics() *metrics {
	m := &metrics{
		outcomes: make(map[string]*atomic.Int64),
		slow: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coupond_claims_slow_total",
			Help: "Claims whose call ended a tenth of CLAIM_TIMEOUT or more after they came. The log has a few of them.",
		}),
		crowd: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "coupond_claims_per_call",
			Help:    "Claims that travelled together in one call of their lane.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10), // to mostInCall
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coupond_database_call_duration_seconds",
			Help:    "Calls of functions in the database, until all rows were read, whether they ended well or not.",
			Buckets: callBuckets,
		}, []string{"function"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coupond_database_call_failures_total",
			Help: "Calls of functions in the database that failed. Most are made once more.",
		}, []string{"function"}),
		calls: make(map[string]callMetrics),
	}
	for _, outcome := range outcomes() {
		m.outcomes[outcome] = new(atomic.Int64)
	}
	for sql, function := range map[string]string{
		claimCouponsSQL: "claim_coupons",
		claimBatchSQL:   "claim_batch",
		createCouponSQL: "create_coupon",
		getCouponSQL:    "get_coupon",
		claimersSQL:     "coupon_claimers",
	} {
		m.calls[sql] = callMetrics{m.duration.WithLabelValues(function), m.failures.WithLabelValues(function)}
	}
	return m
}

// claimed counts what came of a claim.
func (m *metrics) claimed(status ClaimStatus, err error) {
	outcome := string(status)
	if err != nil {
		outcome = outcomeOf(err)
	}
	if n, known := m.outcomes[outcome]; known {
		n.Add(1)
	}
}

func outcomeOf(err error) string {
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		return outcomeUnknown
	case errors.Is(err, ErrOverloaded):
		return outcomeOverloaded
	case errors.Is(err, ErrUnavailable) && errors.Is(err, context.Canceled):
		return outcomeLeft
	case errors.Is(err, ErrUnavailable):
		return outcomeUnavailable
	}
	return outcomeFailed
}

// called notes a call of one of our functions; other SQL is not counted.
func (m *metrics) called(sql string, took time.Duration, err error) {
	call, ours := m.calls[sql]
	if !ours {
		return
	}
	call.duration.Observe(took.Seconds())
	if err != nil {
		call.failures.Inc()
	}
}

// Outcomes yields all that can come of a claim, and how often it has.
func (s *Store) Outcomes() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for _, outcome := range outcomes() {
			if !yield(outcome, s.metrics.outcomes[outcome].Load()) {
				return
			}
		}
	}
}

// What is read when somebody looks.
var (
	descClaims = prometheus.NewDesc("coupond_claims_total",
		"Claims by what came of them: a claim_status, or why there is none.", []string{"status"}, nil)
	descWaiting = prometheus.NewDesc("coupond_lane_claims_waiting",
		"Claims that wait in a lane for the call in flight to end.", []string{"lane"}, nil)
	descInFlight = prometheus.NewDesc("coupond_lane_calls_in_flight",
		"Calls of claims in flight in a lane: 0 or 1.", []string{"lane"}, nil)
	descQueue = prometheus.NewDesc("coupond_lane_queue_limit",
		"Claims that may wait in a lane (CLAIM_QUEUE); the next one is answered 503.", nil, nil)
	descShard = prometheus.NewDesc("coupond_shard_healthy",
		"Whether a shard behind the proxy answers, gets its commits done and has the schema, as found a moment ago: 1 or 0. Missing without a proxy.", []string{"shard"}, nil)
	descReady = prometheus.NewDesc("coupond_database_ready",
		"Whether claims could be made when somebody last asked (GET /health): 1 or 0. Missing until then.", nil, nil)
	descSchema = prometheus.NewDesc("coupond_schema_version",
		"The version of the schema that this program needs.", nil, nil)
	descDatabaseSchema = prometheus.NewDesc("coupond_database_schema_version",
		"The version of the database's schema, as last seen. Missing until it was.", nil, nil)
	descConnections = prometheus.NewDesc("coupond_pool_connections",
		"Connections to PostgreSQL for claims, creations and reads. The one for health checks is not among them.", []string{"state"}, nil)
	descMost = prometheus.NewDesc("coupond_pool_connections_limit",
		"The most connections that the pool may have: DB_MAX_CONNS less the one for health checks.", nil, nil)
	descOpened = prometheus.NewDesc("coupond_pool_connections_opened_total",
		"Connections that were made.", nil, nil)
	descAcquires = prometheus.NewDesc("coupond_pool_acquires_total",
		"Connections that were got from the pool.", nil, nil)
	descWaits = prometheus.NewDesc("coupond_pool_waits_total",
		"Connections that were got from the pool after a wait, because none was idle.", nil, nil)
	descWait = prometheus.NewDesc("coupond_pool_wait_seconds_total",
		"Time that was waited for a connection because none was idle.", nil, nil)
)

// Describe is prometheus.Collector's.
func (s *Store) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descClaims, descWaiting, descInFlight, descQueue, descShard, descReady, descSchema, descDatabaseSchema,
		descConnections, descMost, descOpened, descAcquires, descWaits, descWait,
	} {
		ch <- desc
	}
	for _, c := range s.metrics.collectors() {
		c.Describe(ch)
	}
}

// Collect is prometheus.Collector's. It asks no database.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	count := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, value, labels...)
	}
	for outcome, n := range s.Outcomes() {
		count(descClaims, float64(n), outcome)
	}
	for _, c := range s.metrics.collectors() {
		c.Collect(ch)
	}

	for name, lane := range s.lanes.all() {
		waiting, inFlight := lane.load()
		gauge(descWaiting, float64(waiting), name)
		gauge(descInFlight, float64(inFlight), name)
	}
	gauge(descQueue, float64(s.lanes.limit))
	for _, shard := range s.Shards() {
		healthy := 0.0
		if shard.Reason == "" {
			healthy = 1
		}
		gauge(descShard, healthy, strconv.Itoa(shard.Number))
	}

	s.state.mu.Lock()
	asked, ready := s.state.asked, s.state.why == ""
	s.state.mu.Unlock()
	switch {
	case !asked:
	case ready:
		gauge(descReady, 1)
	default:
		gauge(descReady, 0)
	}
	gauge(descSchema, float64(s.schemaVersion))
	if version := s.state.version.Load(); version != 0 {
		gauge(descDatabaseSchema, float64(version))
	}

	pool := s.pool.Stat()
	gauge(descConnections, float64(pool.AcquiredConns()), "acquired")
	gauge(descConnections, float64(pool.IdleConns()), "idle")
	gauge(descConnections, float64(pool.ConstructingConns()), "opening")
	gauge(descMost, float64(pool.MaxConns()))
	count(descOpened, float64(pool.NewConnsCount()))
	count(descAcquires, float64(pool.AcquireCount()))
	count(descWaits, float64(pool.EmptyAcquireCount()))
	count(descWait, pool.EmptyAcquireWaitTime().Seconds())
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.slow, m.crowd, m.duration, m.failures}
}
