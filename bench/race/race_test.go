package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

func TestMedian_withSpread(t *testing.T) {
	for _, c := range []struct {
		rates          []float64
		middle, spread float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 0},
		{[]float64{30, 10}, 20, 0.5},
		{[]float64{300, 100, 110}, 110, 100. / 110},
		{[]float64{4, 1, 3, 2}, 2.5, 0.6},
		{[]float64{0, 0}, 0, 0},
	} {
		var runs []figures
		for _, r := range c.rates {
			runs = append(runs, figures{Rate: r})
		}
		if middle, spread := median(runs, rate); middle != c.middle || math.Abs(spread-c.spread) > 1e-9 {
			t.Errorf("%v: %v ± %v, want %v ± %v", c.rates, middle, spread, c.middle, c.spread)
		}
	}
}

func TestParseCPUTime(t *testing.T) {
	const numbers = " S 1 2 3 4 5 6 7 8 9 10 100 20 3 1 20 0"
	for stat, want := range map[string]time.Duration{
		"42 (postgres)" + numbers:    1240 * time.Millisecond,
		"42 (a ) b) (c d)" + numbers: 1240 * time.Millisecond,
		"42 (postgres) S 1 2 3":      0,
		"":                           0,
		"42 (postgres) S 1 2 3 4 5 6 7 8 9 10 x 20 3 1 20": 0,
	} {
		if got := parseCPUTime(stat); got != want {
			t.Errorf("CPU time in %q: %v, want %v", stat, got, want)
		}
	}
}

