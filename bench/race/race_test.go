package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
)

func TestEntry_median(t *testing.T) {
	for _, c := range []struct {
		rates          []float64
		middle, spread float64
	}{
		{nil, math.NaN(), math.NaN()},
		{[]float64{7}, 7, 0},
		{[]float64{30, 10}, 20, 0.5},
		{[]float64{300, 100, 110}, 110, 100. / 110},
	} {
		e := entry{runs: []figures{{p50: 1}}} // a run without this figure
		for _, r := range c.rates {
			e.runs = append(e.runs, figures{rate: r})
		}
		middle, spread := e.median(rate)
		if fmt.Sprintf("%v %.9f", middle, spread) != fmt.Sprintf("%v %.9f", c.middle, c.spread) {
			t.Errorf("%v: %v ± %v, want %v ± %v", c.rates, middle, spread, c.middle, c.spread)
		}
	}
}

func TestRun_wrongArguments(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--workloads=(", "--workloads: error parsing regexp"},
		{"--workloads=nothing", "--workloads selects 0"},
		{"--contestants=nothing", "--contestants selects 0"},
		{"--rounds=0", "rounds 0, duration 3s, connections 128: each must be positive"},
		{"--coupond=/tmp/coupond", "--coupond"},
		{"--coupond=old=", "--coupond old="},
		{"--coupond=old=/does/not/exist", "--coupond old=/does/not/exist: exec"},
		{"--coupond=Not=/bin/sh", "lower-case letters"},
	} {
		if err := run(t.Context(), []string{c.args}, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

// contestantNamed returns a contestant with that name; one that starts with "coupond " is a binary.
func contestantNamed(name string) contestants.Contestant {
	c, err := contestants.Find(name)
	if err != nil {
		return contestants.Contestant{Name: name, Table: "coupond.coupons", Binary: "/tmp/coupond"}
	}
	return c
}

func TestSelectContestants(t *testing.T) {
	redis := redisCommand(t.Context()) != nil
	for _, c := range []struct{ expression, want string }{
		{".", "coupond, coupond new, coupond old, interactive, optimistic, serializable, one call per claim, plain function, Redis everysec, Redis always, ceiling"},
		{"d old$|^plain", "coupond old, plain function"},
	} {
		o := options{Coupond: map[string]string{"old": "/bin/sh", "new": "/bin/cat"}}
		if err := o.Contestants.UnmarshalText([]byte(c.expression)); err != nil {
			t.Fatal(err)
		}
		selected, err := selectContestants(t.Context(), &o)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range selected {
			names = append(names, s.Name)
			if (s.Binary != "") != strings.HasPrefix(s.Name, "coupond ") {
				t.Errorf("%s: binary %q", s.Name, s.Binary)
			}
		}
		want := c.want
		if !redis {
			want = strings.ReplaceAll(want, "Redis everysec, Redis always, ", "")
		}
		if got := strings.Join(names, ", "); got != want {
			t.Errorf("%q selects %s, want %s", c.expression, got, want)
		}
	}
}

func TestWorkload_entries(t *testing.T) {
	simple := workload{contestants: []string{contestants.Coupond, contestants.Single}, run: sellOut}
	compared := workload{contestants: simple.contestants, run: sellOut, setUp: delayCommits, baseline: &baseline{name: "other", bare: true}}
	for _, c := range []struct {
		w           workload
		names, want string
	}{
		{workload{}, "coupond, ceiling", "coupond on race, ceiling on race"},
		{simple, "coupond, ceiling", "coupond on race"},
		{simple, "coupond old, ceiling", "coupond old on coupond_old"},
		{compared, "coupond, coupond old, one call per claim", "coupond on race, coupond old on coupond_old, one call per claim on race, " +
			"coupond, other on race_bare, coupond old, other on coupond_old_bare, one call per claim, other on race_bare"},
		{compared, "ceiling", ""},
	} {
		var racing []contestants.Contestant
		for name := range strings.SplitSeq(c.names, ", ") {
			racing = append(racing, contestantNamed(name))
		}
		var got []string
		for _, e := range c.w.entries(racing) {
			got = append(got, e.name+" on "+e.database)
			if bare := strings.HasSuffix(e.database, "_bare"); c.w.run != nil && e.run == nil || (e.setUp == nil) != (bare || c.w.setUp == nil) {
				t.Errorf("%s: run %v, setUp %v", e.name, e.run != nil, e.setUp != nil)
			}
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: %s, want %s", c.names, got, c.want)
		}
	}
}

// sample returns the results of two entries in two rounds.
func sample() *results {
	return &results{about: []string{"2 rounds", "2 CPUs", "Go"}, reference: contestants.Coupond, entries: map[string][]*entry{"hot coupon": {
		{name: contestants.Coupond, runs: []figures{{rate: 20_000, p50: 1, p99: 2.5, cpu: 40}, {rate: 24_000, p50: 1, p99: 2.5, cpu: 40}}},
		{name: contestants.Interactive, runs: []figures{{rate: 1_000, p50: 8, p99: 50, cpu: 600}, {rate: 1_000, p50: 8, p99: 50, cpu: 600}}},
	}}}
}

// words returns s with single blanks and without the lines between headers and rows.
func words(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if !strings.Contains(line, "---") {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(lines, "\n")
}

func TestResults_tables(t *testing.T) {
	r := sample()
	binaries := &results{reference: "coupond new", entries: map[string][]*entry{"hot coupon": {
		{name: "coupond new", runs: []figures{{rate: 3_000}}}, {name: "coupond old", runs: []figures{{rate: 2_000}}},
	}}}
	for _, c := range []struct{ got, want string }{
		{r.table(workloads()[:2]...), `
| workload | contestant | claims/s | ± | coupond is | p50 ms | p99 ms | CPU µs |
| hot coupon | coupond | 22,000 | 9 % | 1.00 × | 1.00 | 2.50 | 40.0 |
| hot coupon | interactive | 1,000 | 0 % | 22.0 × | 8.00 | 50.0 | 600 |`},
		{r.table(workload{name: "hot coupon", compared: p50}), `
| workload | contestant | claims/s | ± | coupond is | p50 ms | p99 ms | CPU µs |
| hot coupon | coupond | 22,000 | 9 % | 1.00 × p50 | 1.00 | 2.50 | 40.0 |
| hot coupon | interactive | 1,000 | 0 % | 0.125 × p50 | 8.00 | 50.0 | 600 |`},
		{binaries.table(workloads()[0]), `
| workload | contestant | claims/s | ± | coupond new is |
| hot coupon | coupond new | 3,000 | 0 % | 1.00 × |
| hot coupon | coupond old | 2,000 | 0 % | 1.50 × |`},
	} {
		if got := "\n" + words(c.got); got != c.want {
			t.Errorf("got%s\nwant%s", got, c.want)
		}
	}
}

func TestResults_write(t *testing.T) {
	r, folder := sample(), filepath.Join(t.TempDir(), "new", "folder")
	r.entries["one idle client"] = r.entries["hot coupon"]
	if err := r.write(folder, workloads()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{
		"README.md":           {"2 rounds, 2 CPUs, Go", r.table(workloads()...), "(hot-coupon.svg)", "(one-idle-client.svg)"},
		"hot-coupon.svg":      {"<svg", "hot coupon: claims/s", "all win; median of 2 rounds, 2 CPUs<", "interactive", "22,000", "coupond: 22.0 ×"},
		"one-idle-client.svg": {"p50 ms", "8.00", "coupond: 0.125 ×"},
	} {
		content, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range want {
			if !strings.Contains(string(content), part) {
				t.Errorf("%s does not contain %q", file, part)
			}
		}
	}
	if files, _ := filepath.Glob(filepath.Join(folder, "*")); len(files) != 3 {
		t.Errorf("files: %v", files)
	}
}

// liar is a service that answers every tenth claim with 500 and the others as claimed, and then
// forgets that many of those claims.
func liar(t *testing.T, forgets int) *service {
	t.Helper()
	var mu sync.Mutex
	var users []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if request.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(map[string]any{
				"name": "race-1", "amount": plenty, "remaining_amount": plenty - len(users[forgets:]), "claimed_by": users[forgets:],
			})
			return
		}
		var claim struct {
			User string `json:"user_id"`
		}
		_ = json.NewDecoder(request.Body).Decode(&claim) // a creation has no user
		if strings.HasSuffix(claim.User, "0") {
			http.Error(w, `{"error":"broken","code":"INTERNAL"}`, http.StatusInternalServerError)
			return
		}
		if claim.User != "" {
			users = append(users, claim.User)
		}
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(server.Close)
	return &service{client: load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute}, pid: os.Getpid()}
}

// A contestant that loses claims must not win a race, and one that fails must not win unnoticed.
func TestRace_run_liar(t *testing.T) {
	for forgets, want := range []string{"", "9 claims were answered 201, and 8 are stored"} {
		r := &race{options: options{Connections: 2, Duration: time.Minute}, users: load.Users(10)}
		f, err := hot(load.Plan{Requests: 10})(t.Context(), r, liar(t, forgets))
		if want == "" && (err != nil || f[unexpected] != 1 || !(f[rate] > 0) || !(f[p50] > 0)) {
			t.Errorf("%v, %v, want 1 unexpected answer", f, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
