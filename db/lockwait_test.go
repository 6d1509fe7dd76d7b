package db_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// dump begins a transaction that holds what pg_dump holds, under pg_dump's name.
func dump(t *testing.T, d *pgtest.Database) *session {
	t.Helper()
	s := owner(t, d)
	s.exec("set application_name = 'pg_dump'; begin isolation level repeatable read; lock table coupond.claims, coupond.coupons in access share mode")
	return s
}

// applying is an Apply that runs in the background.
type applying struct {
	log  lineLog
	done chan error
}

func apply(ctx context.Context, t *testing.T, d *pgtest.Database, files fs.FS) *applying {
	t.Helper()
	conn := d.Connect(t)
	a := &applying{done: make(chan error, 1)}
	go func() {
		_, err := db.ApplyFiles(ctx, conn, files, a.log.options())
		a.done <- err
	}()
	return a
}

// waits waits for the line that says what Apply waits for.
func (a *applying) waits(t *testing.T, parts ...string) {
	t.Helper()
	wait.For(t, "a line of log", func() bool { return a.log.String() != "" })
	line, _, _ := strings.Cut(a.log.String(), "\n")
	contains(t, line, parts...)
}

// A migration that waits for a dump lets the claims pass, says that it waits for the dump, and is
// done when the dump is.
func TestApply_waitsOutsideTheLockQueue(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	client, dump := service(t, database), dump(t, database)
	client.create("lamp", 1000)
	a := apply(bounded(t), t, database, withMigration(t, "alter table coupond.claims add column channel text"))
	a.waits(t, "migration", "_next.sql: waiting for a lock that is held by",
		fmt.Sprintf("process %d (application 'pg_dump', user ", get[int](dump, "select pg_backend_pid()")),
		"idle in transaction, transaction since ", get[string](dump, "select date_trunc('second', xact_start)::text from pg_stat_activity where pid = pg_backend_pid()"))

	// Without a place in the queue, claims are not behind it, and it does not come back at once.
	client.exec("set lock_timeout = '200ms'") // less than a migration waits
	for i, begin := 0, time.Now(); time.Since(begin) < 4*time.Second; i++ {
		if status := client.claim(fmt.Sprint("user ", i), "lamp"); status != claimed {
			t.Fatalf("a claim: %s", status)
		}
		time.Sleep(20 * time.Millisecond)
	}
	select {
	case err := <-a.done:
		t.Fatalf("migrated during the dump: %v", err)
	default:
	}
	dump.exec("commit")
	if err := <-a.done; err != nil {
		t.Fatal(err)
	}
	if status := client.claim("the last", "lamp"); status != claimed {
		t.Errorf("a claim: %s", status)
	}
	if version := get[int32](client, "select coupond.coupon_schema_version()"); version != db.Version()+1 {
		t.Errorf("version %d", version)
	}
}

// When Apply has to stop, its error names the session that it waited for.
func TestApply_stoppedWhileWaiting(t *testing.T) {
	t.Parallel()
	for name, during := range map[string]time.Duration{"during the wait for the lock": 1500 * time.Millisecond, "during the pause": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			dump := dump(t, database)
			ctx, cancel := context.WithTimeout(t.Context(), during)
			defer cancel()
			a := apply(ctx, t, database, withMigration(t, "alter table coupond.claims add column channel text"))
			err := <-a.done
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v, want context.DeadlineExceeded", err)
			}
			contains(t, err.Error(), fmt.Sprintf("stopped while it waited for process %d (application 'pg_dump'", get[int](dump, "select pg_backend_pid()")))
			// Nothing is left: neither the lock of the migrations nor a part of the migration.
			dump.exec("commit")
			if err := <-apply(bounded(t), t, database, db.Files).done; err != nil {
				t.Error(err)
			}
		})
	}
}

// It says which session migrates already.
func TestApply_waitsForAnotherMigration(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	other := owner(t, database)
	other.exec(fmt.Sprintf("set application_name = 'another migration'; select pg_advisory_lock(%d)", db.ApplyLock))
	a := apply(bounded(t), t, database, db.Files)
	a.waits(t, "the start: waiting for a lock that is held by", fmt.Sprintf("process %d (application 'another migration'", get[int](other, "select pg_backend_pid()")))
	other.exec("select pg_advisory_unlock_all()")
	if err := <-a.done; err != nil {
		t.Error(err)
	}
}

