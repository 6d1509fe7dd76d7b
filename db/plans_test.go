package db_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/pgtest"
)

// A session plans each statement of a function a few times and then caches a plan until the table
// is analyzed. A plan made while the tables were small must still be good when they hold millions
// of rows: a lookup of a claim probes one index, whatever statistics the planner had.
//
// The test does not measure time. It uses PostgreSQL's counters of what each call touches:
// sequential scans, index entries returned, blocks visited.
func TestCachedPlans_probeIndexes(t *testing.T) {
	t.Parallel()
	// What the planner may see when an old session plans. The statistics of a small database are
	// misleading: they can favour the primary key for the lookup of a user's claim, which reads all
	// claims of the coupon during a sale.
	for _, state := range []struct {
		name string
		sql  string
	}{
		{"nothing, never analyzed", ""},
		{"nothing, analyzed", "analyze"},
		{"one claim, never analyzed", `
			select coupond.create_coupon('test', 5), coupond.claim_coupon('tester', 'test')`},
		{"one claim, analyzed", `
			select coupond.create_coupon('test', 5), coupond.claim_coupon('tester', 'test');
			analyze`},
		{"a user with many coupons, analyzed", `
			select coupond.create_coupon('test-' || i, 5), coupond.claim_coupon('tester', 'test-' || i)
			from generate_series(1, 300) as i;
			analyze`},
		{"many coupons with one user each, analyzed", `
			select coupond.create_coupon('test-' || i, 5), coupond.claim_coupon('tester-' || i, 'test-' || i)
			from generate_series(1, 300) as i;
			analyze`},
		{"a coupon with many users, analyzed", `
			select coupond.create_coupon('test', 1000), coupond.claim_coupons(array(select 'tester-' || i from generate_series(1, 300) as i), 'test');
			analyze`},
	} {
		t.Run(state.name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			admin := owner(t, database)
			admin.exec("alter table coupond.coupons set (autovacuum_enabled = off); alter table coupond.claims set (autovacuum_enabled = off)")
			admin.exec(state.sql)
			old := service(t, database)
			cachePlans(old)
			grow(admin)
			for _, moment := range []string{"unanalyzed", "analyzed", "analyzed and planned again"} {
				for _, c := range costlyCalls(moment) {
					c.check(t, moment, old, admin)
				}
				if moment == "unanalyzed" {
					admin.exec("analyze coupond.coupons, coupond.claims")
					report(admin)
				}
				if moment == "analyzed" {
					cachePlans(old)
				}
			}
		})
	}
}

// cachePlans executes every statement of every function more than five times, after which
// PostgreSQL may cache a plan, and rolls back.
func cachePlans(s *session) {
	s.t.Helper()
	s.exec("begin")
	s.create("old", 100)
	s.create("old-sold", 1)
	s.claim("winner", "old-sold")
	for i := range 12 {
		user := fmt.Sprintf("old-%d", i)
		s.create(fmt.Sprintf("old-%d", i), 1)
		s.claim(user, "old")
		s.claim(user, "old")
		s.claim(user, "old-sold")
		s.claim(user, "old-none")
		s.claimCoupons([]string{user + "a", user, user + "b"}, "old")
		s.claimBatch([]string{user + "c", user, user, user}, []string{"old", "old", "old-sold", "old-none"})
		s.exec("select coupond.get_coupon('old')")
		s.exec("select coupond.coupon_claimers('old', 2, 10)")
		s.exec("select coupond.locked_coupons(array['old', 'old-none', 'old'])")
	}
	s.exec("rollback")
	report(s)
}

const (
	hotClaims  = 20_000 // claims of the coupon hot
	manyClaims = 10_000 // claims of the user many, one for each of the coupons many-1, many-2, …
)

// grow inserts many rows from another session, which does not invalidate the old session's plans.
// The coupons exist, and to check that would take most of the time.
func grow(admin *session) {
	admin.t.Helper()
	admin.exec(fmt.Sprintf(`
		set session_replication_role = replica;
		insert into coupond.coupons (name, amount, remaining_amount) values ('hot', 2147483647, 2147483647 - %[1]d), ('sold', 1, 0);
		insert into coupond.coupons (name, amount, remaining_amount) select 'many-' || i, 5, 4 from generate_series(1, %[2]d) as i;
		insert into coupond.coupons (name, amount, remaining_amount)
		select 'first ' || moment, 1, 1 from unnest(array['unanalyzed', 'analyzed', 'analyzed and planned again']) as moment;
		insert into coupond.claims (coupon_name, claim_number, user_id) select 'hot', i, 'hot-' || i from generate_series(1, %[1]d) as i;
		insert into coupond.claims (coupon_name, claim_number, user_id) select 'many-' || i, 1, 'many' from generate_series(1, %[2]d) as i;
		insert into coupond.claims (coupon_name, claim_number, user_id) values ('sold', 1, 'winner');
		reset session_replication_role`, hotClaims, manyClaims))
	report(admin)
}

