package main

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/oasdiff/yaml"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// scrape returns the text of /metrics, and each sample in it by name and labels.
func (c *client) scrape(t *testing.T) (text string, samples map[string]string) {
	t.Helper()
	a := c.must(t, http.MethodGet, "/metrics", "")
	if a.Status != http.StatusOK {
		t.Fatalf("/metrics: %d %s", a.Status, a.body)
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
	const stock, users = 50, 400
	p, c := serve(t, "CLAIM_CONCURRENCY=2")
	sell(t, stock, users, 16, claimsOf(rangeOf(users)), p)
	for _, user := range p.coupon(t, saleCoupon).ClaimedBy { // each winner claims again, and a coupon that does not exist
		for _, coupon := range []string{saleCoupon, "none"} {
			if a, err := c.claim(user, coupon); err != nil || a.Status != http.StatusConflict && a.Status != http.StatusNotFound {
				t.Errorf("%s claims %s again: %+v %v", user, coupon, a, err)
			}
		}
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
		seconds + `{method="GET",route="/api/coupons/{name}",status="200"}`:        "2",
		`coupond_batch_size_sum`:                                                   "500",
		`coupond_batcher_pending_claims{server="0"}`:                               "0",
		`coupond_batcher_calls_in_flight{server="0"}`:                              "0",
		`coupond_batcher_coupons_alone{server="0"}`:                                "0",
		`coupond_database_call_duration_seconds_count{function="create_coupon"}`:   "1",
		`coupond_database_call_duration_seconds_count{function="get_coupon"}`:      "2",
		`coupond_database_call_duration_seconds_count{function="coupon_claimers"}`: "2",
		`coupond_database_ready`:                                                   "1",
		`coupond_schema_version`:                                                   fmt.Sprint(db.Version()),
		`coupond_database_schema_version`:                                          fmt.Sprint(db.Version()),
		`coupond_log_lines_dropped_total`:                                          "0",
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
	t.Run("observability", func(t *testing.T) { checkExported(t, text) })
}

func rangeOf(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
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

// observability is the folder with the configuration of Prometheus and Grafana.
const observability = "../../deploy/observability"

func readText(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	must(t, err)
	return string(text)
}

// readYAML reads a YAML or JSON file of that folder; JSON is a subset of YAML.
func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	if _, err := yaml.Unmarshal([]byte(readText(t, observability, name)), into, yaml.DecodeOpts{}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// checkExported checks that every metric coupond_…, and every status of a claim, that the dashboard
// and the alerts name is exported. Otherwise a panel stays empty, or an alert never fires.
func checkExported(t *testing.T, exported string) {
	t.Helper()
	for name, q := range queries(t) {
		for _, column := range q.Metrics {
			for column := range column {
				exported += " " + name + "_" + column
			}
		}
	}
	exported += " coupond_shard_healthy" // behind a proxy only: TestShards_deadAndSilent in pgstore
	metric, claims := regexp.MustCompile(`\bcoupond_\w+`), regexp.MustCompile(`coupond_claims_total\{status=~?\\?"([\w|]*)`)
	for _, file := range []string{"grafana/dashboards/coupons.json", "rules.yml"} {
		text := readText(t, observability, file)
		used := metric.FindAllString(text, -1)
		if len(used) < 20 {
			t.Errorf("%s: only %d names of metrics were found", file, len(used))
		}
		for _, name := range used {
			if !regexp.MustCompile(`\b` + name + `\b`).MatchString(exported) {
				t.Errorf("%s uses %s, which is not exported", file, name)
			}
		}
		for _, match := range claims.FindAllStringSubmatch(text, -1) {
			for status := range strings.SplitSeq(match[1], "|") {
				if !strings.Contains(exported, `coupond_claims_total{status="`+status+`"}`) {
					t.Errorf("%s uses the claim status %q, which does not exist", file, status)
				}
			}
		}
	}
}

// query is a query of postgres.yml.
type query struct {
	Query   string
	Metrics []map[string]struct{ Usage, Description string }
}

func queries(t *testing.T) (all map[string]query) {
	t.Helper()
	readYAML(t, "postgres.yml", &all)
	return all
}

// The dashboard can be loaded into Grafana: ids are unique, and each panel has queries to the
// provisioned data source.
func TestObservability_dashboard(t *testing.T) {
	t.Parallel()
	type source struct{ UID, Type string }
	var provisioned struct{ Datasources []source }
	readYAML(t, "grafana/provisioning/datasources/prometheus.yml", &provisioned)
	var dashboard struct {
		Panels []struct {
			ID          int
			Type, Title string
			Datasource  source
			Targets     []struct{ RefID, Expr string }
		}
	}
	readYAML(t, "grafana/dashboards/coupons.json", &dashboard)
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %q: no title, or id %d is 0 or not unique", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && (p.Datasource != provisioned.Datasources[0] || len(p.Targets) == 0) {
			t.Errorf("panel %q has the data source %+v and %d queries, want %+v", p.Title, p.Datasource, len(p.Targets), provisioned.Datasources[0])
		}
		for i, target := range p.Targets {
			if target.RefID != string(rune('A'+i)) || target.Expr == "" {
				t.Errorf("panel %q: query %d is %+v", p.Title, i, target)
			}
		}
	}
	if len(dashboard.Panels) < 20 {
		t.Errorf("the dashboard has %d panels", len(dashboard.Panels))
	}
}

// docs/operations.md has one section for each alert, in the same order.
func TestObservability_alertsAreDocumented(t *testing.T) {
	t.Parallel()
	_, chapter, _ := strings.Cut(readText(t, "../../docs/operations.md"), "\n## Alerts\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	documented := regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(chapter, -1)
	alerts := regexp.MustCompile(`(?m)^ *- alert: (.*)$`).FindAllStringSubmatch(readText(t, observability, "rules.yml"), -1)
	sameName := func(a, b []string) bool { return a[1] == b[1] }
	if len(alerts) < 10 || !slices.EqualFunc(documented, alerts, sameName) {
		t.Errorf("docs/operations.md has sections for %q, the rules have %q", documented, alerts)
	}
}

// The queries of postgres.yml work for a role with no other privileges than pg_monitor, return the
// declared columns, and show updates and waiting claims.
func TestObservability_postgresQueries(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	watcher, holder, claimer := database.Connect(t), database.Connect(t), database.Connect(t)
	// One transaction holds the lock of the coupon, and a claim waits for it.
	mustExec(t, claimer, "select coupond.create_coupon('SALE', 10)", "select coupond.claim_coupon('ann', 'SALE')",
		"select pg_catalog.pg_stat_force_next_flush()", "select 1")
	mustExec(t, holder, "begin isolation level repeatable read", "select from coupond.coupons for update")
	waited := make(chan error, 1)
	go func() {
		_, err := claimer.Exec(t.Context(), "select coupond.claim_coupon('bob', 'SALE')")
		waited <- err
	}()
	mustExec(t, watcher, "set role pg_monitor")

	run := func(name string, q query) (rows []map[string]any) {
		t.Helper()
		result, err := watcher.Query(t.Context(), q.Query)
		if err == nil {
			rows, err = pgx.CollectRows(result, pgx.RowToMap)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return rows
	}
	all := queries(t)
	for name, q := range all {
		var declared []string
		for _, column := range q.Metrics {
			for column, metric := range column {
				declared = append(declared, column)
				if metric.Description == "" || !slices.Contains([]string{"LABEL", "COUNTER", "GAUGE"}, metric.Usage) ||
					(metric.Usage == "COUNTER") != strings.HasSuffix(column, "_total") {
					t.Errorf("%s.%s is %+v", name, column, metric)
				}
			}
		}
		slices.Sort(declared)
		rows := run(name, q)
		if len(rows) == 0 {
			t.Errorf("%s returns no row", name)
		}
		for _, row := range rows {
			if got := slices.Sorted(maps.Keys(row)); !slices.Equal(got, declared) {
				t.Errorf("%s returns the columns %q, declared are %q", name, got, declared)
			}
		}
	}
	waiting := func(n int64) func() bool {
		return func() bool { return run("locks", all["coupond_pg_locks"])[0]["waiting"] == n }
	}
	wait.For(t, "one HOT update", func() bool {
		return slices.ContainsFunc(run("table", all["coupond_pg_table"]), func(row map[string]any) bool {
			return row["relname"] == "coupons" && row["updates_total"] == int64(1) && row["hot_updates_total"] == int64(1)
		})
	})
	wait.For(t, "one waiting claim", waiting(1))
	mustExec(t, holder, "rollback")
	must(t, <-waited)
	wait.For(t, "no waiting claim", waiting(0))
}