// The functions' transaction is repeated as well.
func TestApply_functionsWait(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	reader := owner(t, database)
	reader.exec("begin; lock table coupond.sale_progress in access share mode")
	a := apply(bounded(t), t, database, db.Files)
	a.waits(t, "the functions: waiting for a lock")
	reader.exec("commit")
	if err := <-a.done; err != nil {
		t.Error(err)
	}
}

// A prepared transaction has no process. A login without privileges sees less of other sessions.
func TestApply_waitsForPreparedTransaction(t *testing.T) {
	t.Parallel()
	server := pgtest.StartServer(t, map[string]string{"fsync": "off", "max_prepared_transactions": "5"})
	database := server.NewOwned(t)
	login := owner(t, database)
	if _, err := db.Apply(bounded(t), login.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
	login.exec("begin; lock table coupond.claims in access share mode; prepare transaction 'forgotten'")
	files := withMigration(t, "alter table coupond.claims add column channel text")
	a := apply(bounded(t), t, database, files)
	a.waits(t, "held by a prepared transaction ('forgotten' by "+database.Name+" since ")
	login.exec("rollback prepared 'forgotten'")
	if err := <-a.done; err != nil {
		t.Error(err)
	}

	base := server.Empty(t)
	u, err := url.Parse(base.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database.Name
	superuser := owner(t, &pgtest.Database{Name: database.Name, URL: u.String()})
	superuser.exec("begin; lock table coupond.sale_progress in access share mode")
	a = apply(bounded(t), t, database, files)
	a.waits(t, fmt.Sprintf("held by process %d (user postgres)", get[int](superuser, "select pg_backend_pid()")))
	superuser.exec("rollback")
	if err := <-a.done; err != nil {
		t.Error(err)
	}
}

// The version's row is locked before anything that claims need, because tern updates it without a
// time-out.
func TestApply_versionIsLocked(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	client, other := service(t, database), owner(t, database)
	client.create("lamp", 1000)
	other.exec("begin; select from coupond.schema_version for update")
	a := apply(bounded(t), t, database, withMigration(t, "alter table coupond.claims add column channel text"))
	for i := 0; a.log.String() == ""; i++ {
		if status := client.claim(fmt.Sprint("user ", i), "lamp"); status != claimed && status != outOfStock {
			t.Fatalf("a claim: %s", status)
		}
	}
	a.waits(t, "migration")
	other.exec("rollback")
	if err := <-a.done; err != nil {
		t.Error(err)
	}
}

// The login's own settings do not matter, and Apply leaves them as they were.
func TestInstall_settingsOfTheLogin(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		database := pgtest.Empty(t)
		admin := owner(t, database)
		// Tables that the names of the catalog find first under such a search_path.
		admin.exec("create schema shadow; create table shadow.pg_namespace (); create table shadow.pg_class (); create table shadow.pg_settings ()")
		for _, setting := range []string{
			"client_encoding = 'LATIN1'", "client_min_messages = error", "standard_conforming_strings = off", "search_path = shadow, pg_catalog",
			"default_transaction_isolation = serializable", "default_transaction_read_only = on",
			"statement_timeout = '1s'", "lock_timeout = '1ms'", "idle_in_transaction_session_timeout = '1s'",
			"check_function_bodies = off",
		} {
			admin.exec("alter database " + database.Name + " set " + setting)
		}
		if get[int](admin, "select current_setting('server_version_num')::int") >= 170000 {
			admin.exec("alter database " + database.Name + " set transaction_timeout = '1s'")
		}
		files := withMigration(t, "create table coupond.next (note text); comment on table coupond.next is 'für'; select pg_sleep(2)")
		if output, err := install(database, files); err != nil {
			t.Fatal(output)
		}
		// The second time it parses the version in the table's comment.
		admin.exec("truncate coupond.schema_version")
		if output, err := install(database, files); err != nil {
			t.Fatal(output)
		}
		if comment := get[string](admin, "select obj_description('coupond.next'::regclass)"); comment != "für" {
			t.Errorf("the comment is %q", comment)
		}
	})
}

