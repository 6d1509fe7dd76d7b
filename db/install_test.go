package db_test

import (
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

// way is a way to install files in a database. The output is what an operator sees: the log or the
// notices, and the error.
type way func(t testing.TB, d *pgtest.Database, files fs.FS) (output string, err error)

// eachWay runs a test with both ways: Apply, and the script in psql. Both execute the same SQL, so
// most tests install with Apply only.
func eachWay(t *testing.T, test func(t *testing.T, by way)) {
	t.Helper()
	for name, by := range map[string]way{"Apply": byApply, "script": byScript} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, by)
		})
	}
}

// install installs files and returns the output. It fails the test if that fails.
func (by way) install(t testing.TB, d *pgtest.Database, files fs.FS) string {
	t.Helper()
	output, err := by(t, d, files)
	if err != nil {
		t.Fatal(output)
	}
	return output
}

// refused fails the test unless files are refused with an output that contains all parts.
func (by way) refused(t testing.TB, d *pgtest.Database, files fs.FS, parts ...string) {
	t.Helper()
	output, err := by(t, d, files)
	if err == nil {
		t.Errorf("installed: %s", output)
	}
	contains(t, output, parts...)
}

var byApply way = func(t testing.TB, d *pgtest.Database, files fs.FS) (output string, err error) {
	t.Helper()
	var log lineLog
	_, err = db.ApplyFiles(bounded(t), d.Connect(t), files, false, log.options())
	output = log.String()
	if err != nil {
		output = strings.TrimSpace(output + "\n" + err.Error())
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("an error of several lines: %v", err)
		}
	}
	return output, err
}

var byScript way = func(t testing.TB, d *pgtest.Database, files fs.FS) (output string, err error) {
	t.Helper()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("psql is not installed (Debian: apt-get install postgresql-client); tests of the script are skipped")
	}
	script, err := db.ScriptOf(files)
	if err != nil {
		t.Fatal(err)
	}
	psql := exec.CommandContext(bounded(t), "psql", "--no-psqlrc", "--quiet", "--file=-", d.URL)
	psql.Env = []string{"LC_ALL=C.UTF-8", "HOME=/"}
	psql.Stdin = strings.NewReader(script)
	text, err := psql.CombinedOutput()
	return string(text), err
}

// lineLog is a log for db.Options. Its zero value is ready to use.
type lineLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineLog) options() db.Options {
	return db.Options{Log: func(line string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, line)
	}}
}

func (l *lineLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// contains fails the test unless the text contains all parts.
func contains(t testingTB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in: %s", part, text)
		}
	}
}

// nextMigration is the path of a migration that the program does not have.
var nextMigration = fmt.Sprintf("migrations/%03d_next.sql", db.Version()+1)

// withMigration returns the program with another migration.
func withMigration(t testingTB, sql string) fstest.MapFS {
	t.Helper()
	files := program(t)
	files[nextMigration] = &fstest.MapFile{Data: []byte(sql)}
	return files
}

// owners returns the owners of all objects of the schema coupond, and of the schema.
func owners(s *session) []string {
	s.t.Helper()
	return list[string](s, `
		select distinct pg_get_userbyid(o.owner)::text
		from (
		  select nspowner as owner from pg_namespace where nspname = 'coupond'
		  union all
		  select relowner from pg_class where relnamespace = 'coupond'::regnamespace
		  union all
		  select proowner from pg_proc where pronamespace = 'coupond'::regnamespace
		  union all
		  select typowner from pg_type where typnamespace = 'coupond'::regnamespace
		) as o
		order by 1`)
}

