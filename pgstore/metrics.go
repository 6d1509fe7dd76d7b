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

// metrics holds what the store counts as it works. What can be read at any time (batchers, pool,
// schema) is read by Collect instead.
//
// A claim costs one lookup in a map that never changes and one atomic addition; everything else is
// counted once per call.
type metrics struct {
	outcomes   map[string]*atomic.Int64
	slowClaims prometheus.Counter
	batchSize  prometheus.Histogram
	duration   *prometheus.HistogramVec
	failures   *prometheus.CounterVec
}

// functions has the functions that are measured, by the SQL of the call.
var functions = map[string]string{
	claimCouponSQL:                   "claim_coupon",
	claimCouponSQL + setLockTimeout:  "claim_coupon",
	claimCouponsSQL:                  "claim_coupons",
	claimCouponsSQL + setLockTimeout: "claim_coupons",
	claimBatchSQL:                    "claim_batch",
	lockedCouponsSQL:                 "locked_coupons",
	createCouponSQL:                  "create_coupon",
	getCouponSQL:                     "get_coupon",
	claimersSQL:                      "coupon_claimers",
}

// The outcomes of a claim besides every ClaimStatus.
const (
	outcomeOverloaded  = "overloaded"      // ErrOverloaded
	outcomeUnavailable = "unavailable"     // ErrUnavailable
	outcomeUnknown     = "outcome_unknown" // ErrOutcomeUnknown
	outcomeCallerLeft  = "caller_left"     // the caller gave up before the claim was sent
	outcomeFailed      = "failed"          // an internal error
)

// outcomes returns all outcomes of a claim, in the order of Store.Outcomes.
func outcomes() []string {
	var all []string
	for _, status := range ClaimStatuses() {
		all = append(all, string(status))
	}
	return append(all, outcomeOverloaded, outcomeUnavailable, outcomeUnknown, outcomeCallerLeft, outcomeFailed)
}

// callBuckets, in seconds, reach from a rejection on an idle machine to the default of
// CLAIM_TIMEOUT.
var callBuckets = []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}

func newMetrics() *metrics {
	m := &metrics{
		outcomes: make(map[string]*atomic.Int64),
		slowClaims: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "coupond_slow_claims_total",
			Help: "Claims that took a tenth of CLAIM_TIMEOUT or longer, from arrival to the end of their call. The log has a sample of them.",
		}),
		batchSize: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "coupond_batch_size",
			Help:    "Claims sent in one call.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10), // up to maxBatch
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "coupond_database_call_duration_seconds",
			Help:    "Duration of function calls in the database, until all rows were read, failed calls included.",
			Buckets: callBuckets,
		}, []string{"function"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coupond_database_call_failures_total",
			Help: "Function calls in the database that failed. Most are retried once.",
		}, []string{"function"}),
	}
	for _, outcome := range outcomes() {
		m.outcomes[outcome] = new(atomic.Int64)
	}
	for _, function := range functions {
		m.duration.WithLabelValues(function)
		m.failures.WithLabelValues(function)
	}
	return m
}

// countClaim counts the outcome of a claim.
func (m *metrics) countClaim(status ClaimStatus, err error) {
	outcome := string(status)
	if err != nil {
		outcome = outcomeOfError(err)
	}
	if n, known := m.outcomes[outcome]; known {
		n.Add(1)
	}
}

func outcomeOfError(err error) string {
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		return outcomeUnknown
	case errors.Is(err, ErrOverloaded):
		return outcomeOverloaded
	case errors.Is(err, ErrUnavailable) && errors.Is(err, context.Canceled):
		return outcomeCallerLeft
	case errors.Is(err, ErrUnavailable):
		return outcomeUnavailable
	}
	return outcomeFailed
}

// countCall counts a call of one of our functions. Other SQL is not counted.
func (m *metrics) countCall(sql string, took time.Duration, err error) {
	function, ok := functions[sql]
	if !ok {
		return
	}
	m.duration.WithLabelValues(function).Observe(took.Seconds())
	if err != nil {
		m.failures.WithLabelValues(function).Inc()
	}
}

// Outcomes yields every outcome of a claim with the number of claims that had it.
func (s *Store) Outcomes() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for _, outcome := range outcomes() {
			if !yield(outcome, s.metrics.outcomes[outcome].Load()) {
				return
			}
		}
	}
}

