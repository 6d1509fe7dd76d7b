package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// scrape returns the text of /metrics, and each sample in it by name and labels.
func (c *client) scrape(t *testing.T) (text string, samples map[string]string) {
	t.Helper()
	a := c.must(t, http.MethodGet, "/metrics", "")
	if a.status != http.StatusOK {
		t.Fatalf("/metrics: %d %s", a.status, a.body)
	}
	samples = map[string]string{}
	for line := range strings.Lines(a.body) {
		if i := strings.LastIndexByte(line, ' '); !strings.HasPrefix(line, "#") {
			samples[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return a.body, samples
}

// The metrics match a known load, from the requests to the database calls.
func TestMetrics_knownLoad(t *testing.T) {
	t.Parallel()
	const stock, users, clients = 50, 400, 16
	p := start(t, environ(pgtest.New(t).URL, "CLAIM_CONCURRENCY=2"), "serve").ready(t)
	c := newClient(t, p.url, clients)
	c.create(t, "SALE", stock)
	requests := make([]claimRequest, 0, users+40)
	for i := range users {
		requests = append(requests, claimRequest{user: fmt.Sprint("user ", i), coupon: "SALE"})
	}
	counts := claimAll(t, requests, clients, c)
	var again []claimRequest // each winner claims again, and claims a coupon that does not exist
	for _, r := range requests {
		if r.outcome == "201" {
			again = append(again, claimRequest{user: r.user, coupon: "SALE"}, claimRequest{user: r.user, coupon: "none"})
		}
	}
	claimAll(t, again, clients, c)
	c.get(t, "SALE")
	if counts["201"] != stock {
		t.Fatalf("answers: %v", counts)
	}

	text, got := c.scrape(t)
	const seconds = "coupond_http_request_duration_seconds_count"
	for name, want := range map[string]string{
		`coupond_claims_total{status="claimed"}`:                                   "50",
		`coupond_claims_total{status="out_of_stock"}`:                              "350",
		`coupond_claims_total{status="already_claimed"}`:                           "50",
		`coupond_claims_total{status="coupon_not_found"}`:                          "50",
		`coupond_claims_total{status="overloaded"}`:                                "0",
		`coupond_claims_total{status="unavailable"}`:                               "0",
		`coupond_claims_total{status="outcome_unknown"}`:                           "0",
		`coupond_claims_total{status="caller_left"}`:                               "0",
		`coupond_claims_total{status="failed"}`:                                    "0",
		seconds + `{method="POST",route="/api/coupons",status="201"}`:              "1",
		seconds + `{method="POST",route="/api/coupons/claim",status="201"}`:        "50",
		seconds + `{method="POST",route="/api/coupons/claim",status="400"}`:        "350",
		seconds + `{method="POST",route="/api/coupons/claim",status="409"}`:        "50",
		seconds + `{method="POST",route="/api/coupons/claim",status="404"}`:        "50",
		seconds + `{method="GET",route="/api/coupons/{name}",status="200"}`:        "1",
		`coupond_batch_size_sum`:                                                   "500",
		`coupond_batcher_pending_claims{server="0"}`:                               "0",
		`coupond_batcher_calls_in_flight{server="0"}`:                              "0",
		`coupond_batcher_coupons_alone{server="0"}`:                                "0",
		`coupond_database_call_duration_seconds_count{function="create_coupon"}`:   "1",
		`coupond_database_call_duration_seconds_count{function="get_coupon"}`:      "1",
		`coupond_database_call_duration_seconds_count{function="coupon_claimers"}`: "1",
		`coupond_database_ready`:                                                   "1",
		`coupond_schema_version`:                                                   fmt.Sprint(db.Version()),
		`coupond_database_schema_version`:                                          fmt.Sprint(db.Version()),
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	// Each batch is one database call.
	calls := func(function string) (n int) {
		_, _ = fmt.Sscan(got[`coupond_database_call_duration_seconds_count{function="`+function+`"}`], &n)
		return n
	}
	if n := calls("claim_coupon") + calls("claim_coupons") + calls("claim_batch"); fmt.Sprint(n) != got["coupond_batch_size_count"] {
		t.Errorf("%d database calls, %s batches", n, got["coupond_batch_size_count"])
	}
	for _, name := range []string{"go_goroutines", "process_cpu_seconds_total", `coupond_build_info{commit="`} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("missing metric %s", name)
		}
	}
	t.Run("promtool", func(t *testing.T) { checkWithPromtool(t, text) })
}

// checkWithPromtool checks the metrics with Prometheus's linter.
func checkWithPromtool(t *testing.T, text string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("TEST_PROMTOOL") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if output, err := cmd.CombinedOutput(); err != nil || len(output) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, output)
	}
}
