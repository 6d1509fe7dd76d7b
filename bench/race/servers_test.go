package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/internal/wait"
)

// The race starts its services as processes of its own program. In tests that is the test binary.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == serveFlag {
		if err := serve(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "race:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runOnce runs one short round of a workload on new servers, after inspect has looked at them, and
// returns the figures of each entry.
func runOnce(t *testing.T, name string, inspect func(*machine)) map[string][]figures {
	t.Helper()
	return runTogether(t, name, inspect, nil, contestants.Coupond)
}

// runTogether is runOnce for several contestants and for programs.
func runTogether(t *testing.T, name string, inspect func(*machine), programs map[string]string, together ...string) map[string][]figures {
	t.Helper()
	m, err := newMachine(t.Context(), 1, programs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	r := &race{machine: m, duration: 500 * time.Millisecond, connections: 16, seed: 1, coupons: 40, users: load.Users(claimers)}
	results := newResults(nil, 1, r.duration)
	w := workloads()[slices.IndexFunc(workloads(), func(w workload) bool { return w.name == name })]
	if prepare := w.prepare; prepare != nil {
		w.prepare = func(ctx context.Context, r *race) (func() error, error) {
			cleanup, err := prepare(ctx, r)
			if err == nil {
				inspect(m)
			}
			return cleanup, err
		}
	}
	if err := r.runWorkload(t.Context(), w, together, 1, results); err != nil {
		t.Fatal(err)
	}
	if len(m.sites) != 0 {
		t.Errorf("sites after the cleanup: %v", m.sites)
	}
	runs := results.Runs[name]
	for entry, f := range runs {
		if f[0].Unexpected != "" || f[0].Rate == 0 {
			t.Errorf("%s: %+v", entry, f[0])
		}
	}
	return runs
}

// count returns the result of a query that returns one number.
func count(t *testing.T, url, sql string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestWorkload_shards(t *testing.T) {
	runs := runOnce(t, throughProxy, func(m *machine) {
		for name, shards := range map[string]int{oneShard: 1, fourShards: 4} {
			at := m.sites[name]
			count(t, at.url, `select count(coupond.create_coupon('c' || n, 9)) from generate_series(1, 100) as n`)
			if n := len(at.database); n != shards {
				t.Errorf("%s: %d shards", name, n)
			}
			all := 0
			for i, shard := range at.database {
				n := count(t, shard.URL("shard"), `select count(*) from coupond.coupons`)
				if n == 0 {
					t.Errorf("%s: shard %d stores no coupon", name, i)
				}
				all += n
			}
			if all != 100 {
				t.Errorf("%s: the shards store %d of 100 coupons", name, all)
			}
		}
	})
	if len(runs) == 0 {
		if os.Getenv("TEST_PLPROXY") != "" {
			t.Fatal("PL/Proxy is missing")
		}
		t.Skip("PL/Proxy is missing")
	}
	for _, entry := range []string{contestants.Coupond, oneShard, fourShards} {
		if len(runs[entry]) != 1 {
			t.Fatalf("%s did not run", entry)
		}
		// The CPU time of a process that takes part may still be 0: the kernel counts it in ticks
		// of 10 ms.
		if f := runs[entry][0]; f.StandbyCPU > 0 || f.ProxyCPU > 0 && entry == contestants.Coupond {
			t.Errorf("%s: %+v", entry, f)
		}
	}
}

func TestWorkload_standby(t *testing.T) {
	runs := runOnce(t, withStandby, func(m *machine) {
		for name, states := range map[string]map[string]int{
			noStandby: {}, asynchronous: {"async": 1}, synchronous: {"sync": 1}, anyOfTwo: {"quorum": 2},
		} {
			at := m.sites[name]
			all, wanted := count(t, at.url, `select count(*) from pg_stat_replication`), 0
			for state, n := range states {
				wanted += n
				if found := count(t, at.url, `select count(*) from pg_stat_replication where sync_state = '`+state+`'`); found != n {
					t.Errorf("%s: %d of %d standbys are %s, want %d", name, found, all, state, n)
				}
			}
			if all != wanted || len(at.standbys) != wanted {
				t.Errorf("%s: %d standbys are connected and %d are known to the race, want %d", name, all, len(at.standbys), wanted)
			}
			if _, err := os.Stat("/proc/self/stat"); err == nil && wanted > 0 && serverCPU(at.standbys) == 0 {
				t.Errorf("%s: the CPU time of its standbys is 0", name)
			}
			if count(t, at.url, `select (current_setting('fsync') = 'on' and current_setting('synchronous_commit') = 'on')::int`) != 1 {
				t.Errorf("%s: commits are not durable: fsync or synchronous_commit is not on", name)
			}
		}
	})
	if len(runs) == 0 {
		t.Skip("pg_basebackup is missing")
	}
	for _, entry := range []string{contestants.Coupond, asynchronous, synchronous, anyOfTwo} {
		if len(runs[entry]) != 1 {
			t.Fatalf("%s did not run", entry)
		}
		if f := runs[entry][0]; f.LowRateP50 == 0 || f.ProxyCPU > 0 || f.StandbyCPU > 0 && entry == contestants.Coupond {
			t.Errorf("%s: %+v", entry, f)
		}
	}
}

// One contestant of each table has figures with one of 51 coupons locked and with none.
func TestWorkload_oneLocked(t *testing.T) {
	together := []string{contestants.Coupond, plain}
	runs := runTogether(t, oneLocked, nil, nil, together...)
	for _, name := range together {
		if len(runs[name]) != 1 {
			t.Errorf("%s did not run", name)
		} else if f := runs[name][0]; lockedRatio(f) == 0 || lockedRate(f) == 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestMachine_lock(t *testing.T) {
	m, err := newMachine(t.Context(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	for _, contestant := range []string{contestants.Coupond, plain} {
		s, err := m.startService(t.Context(), entry{name: contestant, contestant: contestant})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.stop)
		if err := s.client.Create(t.Context(), "c", 1); err != nil {
			t.Fatal(err)
		}
		unlock, err := m.lock(t.Context(), s, []string{"c"})
		if err != nil {
			t.Fatal(err)
		}
		const locked = `select count(*) from pg_locks where mode = 'RowShareLock' and relation = '%s'::regclass`
		c, err := contestants.Find(contestant)
		if err != nil {
			t.Fatal(err)
		}
		url := m.postgres.URL(s.database)
		if n := count(t, url, fmt.Sprintf(locked, c.Table)); n != 1 {
			t.Errorf("%s: %d transactions lock rows, want 1", contestant, n)
		}
		if err := unlock(); err != nil {
			t.Error(err)
		}
		wait.For(t, "the end of the lock", func() bool { return count(t, url, fmt.Sprintf(locked, c.Table)) == 0 })
		if _, err := m.lock(t.Context(), s, []string{"c", "not a coupon"}); err == nil {
			t.Errorf("%s: no error for a coupon that does not exist", contestant)
		}
	}
}

// A program runs beside coupond on a database that it installed itself, in one process and in two.
func TestWorkload_programs(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "coupond")
	if out, err := exec.Command("go", "build", "-o", binary, "scalable-coupon-system/cmd/coupond").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	const program = programPrefix + "old"
	runs := runTogether(t, twoInstances, nil, map[string]string{program: binary}, contestants.Coupond, program)
	for _, name := range []string{contestants.Coupond, program, inTwo, inTwo + ", " + program} {
		if len(runs[name]) != 1 {
			t.Errorf("%s did not run", name)
		}
	}
}

// Instances share the requests of a plan: each is sent once.
func TestService_send_split(t *testing.T) {
	var mu sync.Mutex
	sent := map[string][]int{} // by body, the instances that received it
	s := &service{}
	for i := range 2 {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			body, _ := io.ReadAll(request.Body) // an incomplete one is counted as another request
			mu.Lock()
			defer mu.Unlock()
			sent[string(body)] = append(sent[string(body)], i)
			w.WriteHeader(http.StatusCreated)
		}))
		t.Cleanup(server.Close)
		s.instances = append(s.instances, &instance{address: strings.TrimPrefix(server.URL, "http://")})
	}
	report, err := s.send(t.Context(), load.Plan{Connections: 4, Requests: 100, Request: func(i int) load.Request {
		return load.Request{User: fmt.Sprint(i), Coupon: "c"}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := report.Claims.Count(load.Claimed); n != 100 || len(sent) != 100 {
		t.Errorf("%d answers to %d different requests, want 100", n, len(sent))
	}
	received := [2]int{}
	for body, instances := range sent {
		if len(instances) != 1 {
			t.Errorf("%s was sent %d times", body, len(instances))
		}
		received[instances[0]]++
	}
	if received != [2]int{50, 50} {
		t.Errorf("the instances received %v requests", received)
	}
}
