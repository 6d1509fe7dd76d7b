package db_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// eachWay runs a test with both ways to install files in a database: Apply, and the script in psql.
// The output is what an operator sees: the log or the notices, and the error.
func eachWay(t *testing.T, test func(t *testing.T, install func(*pgtest.Database, fs.FS) (output string, err error))) {
	t.Helper()
	t.Run("Apply", func(t *testing.T) {
		t.Parallel()
		test(t, func(d *pgtest.Database, files fs.FS) (string, error) {
			var log lineLog
			_, err := db.ApplyFiles(bounded(t), d.Connect(t), files, log.options())
			output := log.String()
			if err != nil {
				output += "\n" + err.Error()
			}
			return output, err
		})
	})
	t.Run("script", func(t *testing.T) {
		t.Parallel()
		if _, err := exec.LookPath("psql"); err != nil {
			t.Skip("psql is not installed (Debian: apt-get install postgresql-client); tests of the script are skipped")
		}
		test(t, func(d *pgtest.Database, files fs.FS) (string, error) {
			script, err := db.ScriptOf(files)
			if err != nil {
				t.Fatal(err)
			}
			psql := exec.CommandContext(bounded(t), "psql", "--no-psqlrc", "--quiet", "--file=-", d.URL)
			psql.Env = []string{"LC_ALL=C.UTF-8", "HOME=/"}
			psql.Stdin = strings.NewReader(script)
			output, err := psql.CombinedOutput()
			return string(output), err
		})
	})
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

// withMigration returns the program with another migration.
func withMigration(t testingTB, sql string) fstest.MapFS {
	t.Helper()
	files := program(t)
	files[fmt.Sprintf("migrations/%03d_next.sql", db.Version()+1)] = &fstest.MapFile{Data: []byte(sql)}
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

// memberOfService makes a login a member of coupon_service, as an administrator does for an owner
// that is not a superuser.
func memberOfService(c *cluster, login string) {
	c.t.Helper()
	pgtest.New(c.tb) // creates the role
	c.exec("grant coupon_service to " + login)
}

// The schema belongs to alice. A superuser installs a newer program. Its function reads a table
// that its migration creates.
func TestInstall_upgradeByAnotherLogin(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		alice := c.login("createrole")
		files, role := c.programWithOtherRoles()
		database := c.database(alice)
		asSuperuser := &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)}
		// Supabase sets default privileges like these.
		admin := owner(t, asSuperuser)
		admin.exec(`
			alter default privileges grant all on tables to public;
			alter default privileges for role ` + alice + ` grant all on tables to public`)
		if output, err := install(database, files); err != nil {
			t.Fatal(output)
		}

		newer, ok := files.(fstest.MapFS)
		if !ok {
			t.Fatal("not a MapFS")
		}
		newer[fmt.Sprintf("migrations/%03d_next.sql", db.Version()+1)] = &fstest.MapFile{Data: []byte("create table coupond.next (note text); create type coupond.kind as enum ('a'); create domain coupond.short as text")}
		function := newer["functions/get_coupon.sql"]
		function.Data = append(function.Data, `
			create or replace function coupond.coupon_schema_version() returns integer language sql stable security definer
			set search_path = pg_catalog, coupond, pg_temp
			as 'select v.version + count(n.note)::int from schema_version as v left join next as n on true group by v.version';`...)
		if output, err := install(asSuperuser, newer); err != nil {
			t.Fatal(output)
		}
		equal(t, "owners", owners(admin), []string{alice})
		equal(t, "tables that PUBLIC may read", list[string](admin, `
			select oid::regclass::text from pg_class
			where relnamespace = 'coupond'::regnamespace and relkind = 'r' and has_table_privilege('public', oid, 'select')`), nil)
		admin.exec("set role " + role)
		admin.create("lamp", 1)
		if status := admin.claim("ann", "lamp"); status != claimed {
			t.Errorf("a claim: %s", status)
		}
		if version := get[int32](admin, "select coupond.coupon_schema_version()"); version != db.Version()+1 {
			t.Errorf("version %d", version)
		}
		// The next one may be alice's again.
		if output, err := install(database, newer); err != nil {
			t.Error(output)
		}
	})
}

