package db_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// serviceFunctions are the functions that the service may call. Only the owner may use the other
// objects of the schema.
var serviceFunctions = []string{
	"claim_batch(text[],text[],integer[])",
	"claim_coupon(text,text)",
	"claim_coupons(text[],text)",
	"coupon_claimers(text,integer,integer)",
	"coupon_schema_version()",
	"create_coupon(text,bigint)",
	"get_coupon(text)",
	"locked_coupons(text[])",
	"session_problem()",
}

// (The pgTAP tests in db/tests/schema list the privileges on all other objects.)
func TestGrants(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.exec("set search_path = coupond, pg_catalog")
	functions := func(condition string) []string {
		t.Helper()
		return list[string](s, `
			select p.oid::regprocedure::text
			from pg_proc as p
			where p.pronamespace = 'coupond'::regnamespace
			  and (`+condition+`)
			order by 1`)
	}
	equal(t, "functions that coupon_service may execute", functions("has_function_privilege('coupon_service', p.oid, 'execute')"), serviceFunctions)
	equal(t, "functions that PUBLIC may execute", functions("has_function_privilege('public', p.oid, 'execute')"), nil)
	// So that a call means one function only.
	equal(t, "functions with a variable number of arguments", functions("p.provariadic <> 0 or p.pronargdefaults > 0"), nil)
	equal(t, "SECURITY DEFINER functions that do not pin what names mean and how statements are planned", functions(`
		p.prosecdef and p.proconfig @> array['search_path=pg_catalog, coupond, pg_temp', 'plan_cache_mode=force_generic_plan'] is not true`), nil)
	equal(t, "other functions that coupon_service may execute", functions(`
		not p.prosecdef and has_function_privilege('coupon_service', p.oid, 'execute')`), []string{"session_problem()"})
}

// Apply revokes privileges that another role has passed on, and gives back what the owner has lost.
func TestGrants_passedOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	bob, carol := c.login(), c.login()
	database := c.database("")
	s := owner(t, database)
	byApply.install(t, database, db.Files)
	want := catalog(s)
	s.exec(fmt.Sprintf(`
		grant all on schema coupond to %[1]s, %[2]s;
		grant all on coupond.claims to %[1]s with grant option;
		grant select (name) on coupond.coupons to %[1]s with grant option;
		grant execute on function coupond.claim_coupon(text, text) to %[1]s with grant option;
		set role %[1]s;
		grant select, update on coupond.claims to %[2]s;
		grant select (user_id), update (user_id) on coupond.claims to %[2]s, public;
		grant select (name) on coupond.coupons to %[2]s;
		grant execute on function coupond.claim_coupon(text, text) to %[2]s;
		reset role;
		revoke all on coupond.coupons from current_user;
		revoke execute on function coupond.check_name(text, text) from current_user`, bob, carol))
	byApply.install(t, database, db.Files)
	equal(t, "the catalog", catalog(s), want)
	s.exec("set role coupon_service")
	s.create("lamp", 1)
	s.mustClaim("ann", "lamp")
}

// A caller of the functions can also create temporary objects and change its search_path and
// settings. None of that affects the functions.
func TestFunctions_ignoreTheCallersObjectsAndSettings(t *testing.T) {
	t.Parallel()
	s := service(t, pgtest.New(t))
	s.exec(`
		create temporary table coupons (like pg_catalog.pg_class);
		create temporary table claims as select 'hot'::text as coupon_name, 1 as claim_number, 'a'::text as user_id;
		create temporary view schema_version as select 99 as version;
		create type pg_temp.claim_status as enum ('mine');
		create domain pg_temp.text as integer;
		create domain pg_temp.integer as boolean;
		create function pg_temp.check_name(text, text) returns void language sql as '';
		create function pg_temp.check_names(text, text[]) returns void language sql as '';
		create function pg_temp.check_shard(text) returns void language sql as $$ select 1 / 0 $$;
		create function pg_temp.check_shards(text[]) returns void language sql as $$ select 1 / 0 $$;
		create function pg_temp.find_claim(text, text) returns setof boolean language sql as 'select true';
		create function pg_temp.is_valid_name(text) returns boolean language sql as 'select true';
		create function pg_temp.char_length(text) returns integer language sql as 'select 1';
		create function pg_temp.btrim(text, text) returns text language sql as 'select $1';
		create function pg_temp.cardinality(anyarray) returns integer language sql as 'select 0';
		create function pg_temp.never(text, text) returns boolean language sql as 'select false';
		create operator pg_temp.= (leftarg = text, rightarg = text, function = pg_temp.never);
		create operator pg_temp.<> (leftarg = text, rightarg = text, function = pg_temp.never);
		set search_path = pg_temp, coupond, public, pg_catalog;
		set standard_conforming_strings = off;
		set plpgsql.extra_errors = 'all';
		set transform_null_equals = on;
		set array_nulls = off;
		set enable_indexscan = off;
		set enable_indexonlyscan = off;
		set plan_cache_mode = force_custom_plan`)

	s.create("hot", 3)
	equal(t, "claim_coupon", []string{s.claim("a", "hot"), s.claim("a", "hot"), s.claim("a", "none")}, []string{claimed, alreadyClaimed, couponNotFound})
	equal(t, "claim_coupons", s.claimCoupons([]string{"a", "b", "b"}, "hot"), []string{alreadyClaimed, claimed, alreadyClaimed})
	equal(t, "claim_batch", s.claimBatch([]string{"a", "c", "d", "d"}, []string{"hot", "hot", "hot", "none"}),
		[]string{alreadyClaimed, claimed, outOfStock, couponNotFound})
	equal(t, "coupon_claimers", list[string](s, "select coupond.coupon_claimers('hot', 0, 10)"), []string{"a", "b", "c"})
	equal(t, "locked_coupons", list[string](s, "select coupond.locked_coupons(array['hot', 'none'])"), nil)
	if left := get[int](s, "select remaining_amount from coupond.get_coupon('hot')"); left != 0 {
		t.Errorf("get_coupon: %d left", left)
	}
	if version := get[int](s, "select coupond.coupon_schema_version()"); version == 99 {
		t.Error("coupon_schema_version reads the caller's view")
	}
	for _, bad := range []string{"", "\u3000", strings.Repeat("x", 256)} {
		for _, sql := range []string{"select coupond.claim_coupon('a', $1)", "select coupond.claim_coupons(array[$1], 'hot')", "select coupond.create_coupon($1, 1)"} {
			s.fails("22023", sql, bad)
		}
	}
}