// costlyCall is a call that is costly with a wrong plan.
type costlyCall struct {
	sql    string
	args   []any
	want   string // the result, as text
	claims int    // the number of claims that it looks up
	page   int    // the number of claims that it lists
}

// costlyCalls returns calls for claims that a scan of the wrong index finds last, or never. The
// users of successful claims contain moment, so that they are different each time.
func costlyCalls(moment string) []costlyCall {
	last, page := fmt.Sprintf("hot-%d", hotClaims), 500
	return []costlyCall{
		{"select coupond.claim_coupon($1, 'hot')::text", []any{last}, alreadyClaimed, 1, 0},
		{"select coupond.claim_coupon($1, 'sold')::text", []any{last}, outOfStock, 1, 0},
		{"select coupond.claim_coupon('many', 'many-9999')::text", nil, alreadyClaimed, 1, 0},
		{"select coupond.claim_coupon('many', 'sold')::text", nil, outOfStock, 1, 0},
		{"select coupond.claim_coupon('many', 'none')::text", nil, couponNotFound, 1, 0},
		{"select coupond.claim_coupon($1, 'hot')::text", []any{"one " + moment}, claimed, 1, 0},
		// The names of the user's other coupons come after this one, so a scan to the end of the user's
		// index entries visits them all.
		{"select coupond.claim_coupon('many', $1)::text", []any{"first " + moment}, claimed, 1, 0},
		{"select coupond.claim_coupon($1, 'many-4444')::text", []any{"one " + moment}, claimed, 1, 0},
		{
			"select coupond.claim_coupons(array[$1, $2, 'many ' || $2], 'hot')::text", []any{last, "two " + moment},
			"{already_claimed,claimed,claimed}", 3, 0,
		},
		{
			"select array_agg(status)::text from coupond.claim_batch($1, $2, array[1, 2, 3, 4, 5, 6])",
			[]any{
				[]string{last, last, "many", "many", "three " + moment, "winner"},
				[]string{"hot", "sold", "many-9999", "none", "hot", "sold"},
			},
			"{already_claimed,out_of_stock,already_claimed,coupon_not_found,claimed,already_claimed}", 6, 0,
		},
		{"select remaining_amount::text from coupond.get_coupon('many-3333')", nil, "4", 1, 0},
		{
			"select count(*)::text from coupond.coupon_claimers('hot', $1::integer, $1::integer + $2::integer)",
			[]any{hotClaims / 2, page}, strconv.Itoa(page), 1, page,
		},
		{"select count(*)::text from coupond.coupon_claimers('many-3333', 0, 10000)", nil, "1", 1, 0},
		{
			"select count(*)::text from coupond.locked_coupons(array(select 'many-' || i % 256 from generate_series(1, 512) as i))",
			nil, "0", 256, 0,
		},
		{"select coupond.create_coupon('many-2222', 1)::text", nil, couponExists, 1, 0},
		{"select coupond.create_coupon($1, 1)::text", []any{"four " + moment}, created, 1, 0},
	}
}

// The most that a call may touch per claim that it looks up. Right plans touch half of that; the
// wrong index returns ten thousand entries or more.
const (
	maxEntries = 8
	maxBlocks  = 80
)

func (c costlyCall) check(t *testing.T, moment string, old, observer *session) {
	t.Helper()
	got, entries, blocks := old.cost(observer, c.sql, c.args...)
	equal(t, fmt.Sprintf("%s: %s %v", moment, c.sql, c.args), got, []string{c.want})
	if entries > maxEntries*c.claims+c.page || blocks > maxBlocks*c.claims {
		t.Errorf("%s: %s %v touches %d index entries and %d blocks, for %d claims and a page of %d",
			moment, c.sql, c.args, entries, blocks, c.claims, c.page)
	}
}

// cost executes a query and returns its single column, and how many index entries and blocks of our
// tables it has touched. It fails the test if the query scans one of them.
func (s *session) cost(observer *session, sql string, args ...any) (values []string, entries, blocks int) {
	s.t.Helper()
	before := touched(observer)
	values = list[string](s, sql, args...)
	report(s)
	for i, after := range touched(observer) {
		if after.SeqScans != before[i].SeqScans {
			s.t.Errorf("%s %v scans %s", sql, args, after.Name)
		}
		entries += after.Entries - before[i].Entries
		blocks += after.Blocks - before[i].Blocks
	}
	return values, entries, blocks
}