// The schema belongs to alice. A superuser installs a newer program. Its function reads a table
// that its migration creates.
func TestInstall_upgradeByAnotherLogin(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, by way) {
		c := newCluster(t)
		alice := c.login("createrole")
		files, role := c.programWithOtherRoles()
		database := c.database(alice)
		asSuperuser := c.as("", database)
		// Supabase sets default privileges like these.
		admin := owner(t, asSuperuser)
		admin.exec(`
			alter default privileges grant all on tables to public;
			alter default privileges for role ` + alice + ` grant all on tables to public`)
		by.install(t, database, files)

		files[nextMigration] = &fstest.MapFile{Data: []byte("create table coupond.next (note text); create type coupond.kind as enum ('a'); create domain coupond.short as text")}
		function := files["functions/get_coupon.sql"]
		function.Data = append(function.Data, `
			create or replace function coupond.coupon_schema_version() returns integer language sql stable security definer
			set search_path = pg_catalog, coupond, pg_temp
			as 'select v.version + count(n.note)::int from schema_version as v left join next as n on true group by v.version';`...)
		by.install(t, asSuperuser, files)
		equal(t, "owners", owners(admin), []string{alice})
		equal(t, "tables that PUBLIC may read", list[string](admin, `
			select oid::regclass::text from pg_class
			where relnamespace = 'coupond'::regnamespace and relkind = 'r' and has_table_privilege('public', oid, 'select')`), nil)
		admin.exec("set role " + role)
		admin.create("lamp", 1)
		admin.mustClaim("ann", "lamp")
		if version := get[int32](admin, "select coupond.coupon_schema_version()"); version != db.Version()+1 {
			t.Errorf("version %d", version)
		}
		// The next one may be alice's again.
		by.install(t, database, files)
	})
}

func TestInstall_ownerCannotBeReached(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, by way) {
		c := newCluster(t)
		bob := c.login("createrole")
		database := c.database(bob)
		asSuperuser := c.as("", database)
		by.install(t, asSuperuser, db.Files)
		admin := owner(t, asSuperuser)
		before := catalog(admin)
		superuser := get[string](admin, "select current_user::text")
		by.refused(t, database, db.Files, "the login "+bob+" may not act as "+superuser+", the owner of the schema coupond", "alter schema coupond owner to")
		equal(t, "the catalog", catalog(admin), before)

		// The hint solves it: an administrator makes bob the owner and migrates once.
		admin.exec("alter schema coupond owner to " + bob)
		by.refused(t, database, db.Files, "belongs to "+superuser+", and the schema coupond to "+bob)
		contains(t, by.install(t, asSuperuser, db.Files), " objects of "+superuser+" now belong to "+bob+", the owner of the schema coupond")
		equal(t, "owners", owners(admin), []string{bob})
		c.exec("grant coupon_service to " + bob)
		by.install(t, database, db.Files)
	})
}

// The roles are created by whichever may: the owner of the schema or the login that acts as the
// owner. A cluster that a dump was restored into has no roles.
func TestInstall_rolesOfTheOwnerOrTheLogin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ owner, login []string }{
		"the owner": {owner: []string{"createrole"}, login: []string{}},
		"the login": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := newCluster(t)
			alice, login := cluster.login(c.owner...), ""
			if c.login != nil {
				login = cluster.login(c.login...)
				cluster.exec("grant " + alice + " to " + login)
			}
			files, role := cluster.programWithOtherRoles()
			database := cluster.database("")
			admin := owner(t, database)
			admin.exec("alter database " + database.Name + " owner to " + alice + "; create schema coupond authorization " + alice)
			for range 2 {
				byApply.install(t, cluster.as(login, database), files)
			}
			equal(t, "owners", owners(admin), []string{alice})
			admin.exec("set session authorization " + alice + "; set role " + role)
			admin.create("lamp", 1)
		})
	}
}

// Objects that roles who may act as the owner have added to the schema get the owner of the schema.
// Those of an extension keep theirs.
func TestInstall_objectsOfAnotherOwner(t *testing.T) {
	t.Parallel()
	c, alice, database := ownedDatabase(t, "createrole")
	bob := c.login()
	byApply.install(t, database, db.Files)
	admin := owner(t, c.as("", database))
	admin.exec(`
		create extension pg_trgm with schema coupond;
		create table coupond.mine (id int generated always as identity, old serial);
		create sequence coupond."my ""sequence";
		create materialized view coupond.m as select 1;
		create type coupond.pair as (a int, b int);
		create type coupond.span as range (subtype = int);
		create function coupond.many(variadic int[]) returns int language sql as 'select 1';
		create procedure coupond.p() language sql as 'select 1';
		create aggregate coupond.total(int) (sfunc = int4pl, stype = int)`)
	for _, object := range []string{
		"table coupond.mine", `sequence coupond."my ""sequence"`, "materialized view coupond.m", "type coupond.pair", "type coupond.span",
		"function coupond.many(int[])", "procedure coupond.p()", "aggregate coupond.total(int)",
	} {
		admin.exec("alter " + object + " owner to " + bob)
	}
	// That bob may act as alice says that they belong to the schema.
	admin.exec("grant " + alice + " to " + bob)
	byApply.refused(t, database, db.Files, "belongs to "+bob+", and the schema coupond to "+alice, "Migrate once as a superuser")
	byApply.install(t, c.as("", database), db.Files)
	equal(t, "objects of bob", list[string](admin, `
		select pg_describe_object(classid, objid, 0) from pg_shdepend
		where deptype = 'o' and refobjid = $1::text::regrole and dbid = (select oid from pg_database where datname = current_database())`, bob), nil)
	if n := get[int](admin, `
		select count(*) from pg_proc as p
		join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
		where p.pronamespace = 'coupond'::regnamespace and p.proowner = current_user::regrole`); n == 0 {
		t.Error("the extension's functions have another owner")
	}
}

