package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/oasdiff/yaml"

	"scalable-coupon-system/internal/pgtest"
)

// observability is the folder with the configuration of Prometheus and Grafana.
const observability = "../../deploy/observability"

// readYAML reads a YAML or JSON file of that folder; JSON is a subset of YAML.
func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(observability, filepath.FromSlash(name)))
	if err == nil {
		_, err = yaml.Unmarshal(text, into, yaml.DecodeOpts{})
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// panel is a panel of the dashboard.
type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource struct{ Type, UID string }
	Targets    []struct{ RefID, Expr string }
	GridPos    struct{ X, Y, W, H int }
}

func panels(t *testing.T) []panel {
	t.Helper()
	var dashboard struct{ Panels []panel }
	readYAML(t, "grafana/dashboards/coupons.json", &dashboard)
	if len(dashboard.Panels) < 20 {
		t.Fatalf("the dashboard has %d panels", len(dashboard.Panels))
	}
	return dashboard.Panels
}

type rule struct{ Alert, Expr string }

func rules(t *testing.T) []rule {
	t.Helper()
	var file struct{ Groups []struct{ Rules []rule } }
	readYAML(t, "rules.yml", &file)
	var all []rule
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) < 10 {
		t.Fatalf("there are %d rules", len(all))
	}
	return all
}

// query is a query of postgres.yml.
type query struct {
	Query   string
	Metrics []map[string]struct{ Usage, Description string }
}

func queries(t *testing.T) map[string]query {
	t.Helper()
	var all map[string]query
	readYAML(t, "postgres.yml", &all)
	return all
}

// expressions returns the PromQL expressions of the dashboard and the rules, by panel or alert.
func expressions(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			all["panel "+p.Title] = append(all["panel "+p.Title], target.Expr)
		}
	}
	for _, r := range rules(t) {
		all["alert "+r.Alert] = append(all["alert "+r.Alert], r.Expr)
	}
	return all
}

var (
	notNames = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(by|on|ignoring|without|group_left|group_right) *\([^)]*\)|\boffset +\S+`)
	names    = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*( *\()?`)
)

// metricNames returns the names of the metrics in an expression, by removing labels, ranges,
// functions and keywords.
func metricNames(expr string) (found []string) {
	for _, word := range names.FindAllString(notNames.ReplaceAllString(expr, " "), -1) {
		if !strings.HasSuffix(word, "(") && !slices.Contains([]string{"and", "or", "unless", "bool"}, word) {
			found = append(found, word)
		}
	}
	return found
}

