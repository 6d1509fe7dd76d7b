package db_test

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgerrcode"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// All tests of proxies share a server that has PL/Proxy.
func TestApplyProxy(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	t.Run("signatures", func(t *testing.T) { testProxySignatures(t, newProxy(t, server)) })
	t.Run("new enum label", func(t *testing.T) { testProxyEnumLabel(t, server) })
	t.Run("locked coupons", func(t *testing.T) { testProxyLockedCoupons(t, server) })
	t.Run("mismatch", func(t *testing.T) { testProxyMismatch(t, server) })
	t.Run("coupon_shards", func(t *testing.T) { testCouponShards(t, newProxy(t, server)) })
}

// newProxy makes an empty database a proxy.
func newProxy(t *testing.T, server *pgtest.Server) *session {
	t.Helper()
	proxy := owner(t, server.ForProxy(t))
	mustApplyProxy(t, proxy, db.Files)
	return proxy
}

func mustApplyProxy(t *testing.T, proxy *session, files fs.FS) {
	t.Helper()
	if _, err := db.ApplyFiles(bounded(t), proxy.Conn, files, true, db.Options{}); err != nil {
		t.Fatal(err)
	}
}

// A proxy has the functions that the service may call, with the same signatures and enum labels,
// and the functions about its shards, and nothing else.
func testProxySignatures(t *testing.T, proxy *session) {
	t.Helper()
	proxy.exec("set search_path = pg_catalog")
	mustApplyProxy(t, proxy, db.Files) // the second time changes nothing
	single := owner(t, pgtest.New(t))
	single.exec("set search_path = pg_catalog")
	const signatures = `
		select p.proname || '(' || pg_get_function_arguments(p.oid) || ') ' || pg_get_function_result(p.oid)
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and has_function_privilege('coupon_service', p.oid, 'execute')
		order by 1`
	own := []string{
		"coupon_shard_commit(p_partition integer) pg_lsn", "coupon_shard_problem(p_partition integer) text",
		"coupon_shard_version(p_partition integer) integer", "coupon_shards() integer[]",
	}
	all := slices.Concat(list[string](single, signatures), own)
	slices.Sort(all)
	equal(t, "signatures", slices.Sorted(slices.Values(list[string](proxy, signatures))), all)
	equal(t, "tables", list[string](proxy, "select relname from pg_class where relnamespace = 'coupond'::regnamespace and relkind = 'r'"), nil)
	equal(t, "other functions", list[string](proxy, `
		select p.oid::regprocedure::text
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and not has_function_privilege('coupon_service', p.oid, 'execute')`), nil)
	for _, enum := range []string{"claim_status", "create_status"} {
		labels := "select unnest(enum_range(null::coupond." + enum + "))::text"
		equal(t, enum, list[string](proxy, labels), list[string](single, labels))
	}
	equal(t, "owners, attributes and privileges", list[string](proxy, `
		select distinct pg_get_userbyid(p.proowner) || ' ' || p.prosecdef
		  || ' ' || coalesce('search_path=pg_catalog, coupond, pg_temp' = any (p.proconfig), false)
		  || ' ' || has_function_privilege('public', p.oid, 'execute')
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		order by 1`), []string{
		"coupon_proxy false false false", // session_problem() has to see the caller's session
		"coupon_proxy true true false",
	})
	equal(t, "roles that may log in", list[string](proxy, "select rolname from pg_roles where rolname like 'coupon%' and rolcanlogin"), nil)
	equal(t, "functions without a comment", list[string](proxy, `
		select p.proname
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and obj_description(p.oid, 'pg_proc') is null`), nil)
	if version := get[int32](proxy, "select coupond.coupon_schema_version()"); version != db.Version() {
		t.Errorf("version %d, want %d", version, db.Version())
	}
}

// proxyOf returns sessions of a proxy, as its owner and as the service, and of the owners of its n
// shards, each of which has one partition.
func proxyOf(t *testing.T, server *pgtest.Server, n int) (proxy, asService *session, shards []*session) {
	t.Helper()
	proxy = newProxy(t, server)
	var options []string
	for i := range n {
		shards = append(shards, owner(t, server.New(t)))
		config := shards[i].Config()
		options = append(options, fmt.Sprintf("p%d 'host=%s port=%d dbname=%s'", i, config.Host, config.Port, config.Database))
		shards[i].exec(fmt.Sprintf("insert into coupond.shard (partitions, owned) values (%d, '{%d}')", n, i))
	}
	config := shards[0].Config()
	proxy.exec("create server coupond foreign data wrapper plproxy options (" + strings.Join(options, ", ") + ")")
	proxy.exec("grant usage on foreign server coupond to coupon_proxy")
	proxy.exec(fmt.Sprintf("create user mapping for coupon_proxy server coupond options (user '%s', password '%s')", config.User, config.Password))
	return proxy, service(t, &pgtest.Database{URL: proxy.Config().ConnString()}), shards
}