// Whatever was granted, by default privileges or by hand, only our two roles have privileges.
func TestInstall_privileges(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, by way) {
		c := newCluster(t)
		anon := c.login()
		database := c.database("")
		admin := owner(t, database)
		for _, to := range []string{anon, "public"} {
			for _, kind := range []string{"schemas", "tables", "sequences", "functions", "types"} {
				admin.exec(fmt.Sprintf("alter default privileges grant all on %s to %s", kind, to))
			}
		}
		admin.exec("alter default privileges grant all on tables to coupon_service; alter default privileges grant all on functions to coupon_monitor")
		others := func() []string {
			return list[string](admin, `
				select o.object || ': ' || a.privilege_type || ' for ' || case a.grantee when 0 then 'public' else a.grantee::regrole::text end
				from (
				  select nspname::text as object, nspowner as owner, coalesce(nspacl, acldefault('n', nspowner)) as acl
				  from pg_namespace where nspname = 'coupond'
				  union all
				  select relname, relowner, coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
				  from pg_class where relnamespace = 'coupond'::regnamespace and relkind in ('r', 'v', 'S')
				  union all
				  select r.relname || '.' || a.attname, r.relowner, a.attacl
				  from pg_attribute as a join pg_class as r on r.oid = a.attrelid
				  where r.relnamespace = 'coupond'::regnamespace and a.attacl is not null
				  union all
				  select proname, proowner, coalesce(proacl, acldefault('f', proowner))
				  from pg_proc where pronamespace = 'coupond'::regnamespace
				  union all
				  select typname, typowner, coalesce(typacl, acldefault('T', typowner))
				  from pg_type where typnamespace = 'coupond'::regnamespace and typtype in ('d', 'e')
				) as o
				cross join aclexplode(o.acl) as a
				where a.grantee <> o.owner
				order by 1`)
		}
		var first []string
		for i := range 3 {
			by.install(t, database, db.Files)
			got := others()
			if i == 0 {
				first = got
			}
			for _, line := range got {
				if !strings.HasSuffix(line, " for coupon_service") && !strings.HasSuffix(line, " for coupon_monitor") {
					t.Errorf("after installation %d: %s", i+1, line)
				}
			}
			equal(t, "privileges", got, first)
			admin.exec(`
				grant all on all tables in schema coupond to coupon_service, public;
				grant update (amount) on coupond.coupons to ` + anon + ` with grant option;
				grant all on schema coupond to coupon_monitor, ` + anon + `;
				grant execute on all functions in schema coupond to public`)
		}
		contains(t, strings.Join(first, "\n"), "claim_coupon: EXECUTE for coupon_service", "sale_progress: SELECT for coupon_monitor")
	})
}