func TestApply_resetsTheSession(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	alice := c.login("createrole")
	memberOfService(c, alice)
	database := c.database(alice)
	if _, err := db.Apply(bounded(t), database.Connect(t), db.Options{}); err != nil {
		t.Fatal(err)
	}
	s := owner(t, &pgtest.Database{Name: database.Name, URL: c.url("", database.Name)})
	state := func() []string {
		return list[string](s, `
			select name || ' = ' || setting from pg_settings where source = 'session'
			union all
			select 'role ' || current_user
			union all
			select 'lock ' || objid from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
			order by 1`)
	}
	before := state()
	if _, err := db.Apply(bounded(t), s.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
	equal(t, "the session", state(), before)
}

// CREATE INDEX IF NOT EXISTS takes a valid index that was built before, and not one that a failed
// CREATE INDEX CONCURRENTLY has left.
func TestInstall_existingIndex(t *testing.T) {
	t.Parallel()
	const migration = `
		create unique index if not exists claims_by_user on coupond.claims (user_id);
		alter table coupond.claims add constraint claims_one_per_user unique using index claims_by_user`
	for name, c := range map[string]struct{ valid, migrate bool }{"valid": {true, true}, "invalid": {false, true}, "missing": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
				database := pgtest.New(t)
				admin := owner(t, database)
				admin.create("lamp", 2)
				admin.create("desk", 2)
				admin.claim("ann", "lamp")
				admin.claim("ann", "desk")
				const create = "create unique index concurrently claims_by_user on coupond.claims (user_id)"
				if name == "invalid" {
					if err := onlyError(admin.Exec(bounded(t), create)); sqlstate(t, err) != "23505" {
						t.Fatal(err)
					}
				}
				admin.exec("delete from coupond.claims where coupon_name = 'desk'")
				before := 0
				if c.valid {
					admin.exec(create)
					before = get[int](admin, "select 'coupond.claims_by_user'::regclass::oid::int")
				}
				if output, err := install(database, withMigration(t, migration)); err != nil {
					t.Fatal(output)
				}
				after := get[int](admin, "select conindid::int from pg_constraint where conname = 'claims_one_per_user'")
				if c.valid && after != before {
					t.Error("the valid index was not used")
				}
				if !get[bool](admin, "select indisvalid from pg_index where indexrelid = $1::int::oid", after) {
					t.Error("the constraint has an invalid index")
				}
			})
		})
	}
}

// An index that is being built is INVALID until it is done. The migration waits and takes it.
func TestApply_indexIsBeingBuilt(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin, builder := owner(t, database), owner(t, database)
	// A build waits for the transactions that write to the table.
	writer := owner(t, database)
	writer.exec("begin; lock table coupond.claims in row exclusive mode")
	built := make(chan error, 1)
	go func() {
		_, err := builder.Exec(bounded(t), "create index concurrently claims_by_time on coupond.claims (claimed_at)", pgx.QueryExecModeSimpleProtocol)
		built <- err
	}()
	wait.For(t, "the build", func() bool {
		return get[bool](admin, "select exists (select from pg_stat_activity where query like 'create index%' and cardinality(pg_blocking_pids(pid)) > 0 and datname = current_database())")
	})
	before := get[int](admin, "select 'coupond.claims_by_time'::regclass::oid::int")
	a := apply(bounded(t), t, database, withMigration(t, "create index if not exists claims_by_time on coupond.claims (claimed_at)"))
	a.waits(t, "migration", fmt.Sprint(builder.PgConn().PID()), `builds the index "coupond"."claims_by_time"`)
	writer.exec("commit")
	if err := errors.Join(<-built, <-a.done); err != nil {
		t.Fatal(err)
	}
	if after := get[int](admin, "select indexrelid::int from pg_index where indexrelid = 'coupond.claims_by_time'::regclass and indisvalid"); after != before {
		t.Error("another index was built")
	}
}

// The script does not try again by itself. It says what to do.
func TestScript_lockTimeout(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, install func(*pgtest.Database, fs.FS) (string, error)) {
		if strings.HasSuffix(t.Name(), "Apply") {
			return
		}
		database := pgtest.New(t)
		dump := dump(t, database)
		files := withMigration(t, "alter table coupond.claims add column channel text")
		output, err := install(database, files)
		if err == nil {
			t.Fatalf("installed: %s", output)
		}
		contains(t, output, "canceling statement due to lock timeout", "run it again")
		dump.exec(fmt.Sprintf("commit; select pg_advisory_lock(%d)", db.ApplyLock))
		output, err = install(database, files)
		if err == nil {
			t.Fatalf("installed: %s", output)
		}
		contains(t, output, fmt.Sprintf("another session installs in this database: process %d (pg_dump)", get[int](dump, "select pg_backend_pid()")), "Run this script again")
		dump.exec("select pg_advisory_unlock_all()")
		if output, err := install(database, files); err != nil {
			t.Error(output)
		}
	})
}
