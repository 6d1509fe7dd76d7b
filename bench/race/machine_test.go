package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/db"
)

// The tests of this file share one machine, which starts with the first of them. It is without
// fsync, to save time.
var sharedMachine = sync.OnceValues(func() (*machine, error) {
	ctx := context.Background()
	m, err := newMachine(ctx)
	if err != nil {
		return nil, err
	}
	closeShared = m.close
	var fsync string
	if err := m.conn.QueryRow(ctx, "show fsync").Scan(&fsync); err != nil {
		return nil, err
	}
	if fsync != "on" {
		return nil, fmt.Errorf("fsync is %q: the race would measure commits that are not durable", fsync)
	}
	for _, sql := range []string{"alter system set fsync = off", "select pg_reload_conf()"} {
		if _, err := m.conn.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return m, nil
})

var closeShared = func() {}

func TestMain(m *testing.M) {
	// The race starts processes of its own program. In tests that is the test binary, which is a
	// coupond binary too.
	var err error
	switch name := os.Getenv(contestantVariable); {
	case len(os.Args) == 2 && os.Args[1] == "migrate":
		var conn *pgx.Conn
		if conn, err = pgx.Connect(context.Background(), os.Getenv("DATABASE_URL")); err == nil {
			_, err = db.Apply(context.Background(), conn, db.Options{})
		}
	case strings.HasPrefix(name, "coupond "):
		err = serve(context.Background(), contestants.Coupond)
	case name != "":
		err = serve(context.Background(), name)
	default:
		status := m.Run()
		closeShared()
		os.Exit(status)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

// newTestRace returns a race with short runs on the shared machine.
func newTestRace(t *testing.T) *race {
	t.Helper()
	m, err := sharedMachine()
	if err != nil {
		t.Fatal(err)
	}
	return &race{
		options: options{Rounds: 1, Duration: 100 * time.Millisecond, Connections: 8},
		machine: m, users: load.Users(1 << 12),
	}
}

// runTogether runs a workload and returns the figures of each entry.
func runTogether(t *testing.T, w workload, racing ...contestants.Contestant) map[string]figures {
	t.Helper()
	r := newTestRace(t)
	entries, err := r.runWorkload(t.Context(), w, racing)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]figures{}
	for _, e := range entries {
		all[e.name] = e.runs[0]
		if f := e.runs[0]; len(e.runs) != 1 || !(f[rate] > 0) || f[unexpected] > 0 {
			t.Errorf("%s: %v", e.name, e.runs)
		}
	}
	var left int
	if err := r.conn.QueryRow(t.Context(), "select count(*) from pg_database where datname ~ '^(race|coupond)'").Scan(&left); err != nil || left > 0 {
		t.Errorf("%d databases are left, %v", left, err)
	}
	return all
}

func workloadNamed(name string) workload {
	all := workloads()
	return all[slices.IndexFunc(all, func(w workload) bool { return w.name == name })]
}

// A binary that does not start is an error, not a contestant without figures.
func TestWorkload_brokenBinary(t *testing.T) {
	broken := contestantNamed("coupond broken")
	broken.Binary = "/bin/false"
	_, err := newTestRace(t).runWorkload(t.Context(), workloadNamed("hot coupon"), []contestants.Contestant{broken})
	if err == nil || !strings.Contains(err.Error(), "/bin/false migrate") {
		t.Error(err)
	}
}

// Waiting for the lock does not use up the clients measured, and each entry has its baseline.
func TestWorkload_oneLocked(t *testing.T) {
	all := runTogether(t, workloadNamed("one coupon locked"), contestantNamed(contestants.Coupond), contestantNamed(contestants.Plain))
	if len(all) != 4 || all["coupond, none locked"] == nil || all[contestants.Plain+", none locked"] == nil {
		t.Errorf("%v", all)
	}
}

// A binary migrates a database of its own, where it runs beside coupond.
func TestWorkload_binary(t *testing.T) {
	binary := contestantNamed("coupond old")
	var err error
	if binary.Binary, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	w := workloadNamed("slow disk")
	delayed := 0
	w.run = func(ctx context.Context, r *race, s *service) (figures, error) {
		conn, err := pgx.Connect(ctx, r.postgres.URL(s.database))
		if err != nil {
			return nil, err
		}
		defer conn.Close(ctx)
		var settings string
		err = conn.QueryRow(ctx, "select current_setting('commit_delay') || current_setting('commit_siblings')").Scan(&settings)
		if settings == "20000" {
			delayed++
		}
		f, errRun := hot(load.Plan{})(ctx, r, s)
		return f, errors.Join(err, errRun)
	}
	all := runTogether(t, w, contestantNamed(contestants.Coupond), binary)
	if len(all) != 2 || delayed != 2 {
		t.Errorf("%v; commits take longer in %d databases", all, delayed)
	}
	if _, err := exec.LookPath("/proc/self/exe"); err != nil {
		return // no figures of CPU time
	}
	for name, f := range all {
		if !(f[commits] > 0 && f[commits] <= 1) || f[cpu] < f[databaseCPU] {
			t.Errorf("%s: %v", name, f)
		}
	}
}

func TestWorkload_reads(t *testing.T) {
	w := workloadNamed("1,000,000 claims by GET")
	w.setUp = store(2, 1000)
	all := runTogether(t, w, contestantNamed(contestants.Coupond))
	if f := all[contestants.Coupond]; len(all) != 2 || !(f[readP50] > 0) || all["coupond, no reads"] == nil {
		t.Errorf("%v", all)
	}
}

// claim sends concurrent claims of users for coupon, and returns how often each answer came.
func claim(t *testing.T, s *service, coupon string, users ...string) string {
	t.Helper()
	run, err := load.Start(t.Context(), load.Plan{
		Address: s.client.Address, Connections: 16, Requests: len(users), Timeout: time.Minute,
		Request: func(i int) load.Request { return load.Request{User: users[i], Coupon: coupon} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return run.Wait().Answers.String()
}

// Speed can be compared only between contestants that do the same work.
func TestContestants_sameAnswers(t *testing.T) {
	r := newTestRace(t)
	if err := r.createDatabase(t.Context(), "same", contestantNamed(contestants.Coupond), nil); err != nil {
		t.Fatal(err)
	}
	for _, contestant := range contestants.All() {
		t.Run(contestant.Name, func(t *testing.T) {
			if contestant.Appendfsync != "" && redisCommand(t.Context()) == nil {
				t.Skip("this machine has no Redis")
			}
			s, err := r.startService(t.Context(), contestant, "same")
			if err != nil {
				t.Fatal(err)
			}
			t.Parallel() // not before: several contestants create the same tables
			five, plenty := contestant.Name+" fünf/🎟", contestant.Name+" plenty"
			if contestant.Name == contestants.Ceiling {
				if got := claim(t, s, five, "a", "a", "b"); got != "3 × 201" {
					t.Error(got)
				}
				return
			}
			create := func(coupon string, stock int) error { return s.client.Create(t.Context(), coupon, stock) }
			if err := errors.Join(create(five, 5), create(plenty, 1000)); err != nil {
				t.Fatal(err)
			}
			if err := create(five, 6); !errors.Is(err, load.ErrCouponExists) {
				t.Errorf("second creation: %v", err)
			}
			for _, c := range []struct {
				coupon    string
				users     []string // nil: those that have the coupon
				answers   string
				remaining int // afterwards
			}{
				{five, load.Users(50), "45 × 400 OUT_OF_STOCK, 5 × 201", 0},
				{five, nil, "5 × 409 ALREADY_CLAIMED", 0},
				{five, []string{"late"}, "1 × 400 OUT_OF_STOCK", 0},
				{plenty, slices.Repeat([]string{"greedy"}, 30), "29 × 409 ALREADY_CLAIMED, 1 × 201", 999},
				{plenty, []string{"c"}, "1 × 201", 998},
				{plenty, []string{"a"}, "1 × 201", 997},
				{plenty, []string{"b"}, "1 × 201", 996},
			} {
				users := c.users
				if users == nil {
					users = stored(t, s, c.coupon).ClaimedBy
				}
				if got := claim(t, s, c.coupon, users...); got != c.answers {
					t.Errorf("%d claims by %s …: %s, want %s", len(users), users[0], got, c.answers)
				}
				if got := stored(t, s, c.coupon); got.Name != c.coupon || got.Remaining != c.remaining || got.Remaining+len(got.ClaimedBy) != got.Amount {
					t.Errorf("%d claims by %s …: %+v, want a remaining stock of %d", len(users), users[0], got, c.remaining)
				}
			}
			if got := stored(t, s, plenty).ClaimedBy; !slices.Equal(got, []string{"greedy", "c", "a", "b"}) {
				t.Errorf("claimed by %v, not in the order of the claims", got)
			}
			if got := claim(t, s, "unknown", "late"); got != "1 × 404 COUPON_NOT_FOUND" {
				t.Errorf("an unknown coupon: %s", got)
			}
			if _, err := s.client.Coupon(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "COUPON_NOT_FOUND") {
				t.Errorf("reading an unknown coupon: %v", err)
			}
		})
	}
}

func stored(t *testing.T, s *service, coupon string) load.Coupon {
	t.Helper()
	c, err := s.client.Coupon(t.Context(), coupon)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