// The metrics that Collect reads.
var (
	descClaims = prometheus.NewDesc("coupond_claims_total",
		"Claims by outcome: a claim_status, or the kind of error.", []string{"status"}, nil)
	descPending = prometheus.NewDesc("coupond_batcher_pending_claims",
		"Claims queued until the next call.", []string{"server"}, nil)
	descInFlight = prometheus.NewDesc("coupond_batcher_calls_in_flight",
		"Shared calls in flight: 0 to CLAIM_CONCURRENCY.", []string{"server"}, nil)
	descAlone = prometheus.NewDesc("coupond_batcher_coupons_alone",
		"Coupons with claims that are sent alone, because another transaction keeps the coupon locked or because a shared call of them failed.", []string{"server"}, nil)
	descQueueLimit = prometheus.NewDesc("coupond_batcher_queue_limit",
		"Largest number of pending claims per server (CLAIM_QUEUE); the next claim is answered 503.", nil, nil)
	descShard = prometheus.NewDesc("coupond_shard_healthy",
		"Whether a shard behind the proxy answers, completes commits and has the schema, by its last health check: 1 or 0. Missing without a proxy.",
		[]string{"shard"}, nil)
	descReady = prometheus.NewDesc("coupond_database_ready",
		"Whether claims could be made, by the last GET /health: 1 or 0. Missing before the first.", nil, nil)
	descSchema = prometheus.NewDesc("coupond_schema_version",
		"The schema version that this program needs.", nil, nil)
	descDatabaseSchema = prometheus.NewDesc("coupond_database_schema_version",
		"The schema version of the database, as last seen. Missing until it is seen.", nil, nil)
	descConnections = prometheus.NewDesc("coupond_pool_connections",
		"Connections to PostgreSQL for claims, creations and reads, without those for health checks.", []string{"state"}, nil)
	descConnectionLimit = prometheus.NewDesc("coupond_pool_connections_limit",
		"Largest number of connections in the pool: DB_MAX_CONNS minus those for health checks.", nil, nil)
	descOpened = prometheus.NewDesc("coupond_pool_connections_opened_total",
		"Connections opened.", nil, nil)
	descAcquires = prometheus.NewDesc("coupond_pool_acquires_total",
		"Connections acquired from the pool.", nil, nil)
	descWaits = prometheus.NewDesc("coupond_pool_waits_total",
		"Connections acquired from the pool after a wait, because none was idle.", nil, nil)
	descWaitSeconds = prometheus.NewDesc("coupond_pool_wait_seconds_total",
		"Time spent waiting for a connection, because none was idle.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Store) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		descClaims, descPending, descInFlight, descAlone, descQueueLimit, descShard, descReady, descSchema, descDatabaseSchema,
		descConnections, descConnectionLimit, descOpened, descAcquires, descWaits, descWaitSeconds,
	} {
		ch <- desc
	}
	for _, c := range s.metrics.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector. It sends nothing to the database.
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

	for number, srv := range s.all() {
		load, name := srv.batcher.load(), strconv.Itoa(number)
		gauge(descPending, float64(load.pending), name)
		gauge(descInFlight, float64(load.shared), name)
		gauge(descAlone, float64(load.solo), name)
	}
	gauge(descQueueLimit, float64(s.serverOf("").batcher.limit))
	for _, shard := range s.proxy.states() {
		gauge(descShard, oneIf(shard.Reason == ""), strconv.Itoa(shard.Number))
	}

	s.readiness.mu.Lock()
	last := s.readiness.last
	s.readiness.mu.Unlock()
	if last != nil {
		gauge(descReady, oneIf(last.result == nil))
	}
	gauge(descSchema, float64(s.schemaVersion))
	if version := s.readiness.schemaVersion.Load(); version != 0 {
		gauge(descDatabaseSchema, float64(version))
	}

	pool := s.pool.Stat()
	gauge(descConnections, float64(pool.AcquiredConns()), "acquired")
	gauge(descConnections, float64(pool.IdleConns()), "idle")
	gauge(descConnections, float64(pool.ConstructingConns()), "opening")
	gauge(descConnectionLimit, float64(pool.MaxConns()))
	count(descOpened, float64(pool.NewConnsCount()))
	count(descAcquires, float64(pool.AcquireCount()))
	count(descWaits, float64(pool.EmptyAcquireCount()))
	count(descWaitSeconds, pool.EmptyAcquireWaitTime().Seconds())
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.slowClaims, m.batchSize, m.duration, m.failures}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
