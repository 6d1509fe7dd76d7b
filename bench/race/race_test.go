package main

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/pgstore"
)

func TestEntry_median(t *testing.T) {
	for _, c := range []struct {
		rates          []float64
		middle, spread float64
	}{
		{[]float64{7}, 7, 0},
		{[]float64{30, 10}, 20, 0.5},
		{[]float64{300, 100, 110}, 110, 100. / 110},
	} {
		var e entry
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
		{"--workloads=nothing", "nothing to run"},
		{"--contestants=nothing", "nothing to run"},
		{"--rounds=0", "--rounds 0"},
		{"--duration=0s", "--duration 0s"},
		{"--duration=-1s", "--duration -1s"},
		{"--coupond=/tmp/coupond", "--coupond"},
		{"--coupond=old=/does/not/exist", "--coupond"},
	} {
		if err := run(t.Context(), []string{c.args}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestWorkload_enter(t *testing.T) {
	binaries := map[string]string{"old": "/bin/sh", "new": "/bin/cat"}
	for _, c := range []struct{ workload, expression, want string }{
		{"hot coupon", ".", "coupond, coupond new, coupond old, interactive, optimistic, serializable, one call per claim, plain function, " +
			"Redis everysec, Redis always, ceiling"},
		{"slow disk", "d$|d old$|ceiling", "coupond, coupond old"},
		{"one coupon locked", "d (old|new)", "coupond new, coupond old, coupond new, none locked, coupond old, none locked"},
		{"one coupon locked", "ceiling", ""},
	} {
		var titles []string
		for _, e := range enter(c.workload, c.expression, binaries).entries {
			titles = append(titles, e.title)
			if (e.Binary != "") != strings.HasPrefix(e.Name, "coupond ") {
				t.Errorf("%s: binary %q", e.Name, e.Binary)
			}
		}
		_, noServer := exec.LookPath("redis-server")
		if _, noClient := exec.LookPath("redis-cli"); noServer != nil || noClient != nil {
			c.want = strings.ReplaceAll(c.want, "Redis everysec, Redis always, ", "")
		}
		if got := strings.Join(titles, ", "); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.workload, c.expression, got, c.want)
		}
	}
}

// Redis takes part only with both of its programs: the race asks redis-cli whether it is ready.
func TestSelectContestants_halfRedis(t *testing.T) {
	for _, program := range []string{"redis-server", "redis-cli"} {
		t.Setenv("PATH", t.TempDir())
		if err := os.Symlink("/bin/sh", filepath.Join(os.Getenv("PATH"), program)); err != nil {
			t.Fatal(err)
		}
		if racing := selectContestants(&options{Contestants: *regexp.MustCompile("Redis")}); len(racing) > 0 {
			t.Errorf("%s takes part with only %s", racing[0].Name, program)
		}
	}
}

// sample returns a race with the results of two entries in two rounds.
func sample() (*race, workload) {
	w := workloads()[0]
	w.entries = []*entry{
		{title: contestants.Coupond, runs: []figures{{rate: 20_000, p50: 1, p99: 2.5, cpu: 40}, {rate: 24_000, p50: 1, p99: 2.5, cpu: 40}}},
		{title: contestants.Interactive, runs: []figures{{rate: 1_000, p50: 8, p99: 50, cpu: 600}, {rate: 1_000, p50: 8, p99: 50, cpu: 600}}},
	}
	return &race{about: []string{"2 rounds", "2 CPUs", "Go"}, reference: contestants.Coupond}, w
}

func TestRace_table(t *testing.T) {
	r, w := sample()
	byLatency := w
	byLatency.compared = p50
	binaries := workload{name: "sell-out", compared: rate, entries: []*entry{
		{title: "coupond new", runs: []figures{{rate: 3_000}}}, {title: "coupond old", runs: []figures{{rate: 2_000}}},
	}}
	blanks := regexp.MustCompile(`( )+|\n\|--.*`)
	for _, c := range []struct{ got, want string }{
		{r.table(w, byLatency, binaries), `
| workload | contestant | claims/s | ± | coupond is | p50 ms | p99 ms | CPU µs |
| hot coupon | coupond | 22,000 | 9 % | 1.00 × | 1.00 | 2.50 | 40.0 |
| hot coupon | interactive | 1,000 | 0 % | 22.0 × | 8.00 | 50.0 | 600 |
| hot coupon | coupond | 22,000 | 9 % | 1.00 × p50 | 1.00 | 2.50 | 40.0 |
| hot coupon | interactive | 1,000 | 0 % | 0.125 × p50 | 8.00 | 50.0 | 600 |
| sell-out | coupond new | 3,000 | 0 % | | | | |
| sell-out | coupond old | 2,000 | 0 % | | | | |`},
		{(&race{reference: "coupond new"}).table(binaries), `
| workload | contestant | claims/s | ± | coupond new is |
| sell-out | coupond new | 3,000 | 0 % | 1.00 × |
| sell-out | coupond old | 2,000 | 0 % | 1.50 × |`},
	} {
		if got := "\n" + blanks.ReplaceAllString(c.got, "$1"); got != c.want {
			t.Errorf("got%s\nwant%s", got, c.want)
		}
	}
}

func TestRace_write(t *testing.T) {
	r, hot := sample()
	idle := hot
	idle.name, idle.compared = "one idle client", p50
	folder := filepath.Join(t.TempDir(), "new", "folder")
	if err := r.write(folder, []workload{hot, idle}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{
		"README.md":           {"2 rounds, 2 CPUs, Go", r.table(hot, idle), "(hot-coupon.svg)", "(one-idle-client.svg)"},
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
}

// liar answers every tenth claim with 500 and the others as claimed, and then forgets some of them.
type liar struct {
	api.Store // nil

	mu      sync.Mutex
	users   []string
	forgets int
}

func (l *liar) CreateCoupon(context.Context, string, int32) (pgstore.CreateStatus, error) {
	return pgstore.Created, nil
}

func (l *liar) Claim(_ context.Context, user, _ string) (pgstore.ClaimStatus, error) {
	if strings.HasSuffix(user, "0") {
		return "", errors.New("broken")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users = append(l.users, user)
	return pgstore.Claimed, nil
}

func (l *liar) Coupon(_ context.Context, name string) (*pgstore.Coupon, bool, error) {
	return pgstore.NewCoupon(name, plenty, l.users[l.forgets:]), true, nil
}

// A contestant that loses claims must not win a race, and one that fails must not win unnoticed.
func TestRace_run_liar(t *testing.T) {
	for forgets, want := range []string{"", "9 claims were answered 201, and 8 are stored"} {
		server := httptest.NewServer(api.New(&liar{forgets: forgets}, api.Options{Log: zerolog.Nop()}))
		t.Cleanup(server.Close)
		e := &entry{client: load.Service{Address: server.Listener.Addr().String(), Timeout: time.Minute}, pid: os.Getpid()}
		r := &race{options: options{Duration: time.Minute}, users: load.Users(10)}
		f, err := evenly(1, load.Plan{Requests: 10})(t.Context(), r, e)
		if want == "" && (err != nil || f[unexpected] != 1 || !(f[rate] > 0) || !(f[p50] > 0)) {
			t.Errorf("%v, %v, want 1 unexpected answer", f, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
