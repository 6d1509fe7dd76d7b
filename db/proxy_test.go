package db_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgerrcode"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// emptyProxy connects to an empty database on a server that has PL/Proxy.
func emptyProxy(t *testing.T) *session {
	t.Helper()
	return owner(t, pgtest.StartServer(t, map[string]string{"fsync": "off"}).ForProxy(t))
}

// A proxy has the functions that the service may call, with the same signatures and enum labels,
// and the functions about its shards, and nothing else.
func TestApplyProxy_signatures(t *testing.T) {
	t.Parallel()
	proxy := emptyProxy(t)
	proxy.exec("set search_path = pg_catalog")
	for range 2 { // the second time changes nothing
		if err := db.ApplyProxy(bounded(t), proxy.Conn, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
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
	equal(t, "signatures", slices.DeleteFunc(list[string](proxy, signatures), func(s string) bool { return slices.Contains(own, s) }),
		list[string](single, signatures))
	equal(t, "functions", list[string](proxy, "select proname from pg_proc where pronamespace = 'coupond'::regnamespace order by 1"),
		[]string{
			"claim_batch", "claim_coupon", "claim_coupons", "coupon_claimers", "coupon_schema_version",
			"coupon_shard_commit", "coupon_shard_problem", "coupon_shard_version", "coupon_shards", "create_coupon", "get_coupon",
			"locked_coupons", "session_problem",
		})
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
	if n := get[int](proxy, "select count(*) from pg_class where relnamespace = 'coupond'::regnamespace and relkind = 'r'"); n != 0 {
		t.Errorf("a proxy has %d tables, want 0", n)
	}
}

// proxyOf returns sessions of a proxy, as its owner and as the service, and of the owners of its n
// shards, each of which has one partition.
func proxyOf(t *testing.T, n int) (proxy, asService *session, shards []*session) {
	t.Helper()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	proxyDatabase := server.ForProxy(t)
	proxy = owner(t, proxyDatabase)
	if err := db.ApplyProxy(bounded(t), proxy.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
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
	return proxy, service(t, proxyDatabase), shards
}

// If a shard returns an enum label that the proxy lacks, the call fails. If migrate --proxy of the
// newer program ran first, the call returns the label, even in sessions that are older than that.
func TestApplyProxy_newEnumLabel(t *testing.T) {
	t.Parallel()
	proxy, service, shards := proxyOf(t, 1)
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
		got, err := getErr[string](bounded(t), service.Conn, sql)
		if sqlstate(t, err) != pgerrcode.InvalidTextRepresentation {
			t.Errorf("%s, with a label that the proxy lacks: %q, %v", sql, got, err)
		}
	}

	newer := copyOf(t, db.ProxyFiles)
	types := newer["proxy/types.sql"]
	types.Data = append(types.Data, "\nalter type coupond.claim_status add value if not exists 'not_yet';"...)
	for range 2 {
		if err := db.ApplyProxyFiles(bounded(t), proxy.Conn, newer, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{single, batch} {
		if got := get[string](service, sql); got != "not_yet" {
			t.Errorf("%s, after migrate --proxy: %s", sql, got)
		}
	}
}

// The proxy asks each shard about its own coupons, and waits for none of them.
func TestApplyProxy_lockedCoupons(t *testing.T) {
	t.Parallel()
	_, service, shards := proxyOf(t, 2)
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

	err := onlyError(service.Exec(bounded(t), "select coupond.locked_coupons(array['lamp', ''])"))
	if sqlstate(t, err) != pgerrcode.InvalidParameterValue {
		t.Errorf("an empty name: %v", err)
	}
}

// ApplyProxy refuses a database with coupons, and Apply refuses a proxy.
func TestApply_proxyMismatch(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	if err := db.ApplyProxy(bounded(t), s.Conn, db.Options{}); !errors.Is(err, db.ErrNotAProxy) {
		t.Error(err)
	}
	proxy := emptyProxy(t)
	if err := db.ApplyProxy(bounded(t), proxy.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Apply(bounded(t), proxy.Conn, db.Options{}); !errors.Is(err, db.ErrIsAProxy) {
		t.Error(err)
	}
	if n := get[int](proxy, "select count(*) from pg_class where relnamespace = 'coupond'::regnamespace and relkind = 'r'"); n != 0 {
		t.Errorf("a proxy has %d tables, want 0", n)
	}
}

// coupon_shards returns which partitions share a shard, and nothing else about the shards.
func TestCouponShards(t *testing.T) {
	t.Parallel()
	proxy := emptyProxy(t)
	if err := db.ApplyProxy(bounded(t), proxy.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
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