// Tables of other programs in public are neither read nor changed: the login may not even use that
// schema.
func TestInstall_neighbours(t *testing.T) {
	t.Parallel()
	c, _, database := ownedDatabase(t, "createrole")
	admin := owner(t, c.as("", database))
	admin.exec(`
		alter schema public owner to ` + get[string](admin, "select current_user::text") + `;
		revoke all on schema public from public;
		create table public.schema_version (version int4 not null);
		insert into public.schema_version values (3);
		create table public.flyway_schema_history (installed_rank int primary key, version text);
		create table public.coupons (code text primary key);
		create table public.claims (id int primary key);
		create table public.shard ();
		create type public.claim_status as enum ('open');
		create function public.claim_coupon(text, text) returns text language sql as 'select 1';
		create function public.claim_coupons(text[], int) returns text language sql as 'select 1'`)
	neighbours := func() []string {
		return list[string](admin, `
			select format('%s %s %s', c.oid::regclass, c.xmin, c.relacl) from pg_class as c where c.relnamespace = 'public'::regnamespace
			union all
			select format('%s %s %s', p.oid::regprocedure, p.xmin, p.proacl) from pg_proc as p where p.pronamespace = 'public'::regnamespace
			union all
			select format('%s %s', n.nspname, n.nspacl) from pg_namespace as n where n.nspname = 'public'
			union all
			select format('version %s %s', v.version, v.xmin) from public.schema_version as v
			order by 1`)
	}
	before := neighbours()
	for range 2 {
		byApply.install(t, database, db.Files)
	}
	equal(t, "the neighbours", neighbours(), before)
	admin.exec("set role coupon_service")
	admin.create("lamp", 1)
	admin.mustClaim("ann", "lamp")
}

// A schema coupond of another program is refused, and so is an installation from before that
// schema.
func TestInstall_refusesOtherDatabases(t *testing.T) {
	t.Parallel()
	const before = `
		create function public.claim_coupons(p_users text[], p_coupon text) returns text[] language sql as 'select p_users';
		create table public.claims ()`
	const foreign = "the schema coupond belongs to another program"
	database := pgtest.Empty(t)
	admin := owner(t, database)
	objects := func() []string {
		return list[string](admin, `
			select c.oid::regclass::text || c.xmin from pg_class as c
			where c.relnamespace in (select oid from pg_namespace where nspname in ('public', 'coupond'))
			union all
			select nspname || xmin from pg_namespace where nspname = 'coupond'
			order by 1`)
	}
	for name, c := range map[string]struct {
		sql  string
		want []string
	}{
		"a table":         {"create schema coupond; create table coupond.things ()", []string{foreign, "table coupond.things", "Use another database"}},
		"a function":      {"create schema coupond; create function coupond.claim_coupons(text[], text) returns int language sql as 'select 1'", []string{foreign}},
		"a type":          {"create schema coupond; create type coupond.claim_status as enum ()", []string{foreign}},
		"tern's table":    {"create schema coupond; create table coupond.schema_version (version int4 not null); insert into coupond.schema_version values (3)", []string{foreign}},
		"Flyway's table":  {"create schema coupond; create table coupond.schema_version (installed_rank int, version text)", []string{foreign}},
		"an old coupond":  {before, []string{"older coupond in the schema public", "never released", "delete its folder .coupond"}},
		"both, one empty": {"create schema coupond;" + before, []string{"older coupond in the schema public"}},
	} {
		t.Run(name, func(t *testing.T) {
			admin.exec("drop schema if exists coupond cascade; drop schema public cascade; create schema public; " + c.sql)
			before := objects()
			byApply.refused(t, database, db.Files, c.want...)
			equal(t, "objects", objects(), before)
			if err := db.ApplyProxy(bounded(t), database.Connect(t), db.Options{}); err == nil || !strings.Contains(err.Error(), c.want[0]) {
				t.Errorf("ApplyProxy: %v", err)
			}
			equal(t, "objects after ApplyProxy", objects(), before)
		})
	}
}

// An administrator may create the schema for a login that may not.
func TestInstall_schemaExists(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	login := c.login()
	files, role := c.programWithOtherRoles()
	database := c.database("")
	admin := owner(t, database)
	admin.exec(fmt.Sprintf("create role %s nologin; create role %s nologin; grant %[1]s to %[3]s; create schema coupond authorization %[3]s",
		role, monitorOf(role), login))
	byApply.install(t, c.as(login, database), files)
	equal(t, "owners", owners(admin), []string{login})
}