// Every metric in the dashboard and the alerts is exported. Otherwise a panel stays empty, or an
// alert never fires.
func TestObservability_metricsAreExported(t *testing.T) {
	t.Parallel()
	p := start(t, environ(pgtest.New(t).URL), "serve").ready(t)
	c := newClient(t, p.url, 1)
	c.create(t, "SALE", 1)
	if _, err := c.claim("ann", "SALE"); err != nil {
		t.Fatal(err)
	}
	_, samples := c.scrape(t)
	exported := map[string]bool{
		"up":                    true, // set by Prometheus
		"coupond_shard_healthy": true, // behind a proxy only: TestShards_deadAndSilent in pgstore
	}
	statuses := map[string]bool{}
	for sample := range samples {
		name, labels, _ := strings.Cut(sample, "{")
		exported[name] = true
		if name == "coupond_claims_total" {
			statuses[strings.Trim(strings.TrimPrefix(labels, "status="), `"}`)] = true
		}
	}
	for name, q := range queries(t) {
		for _, column := range q.Metrics {
			for column := range column {
				exported[name+"_"+column] = true
			}
		}
	}
	status := regexp.MustCompile(`coupond_claims_total\{status=~?"([^"]*)"\}`)
	checked := 0
	for where, exprs := range expressions(t) {
		for _, expr := range exprs {
			for _, name := range metricNames(expr) {
				checked++
				if !exported[name] {
					t.Errorf("%s uses %s, which is not exported", where, name)
				}
			}
			for _, match := range status.FindAllStringSubmatch(expr, -1) {
				for word := range strings.SplitSeq(match[1], "|") {
					if !statuses[word] {
						t.Errorf("%s uses the claim status %q, which does not exist", where, word)
					}
				}
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d names were found", checked)
	}
}

func TestMetricNames(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string]string{
		`sum by (le) (rate(a_total{x="b(c)"}[$__rate_interval])) / sum(b:c)`:        "a_total b:c",
		`a{s="x"} >= ignoring (s) b`:                                                "a b",
		`a > on (job, instance) group_left () 0.8 * b`:                              "a b",
		`sum(a{s="500"}) unless sum(a{s="500"} offset 5m) or up == 0 and on () b>1`: "a a up b",
		`histogram_quantile(0.99, sum by (le, f) (rate(a_bucket[1m])))`:             "a_bucket",
	} {
		if got := strings.Join(metricNames(expr), " "); got != want {
			t.Errorf("metricNames(%s) = %q, want %q", expr, got, want)
		}
	}
}

// The dashboard can be loaded into Grafana: ids are unique, panels do not overlap, and the data
// source is the provisioned one.
func TestObservability_dashboard(t *testing.T) {
	t.Parallel()
	var provisioned struct{ Datasources []struct{ UID, Type string } }
	readYAML(t, "grafana/provisioning/datasources/prometheus.yml", &provisioned)
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range panels(t) {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %q: no title, or id %d is 0 or not unique", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q overlaps with %q or is too far right", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if source := provisioned.Datasources[0]; p.Datasource.UID != source.UID || p.Datasource.Type != source.Type {
			t.Errorf("panel %q has the data source %+v, want %+v", p.Title, p.Datasource, source)
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		for i, target := range p.Targets {
			if target.RefID != string(rune('A'+i)) || target.Expr == "" {
				t.Errorf("panel %q: query %d is %+v", p.Title, i, target)
			}
		}
	}
	// The parser above accepts YAML; Grafana's does not.
	text, err := os.ReadFile(filepath.Join(observability, "grafana/dashboards/coupons.json"))
	if err != nil || !json.Valid(text) {
		t.Errorf("the dashboard is not JSON: %v", err)
	}
}

// docs/operations.md has one section for each alert, in the same order.
func TestObservability_alertsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, alerts []string
	_, chapter, _ := strings.Cut(string(text), "\n## Alerts\n")
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	for _, match := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(chapter, -1) {
		documented = append(documented, match[1])
	}
	for _, r := range rules(t) {
		alerts = append(alerts, r.Alert)
	}
	if !slices.Equal(documented, alerts) {
		t.Errorf("docs/operations.md has sections for %q, the rules have %q", documented, alerts)
	}
}

// The queries of postgres.yml work for a role with no other privileges than pg_monitor, return the
// declared columns, and show updates and waiting claims.
func TestObservability_postgresQueries(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	p := start(t, environ(database.URL), "serve").ready(t)
	c := newClient(t, p.url, 1)
	c.create(t, "SALE", 10)
	watcher := database.Connect(t)
	exec := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// One transaction holds the lock of the coupon, and a claim waits for it.
	holder, claimer := database.Connect(t), database.Connect(t)
	exec(claimer, "select coupond.claim_coupon('ann', 'SALE')")
	exec(claimer, "select pg_catalog.pg_stat_force_next_flush()")
	exec(claimer, "select 1")
	exec(holder, "begin isolation level repeatable read")
	exec(holder, "select from coupond.coupons for update")
	waited := make(chan error, 1)
	go func() {
		_, err := claimer.Exec(t.Context(), "select coupond.claim_coupon('bob', 'SALE')")
		waited <- err
	}()
	exec(watcher, "set role pg_monitor")

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

	waitFor := func(what string, condition func() bool) {
		t.Helper()
		for !condition() {
			if t.Context().Err() != nil {
				t.Fatalf("waited for %s", what)
			}
			exec(watcher, "select pg_catalog.pg_sleep(0.02)")
		}
	}
	waitFor("one HOT update", func() bool {
		for _, row := range run("table", all["coupond_pg_table"]) {
			if row["relname"] == "coupons" {
				return row["updates_total"] == int64(1) && row["hot_updates_total"] == int64(1)
			}
		}
		return false
	})
	waitFor("one waiting claim", func() bool { return run("locks", all["coupond_pg_locks"])[0]["waiting"] == int64(1) })
	exec(holder, "rollback")
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	waitFor("no waiting claim", func() bool { return run("locks", all["coupond_pg_locks"])[0]["waiting"] == int64(0) })
	if a := c.must(t, http.MethodGet, "/health", ""); a.status != http.StatusOK {
		t.Errorf("/health: %d", a.status)
	}
}
