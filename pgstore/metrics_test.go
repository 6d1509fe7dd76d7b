package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/wait"
)

// scrape returns all samples of the store except buckets: values by name and labels, as text.
func (s *testStore) scrape(t testing.TB) map[string]string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Store)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
			t.Fatal(err)
		}
	}
	samples := map[string]string{}
	for line := range strings.Lines(text.String()) {
		if i := strings.LastIndexByte(line, ' '); !strings.HasPrefix(line, "#") && !strings.Contains(line, "_bucket{") {
			samples[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return samples
}

// wantSamples checks the values of some samples.
func (s *testStore) wantSamples(t *testing.T, want map[string]string) {
	t.Helper()
	got := s.scrape(t)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestMetrics_store(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimConcurrency, cfg.ClaimQueue, cfg.MaxConns = 2, 7, 5 })
	if got := s.scrape(t); got["coupond_database_ready"] != "" || got["coupond_database_schema_version"] != "" {
		t.Errorf("before the first Ready, there is a sample for it: %v", got)
	}
	if _, err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, coupon := range []string{"a", "b"} {
		if _, err := s.CreateCoupon(t.Context(), coupon, 2); err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"u1", "u1", "u2", "u3"} {
		_, _ = s.Claim(t.Context(), user, "a")
	}
	_, _ = s.Claim(t.Context(), "u1", "nothing")
	s.sendWithin(t, longTimeout, newClaims("u1", "b", "u2", "b", "u3", "a"))
	s.sendWithin(t, longTimeout, newClaims("u1", "b", "u3", "b"))
	if _, _, err := s.Coupon(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.wantSamples(t, map[string]string{
		`coupond_claims_total{status="claimed"}`:                                   "2",
		`coupond_claims_total{status="already_claimed"}`:                           "1",
		`coupond_claims_total{status="out_of_stock"}`:                              "1",
		`coupond_claims_total{status="coupon_not_found"}`:                          "1",
		`coupond_claims_total{status="failed"}`:                                    "0",
		`coupond_batch_size_count`:                                                 "7",
		`coupond_batch_size_sum`:                                                   "10",
		`coupond_database_call_duration_seconds_count{function="claim_coupon"}`:    "5",
		`coupond_database_call_duration_seconds_count{function="claim_coupons"}`:   "1",
		`coupond_database_call_duration_seconds_count{function="claim_batch"}`:     "1",
		`coupond_database_call_duration_seconds_count{function="create_coupon"}`:   "2",
		`coupond_database_call_duration_seconds_count{function="get_coupon"}`:      "1",
		`coupond_database_call_duration_seconds_count{function="coupon_claimers"}`: "1",
		`coupond_database_call_failures_total{function="claim_coupon"}`:            "0",
		`coupond_batcher_pending_claims{server="0"}`:                               "0",
		`coupond_batcher_calls_in_flight{server="0"}`:                              "0",
		`coupond_batcher_coupons_alone{server="0"}`:                                "0",
		`coupond_batcher_queue_limit`:                                              "7",
		`coupond_database_ready`:                                                   "1",
		`coupond_schema_version`:                                                   fmt.Sprint(s.schemaVersion),
		`coupond_database_schema_version`:                                          fmt.Sprint(s.readiness.schemaVersion.Load()),
		`coupond_pool_connections{state="acquired"}`:                               "0",
		`coupond_pool_connections_limit`:                                           "3",
	})
	if s.readiness.schemaVersion.Load() < s.schemaVersion || s.schemaVersion == 0 {
		t.Errorf("the schema has version %d, want at least %d and more than 0", s.readiness.schemaVersion.Load(), s.schemaVersion)
	}
}

func TestMetrics_busyBatcher(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 10)
	unlock := s.lock(t, "c")
	var callers sync.WaitGroup
	claim := func(user string) {
		callers.Go(func() {
			s.wantClaim(t, user, "c", Claimed)
		})
	}
	claim("first")
	pending := func() int { return s.serverOf("c").batcher.load().pending }
	wait.For(t, "a call in flight", func() bool { return s.serverOf("c").batcher.busy() })
	for i := range 3 {
		claim(fmt.Sprint(i))
	}
	wait.For(t, "three pending claims", func() bool { return pending() == 3 })
	canceled, cancel := context.WithCancel(t.Context())
	callers.Go(func() {
		if _, err := s.Claim(canceled, "canceled", "c"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	wait.For(t, "a fourth pending claim", func() bool { return pending() == 4 })
	cancel()
	wait.For(t, "its withdrawal", func() bool { return pending() == 3 })
	s.wantSamples(t, map[string]string{
		`coupond_batcher_pending_claims{server="0"}`:  "3",
		`coupond_batcher_calls_in_flight{server="0"}`: "1",
	})
	unlock()
	callers.Wait()
	s.wantSamples(t, map[string]string{
		`coupond_claims_total{status="claimed"}`:     "4",
		`coupond_claims_total{status="caller_left"}`: "1",
	})
}

func TestMetrics_outcomesOfErrors(t *testing.T) {
	t.Parallel()
	m := newMetrics()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{
		fmt.Errorf("%w: full", ErrOverloaded),
		fmt.Errorf("%w: no connection", ErrUnavailable),
		fmt.Errorf("%w: %w", ErrUnavailable, context.DeadlineExceeded),
		fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrUnavailable, context.Canceled),
		contextEnded(canceled),
		errors.New("internal"),
	} {
		m.countClaim("", err)
	}
	got := map[string]int64{}
	for outcome, n := range m.outcomes {
		if n.Load() != 0 {
			got[outcome] = n.Load()
		}
	}
	want := map[string]int64{"overloaded": 1, "unavailable": 2, "outcome_unknown": 1, "caller_left": 1, "failed": 1}
	if !maps.Equal(got, want) {
		t.Errorf("outcomes are %v, want %v", got, want)
	}
}

// logBuffer is the output of a Logger.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// with returns the fields of the lines that have this message.
func (l *logBuffer) with(t *testing.T, message string) (found []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range bytes.Lines(l.text.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatal(err)
		}
		if fields["message"] == message {
			found = append(found, fields)
		}
	}
	return found
}

const slowMessage = "a claim was slow"

// A log line about a claim has its request id, and that of a slow claim says where its time was
// spent.
func TestLog_slowClaimThatFails(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newTestStore(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.Log = 4*time.Second, zerolog.New(log) })
	s.create(t, "c", 10)
	s.lock(t, "c")
	id := "request of the claim"
	ctx := context.WithValue(t.Context(), RequestIDKey{}, &id)
	if status, err := s.Claim(ctx, "u", "c"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(status, err)
	}
	failed := log.with(t, "a call of claims failed; its coupons are sent alone")
	if len(failed) != 1 || fmt.Sprint(failed[0]["request_ids"]) != "["+id+"]" {
		t.Errorf("log lines of the failed call: %v", failed)
	}
	slow := log.with(t, slowMessage)
	if len(slow) != 1 {
		t.Fatalf("log lines of the slow claim: %v", slow)
	}
	line := slow[0]
	// Both attempts ended with a lock_timeout, the shared call's and the solo call's.
	if least := float64((sharedLockTimeout(s.timeout) + lockTimeout(s.timeout)).Milliseconds()); line["database_ms"].(float64) < least {
		t.Errorf("database_ms is %v, want at least %v", line["database_ms"], least)
	}
	if _, ok := line["queue_ms"].(float64); !ok || line["request_id"] != id || line["coupon"] != "c" ||
		line["claims"] != 1.0 || line["slow"] != 1.0 || line["level"] != "warn" {
		t.Errorf("log line of the slow claim: %v", line)
	}
	s.wantSamples(t, map[string]string{
		`coupond_slow_claims_total`:                                     "1",
		`coupond_claims_total{status="unavailable"}`:                    "1",
		`coupond_database_call_failures_total{function="claim_coupon"}`: "2",
	})
}

func TestLog_slowClaimsAreSampled(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newTestStore(t, func(cfg *Config) { cfg.Log = zerolog.New(log) })
	began := time.Now()
	batch := make([]*claim, 100)
	for i := range batch {
		batch[i] = &claim{user: "u", coupon: "c", requestID: fmt.Sprint("r", i), arrived: began.Add(-time.Minute)}
	}
	const calls = 500
	for range calls {
		s.serverOf("c").logSlowCall(batch)
	}
	seconds := int(time.Since(began).Seconds()) + 1
	if n := len(log.with(t, slowMessage)); n < 1 || n > 10*(seconds+1) {
		t.Errorf("%d lines in %d s, want at least 1 and at most 10 per second", n, seconds)
	}
	s.wantSamples(t, map[string]string{`coupond_slow_claims_total`: fmt.Sprint(calls * len(batch))})

	batch[0].arrived = time.Now()
	before := len(log.with(t, slowMessage))
	s.serverOf("c").logSlowCall(batch[:1])
	if n := len(log.with(t, slowMessage)); n != before {
		t.Error("a claim that was not slow was logged")
	}
}

// Log lines about requests other than claims have the request id as well.
func TestLog_requestID(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newTestStore(t, func(cfg *Config) { cfg.Log = zerolog.New(log) })
	id := "request of the health check"
	ctx := context.WithValue(t.Context(), RequestIDKey{}, &id)
	if _, err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if ready := log.with(t, "the database is ready"); len(ready) != 1 || ready[0]["request_id"] != id {
		t.Errorf("log lines: %v", ready)
	}
	s.injectOnce("create_coupon", faultproxy.CutBeforeCommit)
	id = "request of the creation"
	_, _ = s.CreateCoupon(ctx, "c", 1)
	if failed := log.with(t, "creating a coupon failed once"); len(failed) != 1 || failed[0]["request_id"] != id {
		t.Errorf("log lines: %v", failed)
	}
}
