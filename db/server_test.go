package db_test

import (
	"fmt"
	"io/fs"
	"testing"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// What needs a server without our roles, or with other settings than that of the tests.
func TestApply_privateServer(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "wal_level": "logical", "max_prepared_transactions": "5"})
	private := clusterOf(t, server.Empty(t))
	login := private.login("createrole") // which creates the roles
	_, _, onTestsServer := ownedDatabase(t, "createrole")
	databases := map[string]*pgtest.Database{
		"a private server, a plain owner":  private.database(login),
		"the tests' server, a plain owner": onTestsServer,
	}
	for name, database := range databases {
		s := owner(t, database)
		for range 2 {
			byApply.install(t, database, db.Files)
		}
		t.Logf("%s: PostgreSQL %s", name, get[string](s, "select current_setting('server_version')"))
		// The owner's login may also be the service's: it must be able to switch to the service's role.
		s.exec("set role coupon_service")
		s.create("first", 2)
		equal(t, name, s.claimBatch([]string{"a", "b", "a"}, same("first", 3)), []string{claimed, claimed, alreadyClaimed})
		s.fails("42501", "select from coupond.claims")
	}

	// A prepared transaction has no process. A login without privileges sees less of other sessions.
	t.Run("waits for a prepared transaction", func(t *testing.T) {
		database := private.database(login)
		plain := owner(t, database)
		byApply.install(t, database, db.Files)
		plain.exec("begin; lock table coupond.claims in access share mode; prepare transaction 'forgotten'")
		files := withMigration(t, "alter table coupond.claims add column channel text")
		a := apply(bounded(t), t, database, files)
		a.waits(t, "held by a prepared transaction ('forgotten' by "+login+" since ")
		plain.exec("rollback prepared 'forgotten'")
		a.succeeds(t)

		superuser := owner(t, private.as("", database))
		superuser.exec("begin; lock table coupond.sale_progress in access share mode")
		a = apply(bounded(t), t, database, files)
		a.waits(t, fmt.Sprintf("held by process %d (user postgres)", superuser.PgConn().PID()))
		superuser.exec("rollback")
		a.succeeds(t)
	})

	// A publication for all tables lets a table without a key be inserted into, but not updated.
	t.Run("publication for all tables", func(t *testing.T) {
		database := server.Empty(t)
		admin := owner(t, database)
		admin.exec("create publication everything for all tables")
		for _, files := range []fs.FS{db.Files, db.Files, withMigration(t, "create table coupond.next (id int primary key)")} {
			byApply.install(t, database, files)
		}

		// The subscriber has the same schema and no rows, not even the version.
		copied := server.Empty(t)
		subscriber := owner(t, copied)
		byApply.install(t, copied, withMigration(t, "create table coupond.next (id int primary key)"))
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