func TestInstall_ownerCannotBeReached(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		bob := c.login("createrole")
		database := c.database(bob)
		asSuperuser := &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)}
		if output, err := install(asSuperuser, db.Files); err != nil {
			t.Fatal(output)
		}
		admin := owner(t, asSuperuser)
		before := catalog(admin)
		output, err := install(database, db.Files)
		superuser := get[string](admin, "select current_user::text")
		if err == nil {
			t.Errorf("installed: %s", output)
		}
		contains(t, output, "the login "+bob+" may not act as "+superuser+", the owner of the schema coupond", "alter schema coupond owner to")
		equal(t, "the catalog", catalog(admin), before)

		// The hint solves it: an administrator makes bob the owner and migrates once.
		admin.exec("alter schema coupond owner to " + bob)
		output, err = install(database, db.Files)
		if err == nil {
			t.Errorf("installed: %s", output)
		}
		contains(t, output, "belongs to "+superuser+", and the schema coupond to "+bob)
		output, err = install(asSuperuser, db.Files)
		if err != nil {
			t.Fatal(output)
		}
		contains(t, output, " objects of "+superuser+" now belong to "+bob+", the owner of the schema coupond")
		equal(t, "owners", owners(admin), []string{bob})
		memberOfService(c, bob)
		if output, err := install(database, db.Files); err != nil {
			t.Error(output)
		}
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
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
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
					if output, err := install(&pgtest.Database{Name: database.Name, URL: cluster.url(login, database.Name)}, files); err != nil {
						t.Fatal(output)
					}
				}
				equal(t, "owners", owners(admin), []string{alice})
				admin.exec("set session authorization " + alice + "; set role " + role)
				admin.create("lamp", 1)
			})
		})
	}
}

// Objects that roles who may act as the owner have added to the schema get the owner of the schema.
// Those of an extension keep theirs.
func TestInstall_objectsOfAnotherOwner(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		alice, bob := c.login("createrole"), c.login()
		memberOfService(c, alice)
		database := c.database(alice)
		if output, err := install(database, db.Files); err != nil {
			t.Fatal(output)
		}
		admin := owner(t, &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)})
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
		output, err := install(database, db.Files)
		if err == nil {
			t.Errorf("installed: %s", output)
		}
		contains(t, output, "belongs to "+bob+", and the schema coupond to "+alice, "Migrate once as a superuser")
		asSuperuser := &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)}
		if output, err := install(asSuperuser, db.Files); err != nil {
			t.Fatal(output)
		}
		equal(t, "objects of bob", list[string](admin, `
			select pg_describe_object(classid, objid, 0) from pg_shdepend
			where deptype = 'o' and refobjid = $1::text::regrole and dbid = (select oid from pg_database where datname = current_database())`, bob), nil)
		if n := get[int](admin, `
			select count(*) from pg_proc as p
			join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
			where p.pronamespace = 'coupond'::regnamespace and p.proowner = current_user::regrole`); n == 0 {
			t.Error("the extension's functions have another owner")
		}
	})
}

// Whatever was granted, by default privileges or by hand, only our two roles have privileges.
func TestInstall_privileges(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
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
			if output, err := install(database, db.Files); err != nil {
				t.Fatal(output)
			}
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
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		alice := c.login("createrole")
		memberOfService(c, alice)
		database := c.database(alice)
		admin := owner(t, &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)})
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
			if output, err := install(database, db.Files); err != nil {
				t.Fatal(output)
			}
		}
		equal(t, "the neighbours", neighbours(), before)
		admin.exec("set role coupon_service")
		admin.create("lamp", 1)
		if status := admin.claim("ann", "lamp"); status != claimed {
			t.Errorf("a claim: %s", status)
		}
	})
}

// A schema coupond of another program is refused, and so is an installation from before that
// schema.
func TestInstall_refusesOtherDatabases(t *testing.T) {
	t.Parallel()
	const before = `
		create function public.claim_coupons(p_users text[], p_coupon text) returns text[] language sql as 'select p_users';
		create table public.claims ()`
	for name, c := range map[string]struct {
		sql  string
		want []string
		err  error
	}{
		"a table":         {"create schema coupond; create table coupond.things ()", []string{"the schema coupond belongs to another program", "table coupond.things", "Use another database"}, db.ErrForeignSchema},
		"a function":      {"create schema coupond; create function coupond.claim_coupons(text[], text) returns int language sql as 'select 1'", []string{"belongs to another program"}, db.ErrForeignSchema},
		"a type":          {"create schema coupond; create type coupond.claim_status as enum ()", []string{"belongs to another program"}, db.ErrForeignSchema},
		"tern's table":    {"create schema coupond; create table coupond.schema_version (version int4 not null); insert into coupond.schema_version values (3)", []string{"belongs to another program"}, db.ErrForeignSchema},
		"Flyway's table":  {"create schema coupond; create table coupond.schema_version (installed_rank int, version text)", []string{"belongs to another program"}, db.ErrForeignSchema},
		"an old coupond":  {before, []string{"older coupond in the schema public", "never released", "delete its folder .coupond"}, db.ErrOldInstallation},
		"both, one empty": {"create schema coupond;" + before, []string{"older coupond in the schema public"}, db.ErrOldInstallation},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				database := pgtest.Empty(t)
				admin := owner(t, database)
				admin.exec(c.sql)
				objects := func() []string {
					return list[string](admin, `
						select c.oid::regclass::text || c.xmin from pg_class as c
						where c.relnamespace in (select oid from pg_namespace where nspname in ('public', 'coupond'))
						union all
						select nspname || xmin from pg_namespace where nspname = 'coupond'
						order by 1`)
				}
				before := objects()
				output, err := install(database, db.Files)
				if err == nil {
					t.Errorf("installed: %s", output)
				}
				contains(t, output, c.want...)
				equal(t, "objects", objects(), before)

				if err := db.ApplyProxy(bounded(t), admin.Conn, db.Options{}); !errors.Is(err, c.err) {
					t.Errorf("ApplyProxy: %v, want %v", err, c.err)
				}
				equal(t, "objects after ApplyProxy", objects(), before)
			})
		})
	}
}