// A role that may create schemas cannot have this one before a superuser installs, and so own the
// tables and functions.
func TestInstall_schemaOfAnotherRole(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"empty": "",
		"with our version table": `
			create table coupond.schema_version (version int4 not null, singleton boolean not null default true,
			  constraint schema_version_pkey primary key (singleton));
			insert into coupond.schema_version values (0)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			login := c.login()
			database := c.database("")
			admin := owner(t, database)
			admin.exec("grant create on database " + database.Name + " to " + login)
			owner(t, c.as(login, database)).exec("create schema coupond;" + sql)
			byApply.refused(t, database, db.Files, "the schema coupond belongs to "+login+", which does not own this database")
			if code := sqlstate(t, db.ApplyProxy(bounded(t), database.Connect(t), db.Options{})); code != "UC004" && code != "UC002" {
				t.Errorf("ApplyProxy: SQLSTATE %s", code)
			}
			// The hint solves it.
			admin.exec("grant " + login + " to current_user")
			byApply.install(t, database, db.Files)
			equal(t, "owners", owners(admin), []string{login})
		})
	}
}

// What another role has created in the schema is refused, whatever it is: a function could be
// called instead of ours, with the owner's privileges.
func TestInstall_objectsOfAStranger(t *testing.T) {
	t.Parallel()
	const check = "returns void language sql as 'select'"
	c := newCluster(t)
	bob := c.login()
	database := c.database("")
	admin, stranger := owner(t, database), owner(t, c.as(bob, database))
	byApply.install(t, database, db.Files)
	for name, sql := range map[string]string{
		"an overload":         "create function coupond.check_name(text, varchar) " + check,
		"a variadic overload": "create function coupond.check_shard(variadic text[]) " + check,
		"a built-in function": "create function coupond.format(text, text) returns text language sql as 'select $1'",
		"an operator": `create function coupond.never(text, text) returns boolean language sql as 'select false';
			create operator coupond.= (leftarg = text, rightarg = text, function = coupond.never)`,
		"only an operator": "create operator coupond.<> (leftarg = text, rightarg = text, function = pg_catalog.texteq)",
		"a type":           "create type coupond.text as enum ('a')",
		"a domain":         "create domain coupond.integer as bigint",
		"a table":          "create table coupond.next ()",
		"a view":           "create view coupond.next as select 1",
		"a collation":      `create collation coupond."C" from "POSIX"`,
		"a text search":    "create text search configuration coupond.s (copy = pg_catalog.simple)",
	} {
		t.Run(name, func(t *testing.T) {
			admin.exec("grant usage, create on schema coupond to " + bob)
			stranger.exec(sql)
			before := catalog(admin)
			byApply.refused(t, database, db.Files, " belongs to "+bob+", and the schema coupond to ", "it is not ours")
			equal(t, "the catalog", catalog(admin), before)
			admin.exec("drop owned by " + bob)
		})
	}
	byApply.install(t, database, db.Files)
}

// From the first transaction on, whatever default privileges give, no other role may create objects
// in the schema or use those that are there, even if the installation does not get further.
func TestInstall_interrupted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		broken string // a file that fails
		tables bool
	}{
		"in the first migration": {"migrations/001_coupond.sql", false},
		"in the functions":       {"functions/get_coupon.sql", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, by way) {
				cluster := newCluster(t)
				bob := cluster.login()
				database := cluster.database("")
				admin := owner(t, database)
				for _, kind := range []string{"schemas", "tables", "functions", "types"} {
					admin.exec(fmt.Sprintf("alter default privileges grant all on %s to public, %s", kind, bob))
				}
				files := program(t)
				files[c.broken].Data = append(files[c.broken].Data, "\nselect 1 / 0;"...)
				by.refused(t, database, files, "division by zero")
				if got := get[bool](admin, "select to_regclass('coupond.claims') is not null"); got != c.tables {
					t.Fatalf("the tables exist: %v", got)
				}
				stranger := owner(t, cluster.as(bob, database))
				for _, sql := range []string{
					"create function coupond.check_name(text, varchar) returns void language sql as ''",
					"create table coupond.next ()",
					"select from coupond.schema_version",
					"select from coupond.claims",
				} {
					stranger.fails("42501", sql)
				}
			})
		})
	}
}

// An owner that has taken its own privileges away gets them back.
func TestInstall_ownerWithoutPrivileges(t *testing.T) {
	t.Parallel()
	_, _, database := ownedDatabase(t)
	byApply.install(t, database, db.Files)
	admin := owner(t, database)
	before := catalog(admin)
	admin.exec("revoke all on all tables in schema coupond from current_user; revoke all on schema coupond from current_user")
	byApply.install(t, database, db.Files)
	equal(t, "the catalog", catalog(admin), before)
}

// A superuser who installs a new version must not run the code of the schema's owner.
func TestInstall_codeOfTheOwner(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.exec("create function public.f() returns trigger language plpgsql as 'begin return new; end'")
	const table = "coupond.schema_version"
	for name, c := range map[string]struct{ sql, undo string }{
		"trigger": {"create trigger t before update on " + table + " for each row execute function public.f()", "drop trigger t on " + table},
		"rule":    {"create rule r as on update to " + table + " do also select 1", "drop rule r on " + table},
		"check":   {"alter table " + table + " add constraint c check (version < 1000)", "alter table " + table + " drop constraint c"},
		"default": {"alter table " + table + " alter version set default length('a')", "alter table " + table + " alter version drop default"},
		"index":   {"create index i on " + table + " (length(version::text))", "drop index coupond.i"},
		"policy":  {"create policy p on " + table + " using (true)", "drop policy p on " + table},
	} {
		t.Run(name, func(t *testing.T) {
			admin.exec(c.sql)
			byApply.refused(t, database, db.Files, "that is not ours")
			admin.exec(c.undo)
		})
	}
	byApply.install(t, database, db.Files)
}

// The row of the version table is data: it can be lost or replaced while the other objects stay.
func TestInstall_versionTable(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	normal := catalog(admin)
	comment := get[string](admin, "select obj_description('coupond.schema_version'::regclass)")
	current, newer := fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1)
	for name, c := range map[string]struct {
		sql  string
		want string // in the output; the version is then the program's
		fail bool
	}{
		"all tables truncated": {"truncate coupond.coupons, coupond.claims, coupond.shard, coupond.schema_version", "had no row; it now has " + current, false},
		"an older row":         {"update coupond.schema_version set version = 0", "had version 0; it now has " + current, false},
		"a newer row":          {"update coupond.schema_version set version = " + newer, "the database has version " + newer + ", this", true},
		"a newer comment": {
			"truncate coupond.schema_version; comment on table coupond.schema_version is '" + strings.TrimSuffix(comment, current) + newer + "'",
			"the database has version " + newer + ", this", true,
		},
		"another comment": {"comment on table coupond.schema_version is 'see ticket 4711'", "", false},
		"no comment":      {"comment on table coupond.schema_version is null", "", false},
		"no comment and no row": {
			"comment on table coupond.schema_version is null; delete from coupond.schema_version",
			"insert into coupond.schema_version (version) values (" + current + ")", true,
		},
		"no comment, no row and no tables": {
			`drop schema coupond cascade; create schema coupond;
			create table coupond.schema_version (version int4 not null, singleton boolean not null default true,
			  constraint schema_version_pkey primary key (singleton), constraint schema_version_has_one_row check (singleton),
			  constraint schema_version_is_not_negative check (version >= 0))`,
			"had no row; it now has 0", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			admin.exec(c.sql)
			if c.fail {
				byApply.refused(t, database, db.Files, c.want)
				admin.exec("truncate coupond.schema_version; insert into coupond.schema_version (version) values (" + current + ");" +
					"comment on table coupond.schema_version is '" + comment + "'")
				return
			}
			contains(t, byApply.install(t, database, db.Files), c.want)
			equal(t, "versions", list[int32](admin, "select version from coupond.schema_version"), []int32{db.Version()})
			equal(t, "the catalog", catalog(admin), normal)
			if output := byApply.install(t, database, db.Files); strings.Contains(output, "schema_version") {
				t.Errorf("the second time: %s", output)
			}
		})
	}
}

func TestInstall_oneVersionOnly(t *testing.T) {
	t.Parallel()
	admin := owner(t, pgtest.New(t))
	for sql, want := range map[string]string{
		"insert into coupond.schema_version (version) values (7)":                   "23505",
		"insert into coupond.schema_version (version, singleton) values (7, false)": "23514",
		"update coupond.schema_version set version = -1":                            "23514",
	} {
		admin.fails(want, sql)
	}
}