// If a shard returns an enum label that the proxy lacks, the call fails. If migrate --proxy of the
// newer program ran first, the call returns the label, even in sessions that are older than that.
func testProxyEnumLabel(t *testing.T, server *pgtest.Server) {
	t.Helper()
	proxy, service, shards := proxyOf(t, server, 1)
	shard := shards[0]
	const (
		single = "select coupond.claim_coupon('u', 'c')::text"
		batch  = "select status::text from coupond.claim_batch(array['u'], array['c'], array[1])"
	)
	for _, sql := range []string{single, batch} {
		if got := get[string](service, sql); got != "coupon_not_found" {
			t.Errorf("%s: %s", sql, got)
		}
	}

	// What a newer program would install on the shard.
	shard.exec("alter type coupond.claim_status add value 'not_yet'")
	shard.exec("create or replace function coupond.claim_coupon(p_user text, p_coupon text) returns coupond.claim_status language sql as $$ select 'not_yet'::coupond.claim_status $$")
	shard.exec(`create or replace function coupond.claim_batch(p_users text[], p_coupons text[], p_positions integer[])
		returns table ("position" integer, status coupond.claim_status) language sql as $$ select 1, 'not_yet'::coupond.claim_status $$`)
	for _, sql := range []string{single, batch} {
		service.fails(pgerrcode.InvalidTextRepresentation, sql)
	}

	newer := program(t)
	types := newer["proxy/types.sql"]
	types.Data = append(types.Data, "\nalter type coupond.claim_status add value if not exists 'not_yet';"...)
	for range 2 {
		mustApplyProxy(t, proxy, newer)
	}
	for _, sql := range []string{single, batch} {
		if got := get[string](service, sql); got != "not_yet" {
			t.Errorf("%s, after migrate --proxy: %s", sql, got)
		}
	}
}

// The proxy asks each shard about its own coupons, and waits for none of them.
func testProxyLockedCoupons(t *testing.T, server *pgtest.Server) {
	t.Helper()
	_, service, shards := proxyOf(t, server, 2)
	coupons := names("coupon %d", 12)
	for _, coupon := range coupons {
		service.create(coupon, 5)
	}
	locked := func(coupons ...string) []string {
		t.Helper()
		return list[string](service, "select c from coupond.locked_coupons($1) as c order by c collate \"C\"", coupons)
	}
	equal(t, "coupons locked before", locked(coupons...), nil)
	equal(t, "coupons locked, of none", locked(), nil)

	var held []string
	for _, shard := range shards {
		shard.exec("begin")
		stored := list[string](shard, "select name from coupond.coupons order by name limit 2 for update")
		if len(stored) != 2 {
			t.Fatalf("a shard has only the coupons %v", stored)
		}
		held = append(held, stored...)
	}
	slices.Sort(held)
	equal(t, "coupons locked on both shards", locked(slices.Concat(coupons, []string{"none"}, coupons)...), held)
	for _, shard := range shards {
		shard.exec("rollback")
	}
	equal(t, "coupons locked afterwards", locked(coupons...), nil)

	service.fails(pgerrcode.InvalidParameterValue, "select coupond.locked_coupons(array['lamp', ''])")
}

// ApplyProxy refuses a database with coupons and a newer proxy, and Apply refuses a proxy.
func testProxyMismatch(t *testing.T, server *pgtest.Server) {
	t.Helper()
	apply := func(s *session, files fs.FS, proxy bool) string {
		return sqlstate(t, onlyError(db.ApplyFiles(bounded(t), s.Conn, files, proxy, db.Options{})))
	}
	proxy := newProxy(t, server)
	equal(t, "refusals", []string{
		apply(owner(t, pgtest.New(t)), db.Files, true), apply(proxy, db.Files, false),
		apply(proxy, newerProgram(t), true), apply(proxy, db.Files, true), // a newer program, then the older one
	}, []string{"UC002", "UC003", "", "UC006"})
	if n := get[int](proxy, "select count(*) from pg_class where relnamespace = 'coupond'::regnamespace and relkind = 'r'"); n != 0 {
		t.Errorf("a proxy has %d tables, want 0", n)
	}
}

// coupon_shards returns which partitions share a shard, and nothing else about the shards.
func testCouponShards(t *testing.T, proxy *session) {
	t.Helper()
	shards := func() []int32 {
		t.Helper()
		return get[[]int32](proxy, "select coupond.coupon_shards()")
	}
	equal(t, "shards without a foreign server", shards(), nil)
	// Not in order, more than nine partitions, and options that are not partitions.
	proxy.exec(`
		create server coupond foreign data wrapper plproxy options (
		  connection_lifetime '60',
		  p10 'host=b', p3 'host=a password=s3cr3t', p0 'host=a', p1 'host=b', p2 'host=a', p4 'host=a', p5 'host=c', p6 'host=a', p7 'host=a',
		  p8 'host=a', p9 'host=c', p11 'host=d', p12 'host=a', p13 'host=a', p14 'host=a', p15 'host=a password=s3cr3t')`)
	want := []int32{0, 1, 0, 3, 0, 5, 0, 0, 0, 5, 1, 11, 0, 0, 0, 3}
	equal(t, "shards", shards(), want)
	proxy.exec("alter server coupond options (set p0 'host=c')")
	equal(t, "shards", shards(), []int32{0, 1, 2, 3, 2, 0, 2, 2, 2, 0, 1, 11, 2, 2, 2, 3})
}
