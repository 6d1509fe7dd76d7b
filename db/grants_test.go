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

var triggerFunctions = []string{
	"check_claims()",
	"protect_coupons()",
}

var internalFunctions = []string{
	"check_name(text,text)",
	"check_names(text,text[])",
	"check_shard(text)",
	"check_shards(text[])",
	"find_claim(text,text)",
	"is_valid_name(text)",
	"owns_coupon(text)",
}

func TestGrants(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.exec("set search_path = coupond, pg_catalog")

	for role, want := range map[string][]string{"coupon_service": serviceFunctions, "public": nil} {
		equal(t, "functions that "+role+" may execute", list[string](s, `
			select p.oid::regprocedure::text
			from pg_proc as p
			where p.pronamespace = 'coupond'::regnamespace
			  and has_function_privilege($1, p.oid, 'execute')
			order by 1`, role), want)
	}
	all := slices.Concat(serviceFunctions, triggerFunctions, internalFunctions)
	slices.Sort(all)
	equal(t, "all functions", list[string](s, `
		select p.oid::regprocedure::text
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		order by p.oid::regprocedure::text collate "C"`), all)

	// So that a call means one function only.
	equal(t, "functions with a variable number of arguments", list[string](s, `
		select p.oid::regprocedure::text
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and (p.provariadic <> 0 or p.pronargdefaults > 0)`), nil)

	// Privileges of every kind, on relations of every kind and on their columns.
	equal(t, "privileges on relations of roles other than the owner", list[string](s, `
		select r.oid::regclass || ': ' || x.privilege_type || ' for ' || x.grantee::regrole::text
		from pg_class as r
		cross join aclexplode(coalesce(r.relacl, acldefault(case r.relkind when 'S' then 's' else 'r' end::"char", r.relowner))) as x
		where r.relnamespace = 'coupond'::regnamespace
		  and x.grantee <> r.relowner
		union all
		select a.attrelid::regclass || '.' || a.attname || ': ' || x.privilege_type
		from pg_attribute as a
		cross join aclexplode(a.attacl) as x
		join pg_class as r on r.oid = a.attrelid and r.relnamespace = 'coupond'::regnamespace`), []string{
		"sale_progress: SELECT for coupon_monitor",
	})
	equal(t, "privileges of coupon_service on the schema", list[string](s, `
		select r
		from unnest(array['usage', 'create']) as r
		where has_schema_privilege('coupon_service', 'coupond', r)`), []string{"usage"})
	equal(t, "attributes of coupon_service", list[string](s, `
		select unnest(array[
		  'login ' || r.rolcanlogin, 'superuser ' || r.rolsuper, 'createrole ' || r.rolcreaterole, 'createdb ' || r.rolcreatedb,
		  'replication ' || r.rolreplication, 'bypass row security ' || r.rolbypassrls,
		  'member of ' || (select count(*) from pg_auth_members as m where m.member = r.oid)])
		from pg_roles as r
		where r.rolname = 'coupon_service'`), []string{
		"login false", "superuser false", "createrole false", "createdb false", "replication false", "bypass row security false", "member of 0",
	})
	definers := slices.DeleteFunc(slices.Concat(triggerFunctions, serviceFunctions), func(f string) bool { return f == "session_problem()" })
	slices.Sort(definers)
	equal(t, "SECURITY DEFINER functions, which pin what names mean and how statements are planned", list[string](s, `
		select p.oid::regprocedure::text
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and p.prosecdef
		  and p.proconfig @> array['search_path=pg_catalog, coupond, pg_temp', 'plan_cache_mode=force_generic_plan']
		order by p.oid::regprocedure::text collate "C"`), definers)
	others := append(slices.Clone(internalFunctions), "session_problem()")
	equal(t, "other functions, which set nothing", list[string](s, `
		select p.oid::regprocedure::text
		from pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		  and not p.prosecdef
		  and p.proconfig is null
		order by p.oid::regprocedure::text collate "C"`), others)
}