// A session plans the statements of a function once, and never again when the tables have grown:
// PostgreSQL would prefer custom plans, which it makes anew for each call, for some of them.
func TestFunctions_planOncePerSession(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	// PostgreSQL reports each planning to the client.
	plannings := 0
	config := admin.Config()
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		if notice.Message == "PLANNER STATISTICS" {
			plannings++
		}
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	s := &session{conn, t}
	s.exec("set client_min_messages = log; set log_planner_stats = on")
	count := func(sql string) int {
		t.Helper()
		plannings = 0
		s.exec(sql)
		return plannings
	}

	admin.create("warm", 1_000_000)
	admin.create("gone", 1)
	admin.claim("winner", "gone")
	const calls = 20
	// Each statement is planned once, and calls a function 20 times.
	call := func(format string, round int) string {
		return fmt.Sprintf(format, fmt.Sprintf("'user ' || %d || '/' || i", round), calls)
	}
	statements := []string{
		"select coupond.claim_coupon(%s, 'warm') from generate_series(1, %d) as i",
		"select coupond.claim_coupon(%s, 'gone') from generate_series(1, %d) as i",
		"select coupond.claim_coupons(array[%[1]s, %[1]s || ' a', %[1]s || ' b'], 'warm') from generate_series(1, %d) as i",
		"select coupond.claim_coupons(array[%s, 'winner'], 'gone') from generate_series(1, %d) as i",
		"select b from generate_series(1, %[2]d) as i, coupond.claim_batch(array[%[1]s || ' c', %[1]s || ' d'], array['warm', 'gone'], array[1, 2]) as b",
		"select coupond.create_coupon(%s, i) from generate_series(1, %d) as i",
		"select c from generate_series(1, %[2]d) as i, coupond.get_coupon(%[1]s) as c",
		"select c from generate_series(1, %[2]d) as i, coupond.coupon_claimers('warm', i, i + 10) as c where %[1]s <> ''",
		"select c from generate_series(1, %[2]d) as i, coupond.locked_coupons(array[%[1]s, 'warm', 'gone']) as c",
	}
	check := func(state string, round int) {
		t.Helper()
		for i, statement := range statements {
			s.exec(call(statement, round)) // plans what this session has not planned since the state changed
			if n := count(call(statement, round+1)); n != 1 {
				t.Errorf("%s: %d plannings for %d calls, want 1, of the statement that calls them: %s", state, n, calls, statements[i])
			}
		}
	}
	check("empty tables", 0)
	grow(admin)
	check("grown tables", 2)
	admin.exec("analyze coupond.coupons, coupond.claims")
	check("grown tables, analyzed", 4)
	admin.exec("insert into coupond.shard (partitions, owned) values (2, '{0,1}')")
	check("a shard", 6)

	// Without the setting, the count is different: else the test would prove nothing.
	admin.exec("alter function coupond.claim_coupons(text[], text) reset plan_cache_mode")
	s.exec(call(statements[2], 8))
	if n := count(call(statements[2], 9)); n < calls {
		t.Errorf("%d plannings without generic plans", n)
	}
}

// report flushes the session's statistics.
func report(s *session) {
	s.t.Helper()
	s.exec("select pg_catalog.pg_stat_force_next_flush()")
}

// touch is PostgreSQL's counters of a table or an index.
type touch struct {
	Name                      string
	SeqScans, Entries, Blocks int
}

// touched returns the counters of our tables and their indexes.
func touched(s *session) []touch {
	s.t.Helper()
	rows, err := s.Query(bounded(s.t), `
		select t.relname::text, t.seq_scan, 0, io.heap_blks_read + io.heap_blks_hit
		from pg_catalog.pg_stat_user_tables as t
		join pg_catalog.pg_statio_user_tables as io using (relid)
		where t.relname in ('coupons', 'claims')
		union all
		select i.indexrelname::text, 0, i.idx_tup_read, io.idx_blks_read + io.idx_blks_hit
		from pg_catalog.pg_stat_user_indexes as i
		join pg_catalog.pg_statio_user_indexes as io using (indexrelid)
		where i.relname in ('coupons', 'claims')
		order by 1`)
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[touch])
	if err != nil || len(all) != 5 || !slices.ContainsFunc(all, func(t touch) bool { return t.Entries > 0 || t.Blocks > 0 }) {
		s.t.Fatalf("PostgreSQL's counters: %v, %v", all, err)
	}
	return all
}
