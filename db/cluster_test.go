package db_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"

	"scalable-coupon-system/internal/pgtest"
)

// cluster is a superuser's session on an empty database, to create logins and databases with.
type cluster struct {
	*session
	base *pgtest.Database
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	return clusterOf(t, pgtest.Empty(t))
}

func clusterOf(t testing.TB, base *pgtest.Database) *cluster {
	t.Helper()
	return &cluster{owner(t, base), base}
}

// ownedDatabase returns an empty database of a login with these attributes, and the login. An
// administrator has made the login a member of coupon_service.
func ownedDatabase(t testing.TB, attributes ...string) (c *cluster, login string, database *pgtest.Database) {
	t.Helper()
	c = newCluster(t)
	login = c.login(attributes...)
	pgtest.New(t) // creates the role
	c.exec("grant coupon_service to " + login)
	return c, login, c.database(login)
}

// cleanup executes sql when the test is over; the last one registered is the first one executed.
func (c *cluster) cleanup(sql string) {
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if _, err := c.Exec(ctx, sql); err != nil {
			c.t.Errorf("%v\n%s", err, sql)
		}
	})
}

// login creates a login without privileges, except these attributes. Its password is its name.
func (c *cluster) login(attributes ...string) string {
	c.t.Helper()
	name := uniqueName()
	c.exec("create role " + name + " login nosuperuser password '" + name + "' " + strings.Join(attributes, " "))
	c.cleanup("drop role " + name)
	return name
}

// database creates an empty database that belongs to login, or to the superuser if login is "".
func (c *cluster) database(login string, options ...string) *pgtest.Database {
	c.t.Helper()
	name := uniqueName()
	if login != "" {
		options = append(options, "owner "+login)
	}
	c.exec("create database " + name + " template template0 " + strings.Join(options, " "))
	c.cleanup("drop database " + name + " with (force)")
	return &pgtest.Database{Name: name, URL: c.url(login, name)}
}

// as returns the database as seen by login, or by the superuser if login is "".
func (c *cluster) as(login string, d *pgtest.Database) *pgtest.Database {
	c.t.Helper()
	return &pgtest.Database{Name: d.Name, URL: c.url(login, d.Name)}
}

func (c *cluster) url(login, database string) string {
	c.t.Helper()
	u, err := url.Parse(c.base.URL)
	if err != nil {
		c.t.Fatal(err)
	}
	u.Path = "/" + database
	if login != "" {
		u.User = url.UserPassword(login, login)
	}
	return u.String()
}

// programWithOtherRoles returns the program's files with other names for the roles coupon_service
// and coupon_monitor, which the cluster does not have. The cleanup drops these roles after the
// databases that are created later, and before the logins that were created earlier.
func (c *cluster) programWithOtherRoles() (files fstest.MapFS, role string) {
	c.t.Helper()
	role = uniqueName()
	c.cleanup("drop role if exists " + role + ", " + monitorOf(role))
	files = program(c.t)
	roles := strings.NewReplacer("coupon_service", role, "coupon_monitor", monitorOf(role))
	for _, file := range files {
		file.Data = []byte(roles.Replace(string(file.Data)))
	}
	return files, role
}

// monitorOf returns the name of the monitor's role that belongs to such a service role.
func monitorOf(role string) string { return role + "_monitor" }

func uniqueName() string { return "coupon_test_" + strings.ToLower(rand.Text()[:12]) }

// catalog returns what PostgreSQL's catalogs say about our schema, one line per object.
func catalog(s *session) []string {
	s.t.Helper()
	s.exec("set search_path = ''")
	return list[string](s, `
		select format('function %s %s owner %s acl %s set %s volatile %s definer %s: %s %s', p.oid::regprocedure,
		  p.prorettype::regtype, p.proowner::regrole, p.proacl, p.proconfig, p.provolatile, p.prosecdef,
		  md5(p.prosrc), obj_description(p.oid))
		from pg_catalog.pg_proc as p
		where p.pronamespace = 'coupond'::regnamespace
		union all
		select format('relation %s %s owner %s acl %s options %s: %s', r.oid::regclass, r.relkind, r.relowner::regrole,
		  r.relacl, r.reloptions, obj_description(r.oid))
		from pg_catalog.pg_class as r
		where r.relnamespace = 'coupond'::regnamespace
		union all
		select format('column %s.%s %s collation %s not null %s default %s acl %s: %s', a.attrelid::regclass, a.attname,
		  format_type(a.atttypid, a.atttypmod), a.attcollation::regcollation, a.attnotnull,
		  (select pg_get_expr(d.adbin, d.adrelid) from pg_catalog.pg_attrdef as d where (d.adrelid, d.adnum) = (a.attrelid, a.attnum)),
		  array_to_string(a.attacl, ' '), col_description(a.attrelid, a.attnum))
		from pg_catalog.pg_attribute as a
		join pg_catalog.pg_class as r on r.oid = a.attrelid
		where r.relnamespace = 'coupond'::regnamespace
		  and a.attnum > 0
		union all
		select format('constraint %s %s %s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))
		from pg_catalog.pg_constraint as c
		where c.connamespace = 'coupond'::regnamespace
		union all
		select format('type %s owner %s acl %s labels %s: %s', t.oid::regtype, t.typowner::regrole, t.typacl,
		  array(select e.enumlabel from pg_catalog.pg_enum as e where e.enumtypid = t.oid order by e.enumsortorder),
		  obj_description(t.oid))
		from pg_catalog.pg_type as t
		where t.typnamespace = 'coupond'::regnamespace
		union all
		select format('schema %s owner %s acl %s', n.nspname, n.nspowner::regrole, n.nspacl)
		from pg_catalog.pg_namespace as n
		where n.nspname = 'coupond'
		union all
		select format('role %s login %s super %s, the owner is a member: %s', r.rolname, r.rolcanlogin, r.rolsuper,
		  array(select m.member::regrole from pg_catalog.pg_auth_members as m where m.roleid = r.oid and m.member = current_user::regrole))
		from pg_catalog.pg_roles as r
		where r.rolname in ('coupon_service', 'coupon_monitor')
		union all
		select format('view %s: %s', v.viewname, md5(v.definition))
		from pg_catalog.pg_views as v
		where v.schemaname = 'coupond'
		union all
		select format('version %s', v.version)
		from coupond.schema_version as v
		order by 1`)
}