// Apply revokes privileges that another role has passed on, and gives back what the owner has lost.
func TestGrants_passedOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	bob, carol := c.login(), c.login()
	s := owner(t, c.database(""))
	apply := func() {
		t.Helper()
		if _, err := db.Apply(bounded(t), s.Conn, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	privileges := func() []string {
		return list[string](s, `
			select r.relname || ' ' || r.relacl::text
			from pg_class as r
			where r.relnamespace = 'coupond'::regnamespace
			  and r.relacl is not null
			union all
			select r.relname || '.' || a.attname || ' ' || a.attacl::text
			from pg_attribute as a
			join pg_class as r on r.oid = a.attrelid
			where r.relnamespace = 'coupond'::regnamespace
			  and cardinality(a.attacl) > 0
			union all
			select p.proname || ' ' || p.proacl::text
			from pg_proc as p
			where p.pronamespace = 'coupond'::regnamespace
			order by 1`)
	}
	apply()
	want := privileges()
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
	apply()
	equal(t, "privileges", privileges(), want)
	s.exec("set role coupon_service")
	s.create("lamp", 1)
	equal(t, "a claim", []string{s.claim("ann", "lamp")}, []string{claimed})
}

// What the service's role may not do fails.
func TestServiceRole_permissionDenied(t *testing.T) {
	t.Parallel()
	s := service(t, pgtest.New(t))
	for _, sql := range []string{
		"select from coupond.coupons",
		"select from coupond.claims",
		"select from coupond.schema_version",
		"select from coupond.sale_progress",
		"select from coupond.shard",
		"select name from coupond.coupons for update",
		"insert into coupond.coupons (name, amount, remaining_amount) values ('forged', 1, 1)",
		"insert into coupond.claims (coupon_name, claim_number, user_id) values ('forged', 1, 'forger')",
		"update coupond.coupons set remaining_amount = amount",
		"delete from coupond.claims",
		"truncate coupond.claims",
		"do $$ begin lock table coupond.coupons; end $$",
		"create table coupond.mine ()",
		"create function coupond.mine() returns integer language sql as 'select 1'",
		"create trigger mine before insert on coupond.claims for each row execute function pg_catalog.suppress_redundant_updates_trigger()",
		"alter function coupond.claim_coupon(text, text) security invoker",
		"drop function coupond.claim_coupon(text, text)",
		"alter type coupond.claim_status add value 'mine'",
		"select coupond.check_name('p', 'x')",
		"select coupond.check_names('p', array['x'])",
		"select coupond.check_shard('x')",
		"select coupond.check_shards(array['x'])",
		"select coupond.find_claim('x', 'x')",
		"select coupond.is_valid_name('x')",
		"select coupond.owns_coupon('x')",
		"insert into coupond.shard (partitions, owned) values (1, '{}')",
	} {
		if err := onlyError(s.Exec(bounded(t), sql)); sqlstate(t, err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// The monitor's role can read the view, and nothing else.
func TestMonitorRole_readsOnlyTheView(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.create("lamp", 2)
	s.claim("ann", "lamp")
	equal(t, "attributes of coupon_monitor", list[string](s, `
		select format('login %s super %s createrole %s createdb %s, member of %s', r.rolcanlogin, r.rolsuper, r.rolcreaterole, r.rolcreatedb,
		  (select count(*) from pg_catalog.pg_auth_members as m where m.member = r.oid))
		from pg_catalog.pg_roles as r
		where r.rolname = 'coupon_monitor'`), []string{"login f super f createrole f createdb f, member of 0"})
	s.exec("set role coupon_monitor")
	equal(t, "rows of the view", list[string](s, "select name || ' ' || remaining_amount from coupond.sale_progress"), []string{"lamp 1"})
	for _, sql := range []string{
		"select from coupond.coupons",
		"select from coupond.claims",
		"select from coupond.schema_version",
		"update coupond.sale_progress set remaining_amount = amount",
		"delete from coupond.sale_progress",
		"select coupond.claim_coupon('ann', 'lamp')",
		"select coupond.create_coupon('mine', 1)",
		"select coupond.coupon_claimers('lamp', 0, 1)",
		"select coupond.coupon_schema_version()",
		"create table coupond.mine ()",
		"drop view coupond.sale_progress",
	} {
		if err := onlyError(s.Exec(bounded(t), sql)); sqlstate(t, err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
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
			if err := onlyError(s.Exec(bounded(t), sql, bad)); sqlstate(t, err) != "22023" {
				t.Errorf("%s %q: %v", sql, bad, err)
			}
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
	stranger := &session{c.connectAs(bob, database), t}
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
		if _, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	// To match better than the built-in ones, an operator or a cast needs our types.
	for _, sql := range []string{
		"create operator public.= (leftarg = coupond.user_id, rightarg = pg_catalog.text, function = public.never)",
		"create cast (pg_catalog.text as coupond.claim_status) with inout",
		"create domain public.user_id as coupond.user_id",
	} {
		if err := onlyError(stranger.Exec(bounded(t), sql)); sqlstate(t, err) != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}

	s := service(t, database)
	s.create("hot", 2)
	equal(t, "claims", slices.Concat([]string{s.claim("a", "hot")}, s.claimCoupons([]string{"a", "b"}, "hot"), s.claimBatch([]string{"a", "c"}, same("hot", 2))),
		[]string{claimed, alreadyClaimed, claimed, alreadyClaimed, outOfStock})
	equal(t, "coupon_claimers", list[string](s, "select coupond.coupon_claimers('hot', 0, 10)"), []string{"a", "b"})
	for _, sql := range []string{"select coupond.claim_coupon('', 'hot')", "select coupond.claim_coupons(array[null], 'hot')"} {
		if err := onlyError(s.Exec(bounded(t), sql)); sqlstate(t, err) != "22023" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	// By hand, as the owner, with public first in the search_path.
	if err := onlyError(admin.Exec(bounded(t), "insert into coupond.claims (coupon_name, claim_number, user_id) values ('hot', 3, 'eve')")); sqlstate(t, err) != "23503" {
		t.Errorf("a claim above the stock: %v", err)
	}
}
