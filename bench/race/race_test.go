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

func TestMedianAndSpread(t *testing.T) {
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

func TestWhatProcSays(t *testing.T) {
	const numbers = " S 1 2 3 4 5 6 7 8 9 10 100 20 3 1 20 0"
	for stat, want := range map[string]time.Duration{
		"42 (postgres)" + numbers:    1240 * time.Millisecond,
		"42 (a ) b) (c d)" + numbers: 1240 * time.Millisecond,
		"42 (postgres) S 1 2 3":      0,
		"":                           0,
		"42 (postgres) S 1 2 3 4 5 6 7 8 9 10 x 20 3 1 20": 0,
	} {
		if got := cpuIn(stat); got != want {
			t.Errorf("CPU time in %q: %v, want %v", stat, got, want)
		}
	}
	for status, want := range map[string]float64{
		"Name:\trace\nVmPeak:\t  9999 kB\nVmHWM:\t    2560 kB\nVmRSS:\t 1024 kB\n": 2.5,
		"VmHWM:\t many kB\n": 0,
		"Name:\tkthreadd\n":  0,
	} {
		if got := peakIn(status); got != want {
			t.Errorf("peak in %q: %v, want %v", status, got, want)
		}
	}
}

func TestMemoryOfThisProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/clear_refs"); err != nil {
		t.Skip("no /proc here")
	}
	const size = 64 << 20
	before := forgetPeak(os.Getpid())
	if before <= 0 {
		t.Fatal("nothing was read")
	}
	grown := bytes.Repeat([]byte{1}, size)
	if more := peak(os.Getpid()) - before; more < 48 || more > 256 {
		t.Errorf("%d MiB more are said to be %.1f", size>>20, more)
	}
	if grown[size-1] != 1 {
		t.Error("unreachable, and keeps the memory in use")
	}
}

