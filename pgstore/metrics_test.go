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
)

// scrape is all that the store counts, less the buckets: by name and labels, as text.
func (s *stand) scrape(t testing.TB) map[string]string {
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

// wantSamples says that the store counts this.
func (s *stand) wantSamples(t *testing.T, want map[string]string) {
	t.Helper()
	got := s.scrape(t)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestMetricsOfAStore(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.ClaimConcurrency, cfg.ClaimQueue, cfg.MaxConns = 2, 7, 5 })
	if got := s.scrape(t); got["coupond_database_ready"] != "" || got["coupond_database_schema_version"] != "" {
		t.Errorf("before anybody has asked, it is told whether the database is ready: %v", got)
	}
	if err := s.Ready(t.Context()); err != nil {
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
	s.sendWithin(t, patience, crowd("u1", "b", "u2", "b", "u3", "a"))
	if _, _, err := s.Coupon(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	s.wantSamples(t, map[string]string{
		`coupond_claims_total{status="claimed"}`:                                   "2",
		`coupond_claims_total{status="already_claimed"}`:                           "1",
		`coupond_claims_total{status="out_of_stock"}`:                              "1",
		`coupond_claims_total{status="coupon_not_found"}`:                          "1",
		`coupond_claims_total{status="failed"}`:                                    "0",
		`coupond_claims_per_call_count`:                                            "6",
		`coupond_claims_per_call_sum`:                                              "8",
		`coupond_database_call_duration_seconds_count{function="claim_coupons"}`:   "5",
		`coupond_database_call_duration_seconds_count{function="claim_batch"}`:     "1",
		`coupond_database_call_duration_seconds_count{function="create_coupon"}`:   "2",
		`coupond_database_call_duration_seconds_count{function="get_coupon"}`:      "1",
		`coupond_database_call_duration_seconds_count{function="coupon_claimers"}`: "1",
		`coupond_database_call_failures_total{function="claim_coupons"}`:           "0",
		`coupond_lane_claims_waiting{lane="0"}`:                                    "0",
		`coupond_lane_calls_in_flight{lane="1"}`:                                   "0",
		`coupond_lane_queue_limit`:                                                 "7",
		`coupond_database_ready`:                                                   "1",
		`coupond_schema_version`:                                                   fmt.Sprint(s.schemaVersion),
		`coupond_database_schema_version`:                                          fmt.Sprint(s.state.version.Load()),
		`coupond_pool_connections{state="acquired"}`:                               "0",
		`coupond_pool_connections_limit`:                                           "4",
	})
	if s.state.version.Load() < s.schemaVersion || s.schemaVersion == 0 {
		t.Errorf("the schema has version %d, the program needs %d", s.state.version.Load(), s.schemaVersion)
	}
}

// A lane that works shows what it has to do; what its call brings is counted as a failure.
func TestMetricsOfABusyLane(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 10)
	unlock := s.lock(t, "c")
	var callers sync.WaitGroup
	claim := func(user string) {
		callers.Go(func() {
			if status, err := s.Claim(t.Context(), user, "c"); status != Claimed {
				t.Error(status, err)
			}
		})
	}
	claim("first")
	busy := func() bool { _, calls := s.lanes.groups[0][0].load(); return calls == 1 }
	eventually(t, "a call is in flight", busy)
	for i := range 3 {
		claim(fmt.Sprint(i))
	}
	eventually(t, "claims wait", func() bool { waiting, _ := s.lanes.groups[0][0].load(); return waiting == 3 })
	leaver, leave := context.WithCancel(t.Context())
	callers.Go(func() {
		if _, err := s.Claim(leaver, "leaver", "c"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	eventually(t, "one more waits", func() bool { waiting, _ := s.lanes.groups[0][0].load(); return waiting == 4 })
	leave()
	eventually(t, "he has left", func() bool { waiting, _ := s.lanes.groups[0][0].load(); return waiting == 3 })
	s.wantSamples(t, map[string]string{
		`coupond_lane_claims_waiting{lane="0"}`:  "3",
		`coupond_lane_calls_in_flight{lane="0"}`: "1",
	})
	unlock()
	callers.Wait()
	s.wantSamples(t, map[string]string{
		`coupond_claims_total{status="claimed"}`:     "4",
		`coupond_claims_total{status="caller_left"}`: "1",
	})
}

// What comes of a claim that has no status.
func TestOutcomesOfErrors(t *testing.T) {
	t.Parallel()
	m := newMetrics()
	left, leave := context.WithCancel(t.Context())
	leave()
	for _, err := range []error{
		fmt.Errorf("%w: full", ErrOverloaded),
		fmt.Errorf("%w: away", ErrUnavailable),
		fmt.Errorf("%w: %w", ErrUnavailable, context.DeadlineExceeded),
		fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrUnavailable, context.Canceled),
		gaveUp(left),
		errors.New("a fault"),
	} {
		m.claimed("", err)
	}
	got := map[string]int64{}
	for outcome, n := range m.outcomes {
		if n.Load() != 0 {
			got[outcome] = n.Load()
		}
	}
	want := map[string]int64{"overloaded": 1, "unavailable": 2, "outcome_unknown": 1, "caller_left": 1, "failed": 1}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// lines is a log, read line by line.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// with returns the lines that have this message.
func (l *lines) with(t *testing.T, message string) (found []map[string]any) {
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

// The lines about a claim name its request, and a slow one's say where its time went.
func TestLogOfASlowClaimThatFails(t *testing.T) {
	t.Parallel()
	log := new(lines)
	s := newStand(t, func(cfg *Config) { cfg.ClaimTimeout, cfg.Log = 4*time.Second, zerolog.New(log) })
	s.create(t, "c", 10)
	s.lock(t, "c")
	id := "request of the claim"
	ctx := context.WithValue(t.Context(), RequestIDKey{}, &id)
	if status, err := s.Claim(ctx, "u", "c"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(status, err)
	}
	failed := log.with(t, "a call of claims failed; asking again, coupon by coupon")
	if len(failed) != 1 || fmt.Sprint(failed[0]["request_ids"]) != "["+id+"]" {
		t.Errorf("of the failure, the log says %v", failed)
	}
	slow := log.with(t, slowMessage)
	if len(slow) != 1 {
		t.Fatalf("of the slow claim, the log says %v", slow)
	}
	line := slow[0]
	// Two lock_timeouts have passed in the database, whatever the machine does.
	if least := float64(2 * lockTimeout(s.timeout).Milliseconds()); line["database_ms"].(float64) < least {
		t.Errorf("%v ms were spent in the database, %v at the least", line["database_ms"], least)
	}
	if _, ok := line["queue_ms"].(float64); !ok || line["request_id"] != id || line["coupon"] != "c" ||
		line["claims"] != 1.0 || line["slow"] != 1.0 || line["level"] != "warn" {
		t.Errorf("the line is %v", line)
	}
	s.wantSamples(t, map[string]string{
		`coupond_claims_slow_total`:                                      "1",
		`coupond_claims_total{status="unavailable"}`:                     "1",
		`coupond_database_call_failures_total{function="claim_coupons"}`: "2",
	})
}

// A night on which every claim is slow does not become slower by the log.
func TestLogOfSlowClaimsIsBounded(t *testing.T) {
	t.Parallel()
	log := new(lines)
	s := newStand(t, func(cfg *Config) { cfg.Log = zerolog.New(log) })
	began := time.Now()
	crowd := make([]*claim, 100)
	for i := range crowd {
		crowd[i] = &claim{user: "u", coupon: "c", request: fmt.Sprint("r", i), since: began.Add(-time.Minute)}
	}
	const calls = 500
	for range calls {
		s.tellSlow(crowd, time.Now())
	}
	seconds := int(time.Since(began).Seconds()) + 1
	if n := len(log.with(t, slowMessage)); n < 1 || n > 10*(seconds+1) {
		t.Errorf("%d lines in %d s", n, seconds)
	}
	s.wantSamples(t, map[string]string{`coupond_claims_slow_total`: fmt.Sprint(calls * len(crowd))})

	crowd[0].since = time.Now()
	before := len(log.with(t, slowMessage))
	s.tellSlow(crowd[:1], time.Now())
	if n := len(log.with(t, slowMessage)); n != before {
		t.Error("a claim that was not slow is in the log")
	}
}

// Who asks about a request finds it in the log also where it was not a claim.
func TestLogNamesTheRequest(t *testing.T) {
	t.Parallel()
	log := new(lines)
	s := newStand(t, func(cfg *Config) { cfg.Log = zerolog.New(log) })
	id := "request of the probe"
	ctx := context.WithValue(t.Context(), RequestIDKey{}, &id)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if ready := log.with(t, "the database is ready"); len(ready) != 1 || ready[0]["request_id"] != id {
		t.Errorf("the log says %v", ready)
	}
	s.cutFirst("create_coupon", faultproxy.CutBeforeCommit)
	id = "request of the creation"
	_, _ = s.CreateCoupon(ctx, "c", 1)
	if failed := log.with(t, "creating a coupon failed; asking again"); len(failed) != 1 || failed[0]["request_id"] != id {
		t.Errorf("the log says %v", failed)
	}
}