func names(workloads []workload) (names []string) {
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

func TestSelect_workloadsAndContestants(t *testing.T) {
	all, err := selectWorkloads(false, "")
	if err != nil || len(all) != len(workloads()) {
		t.Errorf("all: %v, %v", names(all), err)
	}
	quick, err := selectWorkloads(true, "")
	if want := []string{hotCoupon, soldOut, manyEvenly, idleClient}; err != nil || !slices.Equal(names(quick), want) {
		t.Errorf("quick: %v, %v, want %v", names(quick), err, want)
	}
	some, err := selectWorkloads(false, "^hot|disk$")
	if want := []string{hotCoupon, onSlowDisk}; err != nil || !slices.Equal(names(some), want) {
		t.Errorf("some: %v, %v, want %v", names(some), err, want)
	}
	if _, err := selectWorkloads(false, "("); err == nil {
		t.Error("no error for an invalid expression")
	}

	var want []string
	for _, r := range contestants.All() {
		switch {
		case r.Name != "Redis":
			want = append(want, r.Name)
		case contestants.FindRedis(t.Context()) != "":
			want = append(want, redisEverysec, redisPrefix+"always")
		}
	}
	if got, err := selectContestants(t.Context(), "", nil); err != nil || !slices.Equal(got, want) {
		t.Errorf("all: %v, %v, want %v", got, err, want)
	}
	if got, err := selectContestants(t.Context(), "^coupond$|active", nil); err != nil || !slices.Equal(got, []string{contestants.Coupond, interactive}) {
		t.Errorf("two: %v, %v", got, err)
	}
	if got, err := selectContestants(t.Context(), "d old$|^plain", []string{"old=/tmp/coupond", "new=/tmp/other"}); err != nil || !slices.Equal(got, []string{"coupond old", plain}) {
		t.Errorf("a program: %v, %v", got, err)
	}
	if _, err := selectContestants(t.Context(), "(", nil); err == nil {
		t.Error("no error for an invalid expression")
	}
}

func TestWorkload_entries(t *testing.T) {
	show := func(w workload, names ...string) string {
		var all []string
		for _, e := range w.entries(names) {
			all = append(all, fmt.Sprintf("%s: %s on %s", e.name, e.contestant, e.database))
		}
		return strings.Join(all, "; ")
	}
	withVariant := workload{database: "full", contestants: []string{contestants.Coupond, single}, run: hot, variants: []variant{{name: "other", database: "bare"}}}
	for _, c := range []struct{ got, want string }{
		{show(workload{}, contestants.Coupond, interactive), "coupond: coupond on ; interactive: interactive on "},
		{show(workload{contestants: []string{single}}, contestants.Coupond, single), "one call per claim: one call per claim on "},
		{show(withVariant, contestants.Coupond, interactive), "coupond: coupond on full; other: coupond on bare"},
		{show(withVariant, single), "one call per claim: one call per claim on full"},
		{show(withVariant), ""},
		{show(workload{contestants: []string{contestants.Coupond}}, "coupond old", interactive), "coupond old: coupond old on "},
		{show(withVariant, "coupond old", contestants.Coupond), "coupond old: coupond old on full; coupond: coupond on full; " +
			"other, coupond old: coupond old on bare; other: coupond on bare"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if e := withVariant.entries([]string{contestants.Coupond}); e[1].run == nil {
		t.Error("the variant does not run the workload")
	}
}

// A target with a misspelled workload or entry would never be evaluated.
func TestTargets_referToExistingEntries(t *testing.T) {
	all := newResults(nil, 1, time.Second)
	for _, w := range workloads() {
		for _, e := range w.entries([]string{contestants.Coupond, interactive, single, plain, ceiling, redisEverysec}) {
			all.add(w.name, e.name, figures{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ""})
		}
	}
	for _, target := range targets() {
		if _, ran := target.measure(all); !ran {
			t.Errorf("%s, %s: a workload or an entry does not exist", target.workload, target.figure)
		}
	}
	for _, r := range []string{contestants.Coupond, interactive, single, plain, ceiling} {
		if _, err := contestants.Find(r); err != nil {
			t.Error(err)
		}
	}
}

// sample returns the results of two entries in two rounds.
func sample() (*results, workload) {
	r := newResults(map[string]string{"cpus": "2"}, 2, time.Second)
	w := workload{name: hotCoupon, description: "one coupon"}
	r.add(w.name, contestants.Coupond, figures{Rate: 20_000, P50: 1, P99: 2.5, P999: 9, ServiceCPU: 20, DatabaseCPU: 20})
	r.add(w.name, interactive, figures{Rate: 1_000, P50: 8, P99: 50, P999: 90, ServiceCPU: 200, DatabaseCPU: 400})
	r.add(w.name, contestants.Coupond, figures{Rate: 24_000, P50: 1, P99: 2.5, P999: 9, ServiceCPU: 20, DatabaseCPU: 20})
	r.add(w.name, interactive, figures{Rate: 1_000, P50: 8, P99: 50, P999: 90, ServiceCPU: 200, DatabaseCPU: 400})
	return r, w
}

// words returns the lines of s that are not empty, with single blanks.
func words(s string) []string {
	var lines []string
	for line := range strings.Lines(s) {
		if line := strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestResults_printTable(t *testing.T) {
	r, w := sample()
	var out strings.Builder
	if err := r.printTable(&out, w); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"hot coupon: one coupon",
		"claims/s ± coupond is p50 ms p99 ms p99.9 ms service CPU µs database CPU µs",
		"coupond 22000 9 % 1.00 × 1.00 2.50 9.00 20 20",
		"interactive 1000 0 % 22.00 × 8.00 50.00 90.00 200 400",
	}
	if got := words(out.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Two programs are compared with each other when coupond does not run.
func TestResults_printTable_programs(t *testing.T) {
	r, w := newResults(nil, 1, time.Second), workload{name: hotCoupon, description: "one coupon"}
	r.add(w.name, "coupond new", figures{Rate: 3_000})
	r.add(w.name, "coupond old", figures{Rate: 2_000})
	var out strings.Builder
	if err := r.printTable(&out, w); err != nil {
		t.Fatal(err)
	}
	want := []string{"hot coupon: one coupon", "claims/s ± coupond new is", "coupond new 3000 0 % 1.00 ×", "coupond old 2000 0 % 1.50 ×"}
	if got := words(out.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestResults_evaluateTargets(t *testing.T) {
	r, _ := sample()
	var out strings.Builder
	if err := r.evaluateTargets(&out); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"targets measured",
		"hot coupon claims/s, relative to interactive ≥ 15.00 × 22.00 × met",
		"hot coupon p99, relative to interactive ≤ 0.100 × 0.050 × met",
		"hot coupon CPU per claim, service and PostgreSQL ≤ 50.0 µs 40.0 µs met",
		"hot coupon CPU per claim, relative to interactive ≤ 0.065 × 0.067 × missed",
	}
	if got := words(out.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(r.Targets) != 4 || !r.Targets[0].Met || r.Targets[3].Met {
		t.Errorf("targets in the results: %+v", r.Targets)
	}
}

// fullDisk fails every write.
type fullDisk struct{}

var errFull = errors.New("no space left")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestResults_writeError(t *testing.T) {
	r, w := sample()
	if err := r.printTable(fullDisk{}, w); !errors.Is(err, errFull) {
		t.Errorf("the table: %v", err)
	}
	if err := r.evaluateTargets(fullDisk{}); !errors.Is(err, errFull) {
		t.Errorf("the targets: %v", err)
	}
}

func TestResults_write(t *testing.T) {
	r, w := sample()
	folder := filepath.Join(t.TempDir(), "new", "folder")
	if err := r.write(folder, []workload{w, {name: "did not run"}}); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(filepath.Join(folder, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kept results
	if err := json.Unmarshal(body, &kept); err != nil {
		t.Fatal(err)
	}
	if got := kept.Runs[hotCoupon][contestants.Coupond]; len(got) != 2 || got[1].Rate != 24_000 || kept.Machine["cpus"] != "2" {
		t.Errorf("%s", body)
	}

	svg, err := os.ReadFile(filepath.Join(folder, "hot-coupon.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if n := tags(t, svg)["svg"]; n != 1 {
		t.Errorf("%d <svg> elements", n)
	}
	for _, text := range []string{"hot coupon: claims per second", "2 CPUs", "coupond", "interactive", "22,000", "coupond: 22.0 ×"} {
		if !bytes.Contains(svg, []byte(text)) {
			t.Errorf("%q is not in the chart", text)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(folder, "*")); len(files) != 2 {
		t.Errorf("files: %v", files)
	}
}

// tags counts the elements of a well-formed document.
func tags(t *testing.T, document []byte) map[string]int {
	t.Helper()
	count := make(map[string]int)
	for decoder := xml.NewDecoder(bytes.NewReader(document)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return count
		}
		if err != nil {
			t.Fatal(err)
		}
		if element, ok := token.(xml.StartElement); ok {
			count[element.Name.Local]++
		}
	}
}

func TestResults_drawChart_latencies(t *testing.T) {
	r, _ := sample()
	var shown workload
	for _, w := range workloads() {
		if w.name == idleClient {
			shown = w
		}
	}
	r.Runs[idleClient] = r.Runs[hotCoupon]
	svg, err := r.drawChart(shown)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"p50 in ms", "8.00", "coupond: 0.12 ×"} {
		if !bytes.Contains(svg, []byte(text)) {
			t.Errorf("%q is not in the chart", text)
		}
	}
}

func TestChartName(t *testing.T) {
	if got := chartName("1,000,000 claims by GET"); got != "1-000-000-claims-by-get.svg" {
		t.Error(got)
	}
}

// A contestant that oversells or loses claims must not win a race.
func TestRace_check(t *testing.T) {
	const coupon = `{"name":"c","amount":%d,"remaining_amount":%d,"claimed_by":[%s]}`
	for _, c := range []struct {
		name string
		body string
		won  int
		want string // part of the error; "": none
	}{
		{"right", fmt.Sprintf(coupon, 3, 1, `"b","a"`), 2, ""},
		{"no claims", fmt.Sprintf(coupon, 3, 3, ``), 0, ""},
		{"oversold", fmt.Sprintf(coupon, 3, 0, `"a","b","c","d"`), 4, "stock 0 of 3 remains, but 4 users have the coupon"},
		{"lost", fmt.Sprintf(coupon, 3, 0, `"a","b"`), 2, "stock 0 of 3 remains, but 2 users have the coupon"},
		{"another stock", fmt.Sprintf(coupon, 4, 2, `"a","b"`), 2, "stock 2 of 4 remains"},
		{"one user twice", fmt.Sprintf(coupon, 3, 1, `"a","a"`), 2, "a user has the coupon twice"},
		{"answered too many", fmt.Sprintf(coupon, 3, 1, `"a","b"`), 3, "3 claims were answered as claimed, 2 are stored"},
		{"answered too few", fmt.Sprintf(coupon, 3, 1, `"a","b"`), 1, "1 claims were answered as claimed, 2 are stored"},
		{"no coupon in the response", `{}`, 0, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, c.body)
			}))
			defer server.Close()
			s := &service{
				entry:  entry{name: "cheat"},
				client: load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute},
			}
			report := load.Report{Claims: load.Tally{Answers: []load.Count{{Answer: load.Claimed, Times: c.won}}}}
			err := new(race).check(t.Context(), s, 3, report, "c")
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
			s.name = ceiling
			if err := new(race).check(t.Context(), s, 3, report, "c"); err != nil {
				t.Errorf("the ceiling stores nothing, but was checked: %v", err)
			}
		})
	}
}

func TestRace_check_severalCoupons(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"name":"c","amount":3,"remaining_amount":2,"claimed_by":["a"]}`)
	}))
	defer server.Close()
	s := &service{client: load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute}}
	report := load.Report{Claims: load.Tally{Answers: []load.Count{{Answer: load.Claimed, Times: 2}}}}
	if err := new(race).check(t.Context(), s, 3, report, "c", "d"); err != nil {
		t.Error(err)
	}
	if err := new(race).check(t.Context(), s, 3, report, "c"); err == nil {
		t.Error("no error, although 2 claims were answered as claimed and 1 is stored")
	}
}

func TestRun_invalidFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--workloads", "("}, {"--contestants", "("},
		{"--coupond", "/tmp/coupond"}, {"--coupond", "old="}, {"--coupond", "old=/does/not/exist"}, {"--coupond", "Not=/bin/sh"},
		{"--coupond", "old=/bin/sh", "--coupond", "old=/bin/cat"},
	} {
		if err := run(context.Background(), args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