// In a database that was upgraded from PostgreSQL 14, everybody may create objects in the schema
// public. Neither the installation nor the functions use any of them, whatever the search_path of
// the database and however well their arguments match.
func TestFunctions_ignoreObjectsInPublic(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	bob := c.login()
	database := c.database("")
	admin := owner(t, database)
	admin.exec("grant create on schema public to public; alter database " + database.Name + " set search_path = public, coupond, pg_catalog")
	stranger := owner(t, c.as(bob, database))
	stranger.exec(`
		create function public.attack() returns void language plpgsql as $$ begin raise exception using errcode = 'XX999'; end; $$;
		create function public.check_name(text, text) returns void language sql as 'select public.attack()';
		create function public.check_name(varchar, text) returns void language sql as 'select public.attack()';
		create function public.check_names(text, variadic text[]) returns void language sql as 'select public.attack()';
		create function public.check_shard(text) returns void language sql as 'select public.attack()';
		create function public.check_shards(text[]) returns void language sql as 'select public.attack()';
		create function public.check_claims() returns trigger language plpgsql as $$ begin perform public.attack(); return null; end; $$;
		create function public.find_claim(text, text) returns setof boolean language sql as 'select true';
		create function public.format(text, text) returns text language sql as 'select public.attack()::text';
		create function public.format(text, integer) returns text language sql as 'select public.attack()::text';
		create function public.array_position(integer[], integer) returns integer language sql as 'select 1 from public.attack()';
		create function public.array_ndims(text[]) returns integer language sql as 'select 1 from public.attack()';
		create function public.cardinality(text[]) returns integer language sql as 'select 1 from public.attack()';
		create function public.unnest(text[]) returns setof text language sql as 'select public.attack()::text';
		create function public.aclexplode(aclitem[], out grantee oid) returns setof oid language sql as 'select null::oid from public.attack()';
		create function public.never(text, text) returns boolean language sql as 'select false from public.attack()';
		create operator public.= (leftarg = text, rightarg = text, function = public.never);
		create operator public.<> (leftarg = name, rightarg = text, function = pg_catalog.namenetext);
		create type public.claim_status as enum ('attack');
		create domain public.text as integer;
		create view public.pg_roles as select 1`)
	for range 2 {
		byApply.install(t, database, db.Files)
	}
	// To match better than the built-in ones, an operator or a cast needs our types.
	for _, sql := range []string{
		"create operator public.= (leftarg = coupond.user_id, rightarg = pg_catalog.text, function = public.never)",
		"create cast (pg_catalog.text as coupond.claim_status) with inout",
		"create domain public.user_id as coupond.user_id",
	} {
		stranger.fails("42501", sql)
	}

	s := service(t, database)
	s.create("hot", 2)
	equal(t, "claims", slices.Concat([]string{s.claim("a", "hot")}, s.claimCoupons([]string{"a", "b"}, "hot"), s.claimBatch([]string{"a", "c"}, same("hot", 2))),
		[]string{claimed, alreadyClaimed, claimed, alreadyClaimed, outOfStock})
	equal(t, "coupon_claimers", list[string](s, "select coupond.coupon_claimers('hot', 0, 10)"), []string{"a", "b"})
	for _, sql := range []string{"select coupond.claim_coupon('', 'hot')", "select coupond.claim_coupons(array[null], 'hot')"} {
		s.fails("22023", sql)
	}
	// By hand, as the owner, with public first in the search_path.
	admin.fails("23503", "insert into coupond.claims (coupon_name, claim_number, user_id) values ('hot', 3, 'eve')")
}
