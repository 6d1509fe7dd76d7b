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
			Help:    "Claims sent in one call, second attempts included.",
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

// Describe implements prometheus.Collector. It sends nothing, which leaves the metrics to Collect:
// shards come and go.
func (s *Store) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. It sends nothing to the database.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{s.metrics.slowClaims, s.metrics.batchSize, s.metrics.duration, s.metrics.failures} {
		c.Collect(ch)
	}
	type labels = prometheus.Labels
	send := func(kind prometheus.ValueType, value float64, l labels, name, help string) {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, l), kind, value)
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue

	for outcome, n := range s.Outcomes() {
		send(counter, float64(n), labels{"status": outcome}, "coupond_claims_total",
			"Claims by outcome: a claim_status, or the kind of error.")
	}
	for number, srv := range s.all() {
		load, of := srv.batcher.load(), labels{"server": strconv.Itoa(number)}
		send(gauge, float64(load.pending), of, "coupond_batcher_pending_claims",
			"Claims queued until the next call.")
		send(gauge, float64(load.shared), of, "coupond_batcher_calls_in_flight",
			"Shared calls in flight: 0 to CLAIM_CONCURRENCY.")
		send(gauge, float64(load.solo), of, "coupond_batcher_coupons_alone",
			"Coupons with claims that are sent alone, because another transaction keeps the coupon locked or because a shared call of them failed.")
	}
	send(gauge, float64(s.serverOf("").batcher.limit), nil, "coupond_batcher_queue_limit",
		"Largest number of pending claims per server (CLAIM_QUEUE); the next claim is answered 503.")
	for _, shard := range s.proxy.states() {
		send(gauge, oneIf(shard.Reason == ""), labels{"shard": strconv.Itoa(shard.Number)}, "coupond_shard_healthy",
			"Whether a shard behind the proxy answers, completes commits and has the schema, by its last health check: 1 or 0. Missing without a proxy.")
	}
	if last := s.readiness.last.Load(); last != nil {
		send(gauge, oneIf(last.result == nil), nil, "coupond_database_ready",
			"Whether claims could be made, by the last GET /health: 1 or 0. Missing before the first.")
	}
	send(gauge, float64(s.schemaVersion), nil, "coupond_schema_version",
		"The schema version that this program needs.")
	if version := s.readiness.schemaVersion.Load(); version != 0 {
		send(gauge, float64(version), nil, "coupond_database_schema_version",
			"The schema version of the database, as last seen. Missing until it is seen.")
	}

	pool := s.pool.Stat()
	for state, n := range map[string]int32{
		"acquired": pool.AcquiredConns(), "idle": pool.IdleConns(), "opening": pool.ConstructingConns(),
	} {
		send(gauge, float64(n), labels{"state": state}, "coupond_pool_connections",
			"Connections to PostgreSQL for claims, creations and reads, without those for health checks.")
	}
	send(gauge, float64(pool.MaxConns()), nil, "coupond_pool_connections_limit",
		"Largest number of connections in the pool: DB_MAX_CONNS minus those for health checks.")
	send(counter, float64(pool.NewConnsCount()), nil, "coupond_pool_connections_opened_total",
		"Connections opened.")
	send(counter, float64(pool.AcquireCount()), nil, "coupond_pool_acquires_total",
		"Connections acquired from the pool.")
	send(counter, float64(pool.EmptyAcquireCount()), nil, "coupond_pool_waits_total",
		"Connections acquired from the pool after a wait, because none was idle.")
	send(counter, pool.EmptyAcquireWaitTime().Seconds(), nil, "coupond_pool_wait_seconds_total",
		"Time spent waiting for a connection, because none was idle.")
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