// An administrator may create the schema for a login that may not.
func TestInstall_schemaExists(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		login := c.login()
		files, role := c.programWithOtherRoles()
		database := c.database("")
		admin := owner(t, database)
		admin.exec(fmt.Sprintf("create role %s nologin; create role %s nologin; grant %[1]s to %[3]s; create schema coupond authorization %[3]s",
			role, monitorOf(role), login))
		output, err := install(&pgtest.Database{Name: database.Name, URL: c.url(login, database.Name)}, files)
		if err != nil {
			t.Fatal(output)
		}
		equal(t, "owners", owners(admin), []string{login})
	})
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
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				c := newCluster(t)
				login := c.login()
				database := c.database("")
				admin := owner(t, database)
				admin.exec("grant create on database " + database.Name + " to " + login)
				stranger := &session{c.connectAs(login, database), t}
				stranger.exec("create schema coupond;" + sql)
				want := "the schema coupond belongs to " + login + ", which does not own this database"
				if output, err := install(database, db.Files); err == nil || !strings.Contains(output, want) {
					t.Errorf("%v: %s", err, output)
				}
				if err := db.ApplyProxy(bounded(t), admin.Conn, db.Options{}); !errors.Is(err, db.ErrForeignSchema) && !errors.Is(err, db.ErrNotAProxy) {
					t.Errorf("ApplyProxy: %v", err)
				}
				// The hint solves it.
				admin.exec("grant " + login + " to current_user")
				if output, err := install(database, db.Files); err != nil {
					t.Error(output)
				}
				equal(t, "owners", owners(admin), []string{login})
			})
		})
	}
}

// What another role has created in the schema is refused, whatever it is: a function could be
// called instead of ours, with the owner's privileges.
func TestInstall_objectsOfAStranger(t *testing.T) {
	t.Parallel()
	const check = "returns void language sql as 'select'"
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
			t.Parallel()
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				c := newCluster(t)
				bob := c.login()
				database := c.database("")
				admin := owner(t, database)
				if output, err := install(database, db.Files); err != nil {
					t.Fatal(output)
				}
				admin.exec("grant usage, create on schema coupond to " + bob)
				stranger := &session{c.connectAs(bob, database), t}
				stranger.exec(sql)
				before := catalog(admin)
				output, err := install(database, db.Files)
				if err == nil {
					t.Errorf("installed: %s", output)
				}
				contains(t, output, " belongs to "+bob+", and the schema coupond to ", "it is not ours")
				equal(t, "the catalog", catalog(admin), before)

				admin.exec("drop owned by " + bob)
				if output, err := install(database, db.Files); err != nil {
					t.Error(output)
				}
			})
		})
	}
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
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				cluster := newCluster(t)
				bob := cluster.login()
				database := cluster.database("")
				admin := owner(t, database)
				for _, kind := range []string{"schemas", "tables", "functions", "types"} {
					admin.exec(fmt.Sprintf("alter default privileges grant all on %s to public, %s", kind, bob))
				}
				files := program(t)
				files[c.broken].Data = append(files[c.broken].Data, "\nselect 1 / 0;"...)
				if output, err := install(database, files); err == nil || !strings.Contains(output, "division by zero") {
					t.Fatalf("%v: %s", err, output)
				}
				if got := get[bool](admin, "select to_regclass('coupond.claims') is not null"); got != c.tables {
					t.Fatalf("the tables exist: %v", got)
				}
				stranger := cluster.connectAs(bob, database)
				for _, sql := range []string{
					"create function coupond.check_name(text, varchar) returns void language sql as ''",
					"create table coupond.next ()",
					"select from coupond.schema_version",
					"select from coupond.claims",
				} {
					if err := onlyError(stranger.Exec(bounded(t), sql)); sqlstate(t, err) != "42501" {
						t.Errorf("%s: %v", sql, err)
					}
				}
			})
		})
	}
}

