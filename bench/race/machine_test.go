package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/db"
)

var shared *machine

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
		if err = startShared(context.Background()); err == nil {
			status := m.Run()
			shared.close()
			os.Exit(status)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "race:", err)
		os.Exit(1)
	}
}

// startShared starts the machine of all tests, whose fsync it turns off after a look at it.
func startShared(ctx context.Context) (err error) {
	if shared, err = newMachine(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			shared.close()
		}
	}()
	var fsync string
	if err := shared.conn.QueryRow(ctx, "show fsync").Scan(&fsync); err != nil {
		return err
	}
	if fsync != "on" {
		return fmt.Errorf("fsync is %s: the race would measure commits that are not durable", fsync)
	}
	_, err1 := shared.conn.Exec(ctx, "alter system set fsync = off")
	_, err2 := shared.conn.Exec(ctx, "select pg_reload_conf()")
	return errors.Join(err1, err2)
}

// enter returns a workload with the entries of the contestants that match, and of binaries.
func enter(name, expression string, binaries map[string]string) workload {
	all := workloads()
	w := all[slices.IndexFunc(all, func(w workload) bool { return w.name == name })]
	w.enter(selectContestants(&options{Contestants: *regexp.MustCompile(expression), Coupond: binaries}))
	return w
}

// runWorkload runs each entry of a workload for a short time.
func runWorkload(t *testing.T, w workload) error {
	t.Helper()
	r := &race{options: options{Rounds: 1, Duration: time.Second}, machine: shared, users: load.Users(1 << 16)}
	return r.runWorkload(t.Context(), w)
}

// measure runs a workload and returns the figures of each entry.
func measure(t *testing.T, w workload) map[string]figures {
	t.Helper()
	if err := runWorkload(t, w); err != nil {
		t.Fatal(err)
	}
	all := map[string]figures{}
	for _, e := range w.entries {
		all[e.title] = e.runs[0]
		if f := e.runs[0]; len(e.runs) != 1 || !(f[rate] > 0) || f[unexpected] > 0 {
			t.Errorf("%s: %v", e.title, e.runs)
		}
	}
	var left int
	err := shared.conn.QueryRow(t.Context(), "select count(*) from pg_database where datname ~ '^race'").Scan(&left)
	if err != nil || left > 0 {
		t.Errorf("%d databases are left, %v", left, err)
	}
	return all
}

// A binary that does not start is an error, not a contestant without figures.
func TestWorkload_brokenBinary(t *testing.T) {
	err := runWorkload(t, enter("hot coupon", "broken", map[string]string{"broken": "/bin/false"}))
	if err == nil || err.Error() != "database of coupond broken: exit status 1" {
		t.Error(err)
	}
}

// Waiting for the lock does not use up the clients measured, and each entry has its baseline.
func TestWorkload_oneLocked(t *testing.T) {
	all := measure(t, enter("one coupon locked", "^coupond$|plain", nil))
	if len(all) != 4 || all["coupond, none locked"] == nil || all[contestants.Plain+", none locked"] == nil {
		t.Errorf("%v", all)
	}
}

// If the coupon is not locked, nothing is measured.
func TestWorkload_noneLocked(t *testing.T) {
	w := enter("one coupon locked", "plain", nil)
	w.entries = w.entries[:1]
	w.entries[0].Table = "empty"
	w.entries[0].variant.setUp = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "create table empty (name text)")
		return err
	}
	if err := runWorkload(t, w); err == nil || !strings.Contains(err.Error(), "no claim waits for the locked coupon") {
		t.Error(err)
	}
}

// A binary migrates a database of its own, where it runs beside coupond.
func TestWorkload_binary(t *testing.T) {
	self, _ := os.Executable()
	w := enter("slow disk", "coupond", map[string]string{"old": self})
	run := w.variants[0].run
	for _, e := range w.entries {
		e.variant.run = func(ctx context.Context, r *race, e *entry) (figures, error) {
			psql, err := r.hold(ctx, e.database, "select")
			if err != nil {
				return nil, err
			}
			defer psql.Close(ctx)
			var settings string
			err = psql.QueryRow(ctx, "select current_setting('commit_delay') || current_setting('commit_siblings')").Scan(&settings)
			if settings != "20000" {
				t.Errorf("%s: commits do not take longer: %s, %v", e.title, settings, err)
			}
			return run(ctx, r, e)
		}
	}
	all := measure(t, w)
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
	w := enter("1,000,000 claims by GET", "^coupond$", nil)
	for _, e := range w.entries {
		e.variant.setUp = store(2, 1000)
	}
	all := measure(t, w)
	if f := all[contestants.Coupond]; len(all) != 2 || !(f[readP50] > 0) || all["coupond, no reads"] == nil {
		t.Errorf("%v", all)
	}
}

// claim sends concurrent claims of users for coupon, and returns how often each answer came.
func claim(t *testing.T, e *entry, coupon string, users ...string) string {
	t.Helper()
	run, err := load.Start(t.Context(), load.Plan{
		Address: e.client.Address, Connections: 16, Requests: len(users), Timeout: time.Minute,
		Request: func(i int) load.Request { return load.Request{User: users[i], Coupon: coupon} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return run.Wait().Answers.String()
}

func stored(t *testing.T, e *entry, coupon string) load.Coupon {
	t.Helper()
	c, err := e.client.Coupon(t.Context(), coupon)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Speed can be compared only between contestants that do the same work.
func TestContestants_sameAnswers(t *testing.T) {
	w := enter("hot coupon", ".", nil)
	for _, e := range w.entries {
		e.variant.run = func(_ context.Context, _ *race, e *entry) (figures, error) {
			t.Run(e.Name, func(t *testing.T) { sameAnswers(t, e) })
			return figures{rate: 1}, nil
		}
	}
	measure(t, w)
}

func sameAnswers(t *testing.T, e *entry) {
	five, plenty := e.Name+" fünf/🎟", e.Name+" plenty"
	if e.Name == contestants.Ceiling {
		if got := claim(t, e, five, "a", "a", "b"); got != "3 × 201" {
			t.Error(got)
		}
		return
	}
	create := func(coupon string, stock int) error { return e.client.Create(t.Context(), coupon, stock) }
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
			users = stored(t, e, c.coupon).ClaimedBy
		}
		if got := claim(t, e, c.coupon, users...); got != c.answers {
			t.Errorf("%d claims by %s …: %s, want %s", len(users), users[0], got, c.answers)
		}
		if got := stored(t, e, c.coupon); got.Name != c.coupon || got.Remaining != c.remaining || got.Remaining+len(got.ClaimedBy) != got.Amount {
			t.Errorf("%d claims by %s …: %+v, want a remaining stock of %d", len(users), users[0], got, c.remaining)
		}
	}
	if got := stored(t, e, plenty).ClaimedBy; !slices.Equal(got, []string{"greedy", "c", "a", "b"}) {
		t.Errorf("claimed by %v, not in the order of the claims", got)
	}
	if got := claim(t, e, "unknown", "late"); got != "1 × 404 COUPON_NOT_FOUND" {
		t.Errorf("an unknown coupon: %s", got)
	}
	if _, err := e.client.Coupon(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "COUPON_NOT_FOUND") {
		t.Errorf("reading an unknown coupon: %v", err)
	}
}
