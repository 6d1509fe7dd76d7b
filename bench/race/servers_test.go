package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
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
	m, err := newMachine(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	r := &race{machine: m, duration: 500 * time.Millisecond, seed: 1, coupons: 40, users: load.Users(claimers)}
	results := newResults(nil, 1, r.duration)
	w := workloads()[slices.IndexFunc(workloads(), func(w workload) bool { return w.name == name })]
	prepare := w.prepare
	w.prepare = func(ctx context.Context, r *race) (func() error, error) {
		cleanup, err := prepare(ctx, r)
		if err == nil {
			inspect(m)
		}
		return cleanup, err
	}
	if err := r.runWorkload(t.Context(), w, []string{contestants.Coupond}, 1, results); err != nil {
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