func names(workloads []workload) (names []string) {
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

func TestSelection(t *testing.T) {
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
		t.Error("a broken expression was taken")
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
	if got, err := selectRivals(t.Context(), ""); err != nil || !slices.Equal(got, want) {
		t.Errorf("all: %v, %v, want %v", got, err, want)
	}
	if got, err := selectRivals(t.Context(), "^coupond$|active"); err != nil || !slices.Equal(got, []string{contestants.Coupond, interactive}) {
		t.Errorf("two: %v, %v", got, err)
	}
	if _, err := selectRivals(t.Context(), "("); err == nil {
		t.Error("a broken expression was taken")
	}
}

func TestEntries(t *testing.T) {
	show := func(w workload, names ...string) string {
		var all []string
		for _, e := range w.entries(names) {
			all = append(all, fmt.Sprintf("%s: %s on %s", e.name, e.rival, e.database))
		}
		return strings.Join(all, "; ")
	}
	beside := workload{database: "full", rivals: []string{contestants.Coupond, single}, run: hot, beside: []variant{{name: "other", database: "bare"}}}
	for _, c := range []struct{ got, want string }{
		{show(workload{}, contestants.Coupond, interactive), "coupond: coupond on race; interactive: interactive on race"},
		{show(workload{rivals: []string{single}}, contestants.Coupond, single), "one call a claim: one call a claim on race"},
		{show(beside, contestants.Coupond, interactive), "coupond: coupond on full; other: coupond on bare"},
		{show(beside, single), "one call a claim: one call a claim on full"},
		{show(beside), ""},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if e := beside.entries([]string{contestants.Coupond}); e[1].run == nil {
		t.Error("the one beside has nothing to run")
	}
}

// Names stand in several lists: a target for a workload or a contestant that is spelled otherwise would never be judged.
func TestTargetsAreAboutWhatRuns(t *testing.T) {
	all := newResults(nil, 1, time.Second)
	for _, w := range workloads() {
		for _, e := range w.entries([]string{contestants.Coupond, interactive, single, ceiling, redisEverysec}) {
			all.add(w.name, e.name, figures{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ""})
		}
	}
	for _, target := range targets() {
		if _, ran := target.measured(all); !ran {
			t.Errorf("%s, %s: cannot be measured", target.work, target.what)
		}
	}
	for _, r := range []string{contestants.Coupond, interactive, single, ceiling} {
		if _, err := contestants.Find(r); err != nil {
			t.Error(err)
		}
	}
}

// sample is a race of two in two rounds.
func sample() (*results, workload) {
	r := newResults(map[string]string{"cpus": "2"}, 2, time.Second)
	w := workload{name: hotCoupon, what: "one coupon"}
	r.add(w.name, contestants.Coupond, figures{Rate: 20_000, P50: 1, P99: 2.5, P999: 9, ServiceCPU: 20, DataCPU: 20})
	r.add(w.name, interactive, figures{Rate: 1_000, P50: 8, P99: 50, P999: 90, ServiceCPU: 200, DataCPU: 400})
	r.add(w.name, contestants.Coupond, figures{Rate: 24_000, P50: 1, P99: 2.5, P999: 9, ServiceCPU: 20, DataCPU: 20})
	r.add(w.name, interactive, figures{Rate: 1_000, P50: 8, P99: 50, P999: 90, ServiceCPU: 200, DataCPU: 400})
	return r, w
}

func words(s string) []string {
	var lines []string
	for line := range strings.Lines(s) {
		if line := strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestTable(t *testing.T) {
	r, w := sample()
	var out strings.Builder
	if err := r.print(&out, w); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"hot coupon: one coupon",
		"claims/s ± ours is p50 ms p99 ms p99.9 ms service CPU µs database CPU µs",
		"coupond 22000 9 % 1.00 × 1.00 2.50 9.00 20 20",
		"interactive 1000 0 % 22.00 × 8.00 50.00 90.00 200 400",
	}
	if got := words(out.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTargetsAreJudged(t *testing.T) {
	r, _ := sample()
	var out strings.Builder
	if err := r.judge(&out); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"targets measured",
		"hot coupon claims/s, interactive's ≥ 15.00 × 22.00 × met",
		"hot coupon p99, interactive's ≤ 0.100 × 0.050 × met",
		"hot coupon CPU a claim, service and PostgreSQL ≤ 50.0 µs 40.0 µs met",
		"hot coupon CPU a claim, interactive's ≤ 0.065 × 0.067 × missed",
	}
	if got := words(out.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(r.Targets) != 4 || !r.Targets[0].Met || r.Targets[3].Met {
		t.Errorf("kept: %+v", r.Targets)
	}
}

// full is a disk on which there is no room.
type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestTableSaysWhenItCannotBeWritten(t *testing.T) {
	r, w := sample()
	if err := r.print(full{}, w); !errors.Is(err, errFull) {
		t.Errorf("the table: %v", err)
	}
	if err := r.judge(full{}); !errors.Is(err, errFull) {
		t.Errorf("the targets: %v", err)
	}
}

func TestResultsAreKept(t *testing.T) {
	r, w := sample()
	folder := filepath.Join(t.TempDir(), "new", "folder")
	if err := r.keep(folder, []workload{w, {name: "did not run"}}); err != nil {
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
	for _, text := range []string{"hot coupon: claims a second", "2 CPUs", "coupond", "interactive", "22,000", "ours: 22.0 ×"} {
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

func TestChartOfLatencies(t *testing.T) {
	r, _ := sample()
	var shown workload
	for _, w := range workloads() {
		if w.name == idleClient {
			shown = w
		}
	}
	r.Runs[idleClient] = r.Runs[hotCoupon]
	svg, err := r.draw(shown)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"p50 in ms", "8.00", "ours: 0.12 ×"} {
		if !bytes.Contains(svg, []byte(text)) {
			t.Errorf("%q is not in the chart", text)
		}
	}
}

func TestChartFile(t *testing.T) {
	if got := chartFile("1,000,000 claims by GET"); got != "1-000-000-claims-by-get.svg" {
		t.Error(got)
	}
}

// A rival that cheats must not win.
func TestCheckCatchesWrongBooks(t *testing.T) {
	const report = `{"name":"c","amount":%d,"remaining_amount":%d,"claimed_by":[%s]}`
	for _, c := range []struct {
		name string
		body string
		won  int
		want string // part of the error; "": none
	}{
		{"right", fmt.Sprintf(report, 3, 1, `"b","a"`), 2, ""},
		{"nobody came", fmt.Sprintf(report, 3, 3, ``), 0, ""},
		{"oversold", fmt.Sprintf(report, 3, 0, `"a","b","c","d"`), 4, "0 of 3 remain, and 4 have one"},
		{"lost", fmt.Sprintf(report, 3, 0, `"a","b"`), 2, "0 of 3 remain, and 2 have one"},
		{"another stock", fmt.Sprintf(report, 4, 2, `"a","b"`), 2, "2 of 4 remain"},
		{"twice", fmt.Sprintf(report, 3, 1, `"a","a"`), 2, "twice"},
		{"told too many", fmt.Sprintf(report, 3, 1, `"a","b"`), 3, "3 were told that they won, 2 have the coupon"},
		{"told too few", fmt.Sprintf(report, 3, 1, `"a","b"`), 1, "1 were told that they won, 2 have the coupon"},
		{"no report", `{}`, 0, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, c.body)
			}))
			defer server.Close()
			who := &contestant{
				entry:   entry{name: "cheat"},
				service: load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute},
			}
			told := load.Report{Claims: load.Tally{Answers: []load.Count{{Answer: load.Claimed, Times: c.won}}}}
			err := new(race).check(t.Context(), who, 3, told, "c")
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
			who.name = ceiling
			if err := new(race).check(t.Context(), who, 3, told, "c"); err != nil {
				t.Errorf("the ceiling has no books: %v", err)
			}
		})
	}
}

func TestCheckAddsUpCoupons(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"name":"c","amount":3,"remaining_amount":2,"claimed_by":["a"]}`)
	}))
	defer server.Close()
	who := &contestant{service: load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute}}
	told := load.Report{Claims: load.Tally{Answers: []load.Count{{Answer: load.Claimed, Times: 2}}}}
	if err := new(race).check(t.Context(), who, 3, told, "c", "d"); err != nil {
		t.Error(err)
	}
	if err := new(race).check(t.Context(), who, 3, told, "c"); err == nil {
		t.Error("a claim too many was told, and not noticed")
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-workloads", "("}, {"-rivals", "("}} {
		if err := run(context.Background(), args); err == nil {
			t.Errorf("%v were taken", args)
		}
	}
}
