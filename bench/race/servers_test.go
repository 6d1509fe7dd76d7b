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

// The race starts its contestants as processes of its own program, which is this one here.
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

// compete runs a workload once, briefly, on servers made for it, at which inspect looks before.
func compete(t *testing.T, name string, inspect func(*machine)) map[string][]figures {
	t.Helper()
	m, err := prepare(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	r := &race{machine: m, duration: 500 * time.Millisecond, seed: 1, coupons: 40, users: load.Users(claimers)}
	results := newResults(nil, 1, r.duration)
	w := workloads()[slices.IndexFunc(workloads(), func(w workload) bool { return w.name == name })]
	prepareIt := w.prepare
	w.prepare = func(ctx context.Context, r *race) (func() error, error) {
		tidy, err := prepareIt(ctx, r)
		if err == nil {
			inspect(m)
		}
		return tidy, err
	}
	if err := r.compete(t.Context(), w, []string{contestants.Coupond}, 1, results); err != nil {
		t.Fatal(err)
	}
	if len(m.sites) != 0 {
		t.Errorf("sites that are left: %v", m.sites)
	}
	runs := results.Runs[name]
	for who, f := range runs {
		if f[0].Unexpected != "" || f[0].Rate == 0 {
			t.Errorf("%s: %+v", who, f[0])
		}
	}
	return runs
}

// count asks a database for a number.
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

func TestShards(t *testing.T) {
	runs := compete(t, throughProxy, func(m *machine) {
		for name, shards := range map[string]int{oneShard: 1, fourShards: 4} {
			at := m.sites[name]
			count(t, at.url, `select count(public.create_coupon('c' || n, 9)) from generate_series(1, 100) as n`)
			if n := len(at.database); n != shards {
				t.Errorf("%s: %d shards", name, n)
			}
			all := 0
			for i, shard := range at.database {
				n := count(t, shard.URL("shard"), `select count(*) from public.coupons`)
				if n == 0 {
					t.Errorf("%s: shard %d has no coupon", name, i)
				}
				all += n
			}
			if all != 100 {
				t.Errorf("%s: the shards have %d of 100 coupons", name, all)
			}
		}
	})
	if len(runs) == 0 {
		if os.Getenv("TEST_PLPROXY") != "" {
			t.Fatal("PL/Proxy is missing")
		}
		t.Skip("PL/Proxy is missing")
	}
	for _, who := range []string{contestants.Coupond, oneShard, fourShards} {
		if len(runs[who]) != 1 {
			t.Fatalf("%s did not run", who)
		}
		// That of those who have a part in it may be too short for the kernel's clock, which ticks a hundred times a second.
		if f := runs[who][0]; f.StandbyCPU > 0 || f.ProxyCPU > 0 && who == contestants.Coupond {
			t.Errorf("%s: %+v", who, f)
		}
	}
}

func TestStandbys(t *testing.T) {
	runs := compete(t, withStandby, func(m *machine) {
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
				t.Errorf("%s: %d standbys, of which we know %d, want %d", name, all, len(at.standbys), wanted)
			}
			if _, err := os.Stat("/proc/self/stat"); err == nil && wanted > 0 && serverCPU(at.standbys) == 0 {
				t.Errorf("%s: its standbys have used no CPU time", name)
			}
			if count(t, at.url, `select (current_setting('fsync') = 'on' and current_setting('synchronous_commit') = 'on')::int`) != 1 {
				t.Errorf("%s: a commit is not on disk", name)
			}
		}
	})
	if len(runs) == 0 {
		t.Skip("pg_basebackup is missing")
	}
	for _, who := range []string{contestants.Coupond, asynchronous, synchronous, anyOfTwo} {
		if len(runs[who]) != 1 {
			t.Fatalf("%s did not run", who)
		}
		if f := runs[who][0]; f.CalmP50 == 0 || f.ProxyCPU > 0 || f.StandbyCPU > 0 && who == contestants.Coupond {
			t.Errorf("%s: %+v", who, f)
		}
	}
}