// An owner that has taken its own privileges away gets them back.
func TestInstall_ownerWithoutPrivileges(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		c := newCluster(t)
		alice := c.login()
		memberOfService(c, alice)
		database := c.database(alice)
		if output, err := install(database, db.Files); err != nil {
			t.Fatal(output)
		}
		admin := owner(t, database)
		before := catalog(admin)
		admin.exec("revoke all on all tables in schema coupond from current_user; revoke all on schema coupond from current_user")
		if output, err := install(database, db.Files); err != nil {
			t.Fatal(output)
		}
		equal(t, "the catalog", catalog(admin), before)
	})
}

// A superuser who installs a new version must not run the code of the schema's owner.
func TestInstall_codeOfTheOwner(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"trigger": "create function public.f() returns trigger language plpgsql as 'begin return new; end'; " +
			"create trigger t before insert or update on coupond.schema_version for each row execute function public.f()",
		"rule":    "create rule r as on update to coupond.schema_version do also select 1",
		"check":   "alter table coupond.schema_version add constraint c check (version < 1000)",
		"default": "alter table coupond.schema_version alter column version set default length('a')",
		"index":   "create index on coupond.schema_version (length(version::text))",
		"policy":  "create policy p on coupond.schema_version using (true)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				database := pgtest.New(t)
				owner(t, database).exec(sql)
				output, err := install(database, db.Files)
				if err == nil || !strings.Contains(output, "that is not ours") {
					t.Errorf("%v: %s", err, output)
				}
			})
		})
	}
}

// The row of the version table is data: it can be lost or replaced while the other objects stay.
func TestInstall_versionTable(t *testing.T) {
	t.Parallel()
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
			`truncate coupond.schema_version;
			do $$ begin execute format('comment on table coupond.schema_version is %L',
			  regexp_replace(obj_description('coupond.schema_version'::regclass), '\d+$', '` + newer + `')); end; $$`,
			"the database has version " + newer + ", this", true,
		},
		"a comment of somebody else": {"comment on table coupond.schema_version is 'see ticket 4711'", "", false},
		"no comment":                 {"comment on table coupond.schema_version is null", "", false},
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
			t.Parallel()
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				database := pgtest.New(t)
				admin := owner(t, database)
				admin.exec(c.sql)
				output, err := install(database, db.Files)
				contains(t, output, c.want)
				if c.fail {
					if err == nil {
						t.Errorf("installed: %s", output)
					}
					return
				}
				if err != nil {
					t.Fatal(output)
				}
				equal(t, "versions", list[int32](admin, "select version from coupond.schema_version"), []int32{db.Version()})
				equal(t, "the catalog", catalog(admin), catalog(owner(t, pgtest.New(t))))
				if output, err := install(database, db.Files); err != nil || strings.Contains(output, "schema_version") {
					t.Errorf("the second time: %v %s", err, output)
				}
			})
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
		if err := onlyError(admin.Exec(bounded(t), sql)); sqlstate(t, err) != want {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

// A publication for all tables lets a table without a key be inserted into, but not updated.
func TestInstall_publicationForAllTables(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		server := pgtest.StartServer(t, map[string]string{"fsync": "off", "wal_level": "logical"})
		database := server.Empty(t)
		admin := owner(t, database)
		admin.exec("create publication everything for all tables")
		for _, files := range []fs.FS{db.Files, db.Files, withMigration(t, "create table coupond.next (id int primary key)")} {
			if output, err := install(database, files); err != nil {
				t.Fatal(output)
			}
		}

		// The subscriber has the same schema and no rows, not even the version.
		copied := server.Empty(t)
		subscriber := owner(t, copied)
		if output, err := install(copied, withMigration(t, "create table coupond.next (id int primary key)")); err != nil {
			t.Fatal(output)
		}
		subscriber.exec("truncate coupond.coupons, coupond.claims, coupond.shard, coupond.schema_version")
		admin.create("before", 2)
		admin.claim("ann", "before")
		// A subscription to the same server cannot create its slot itself.
		admin.exec("select pg_create_logical_replication_slot('copied', 'pgoutput')")
		subscriber.exec(fmt.Sprintf("create subscription copied connection '%s' publication everything with (create_slot = false, slot_name = 'copied')", database.URL))
		replicated := func(condition string) {
			t.Helper()
			wait.For(t, condition, func() bool { return get[bool](subscriber, "select coalesce(("+condition+"), false)") })
		}
		admin.create("after", 2)
		admin.claimCoupons([]string{"ann", "bob"}, "after")
		replicated("select count(*) = 3 from coupond.claims")
		replicated("select count(*) = 2 from coupond.coupons where name = 'before' or remaining_amount = 0")
		replicated(fmt.Sprintf("select coupond.coupon_schema_version() = %d", db.Version()+1))
	})
}
