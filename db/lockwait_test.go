package db_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
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
		a.done <- onlyError(db.ApplyFiles(ctx, conn, files, false, a.log.options()))
	}()
	return a
}

// waits waits for a line that says what Apply waits for. On a busy machine, it need not be the
// first one: the second connection may come too late to see who holds the lock.
func (a *applying) waits(t *testing.T, parts ...string) {
	t.Helper()
	wait.For(t, "a line of log with "+strings.Join(parts, " "), func() bool {
		for line := range strings.Lines(a.log.String()) {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) }) {
				return true
			}
		}
		return false
	})
}

// succeeds waits for the end of Apply.
func (a *applying) succeeds(t *testing.T) {
	t.Helper()
	if err := <-a.done; err != nil {
		t.Fatal(err)
	}
}

// applyLock is the key of the advisory lock.
const applyLock = "2611230107433187"

// A migration that waits for a dump lets the claims pass, says that it waits for the dump, and is
// done when the dump is.
func TestApply_waitsOutsideTheLockQueue(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	client, dump := service(t, database), dump(t, database)
	client.create("lamp", 1000)
	a := apply(bounded(t), t, database, withMigration(t, "alter table coupond.claims add column channel text"))
	a.waits(t, "migration", "_next.sql: waiting for a lock that is held by",
		fmt.Sprintf("process %d (application 'pg_dump', user ", dump.PgConn().PID()),
		"idle in transaction, transaction since ", get[string](dump, "select date_trunc('second', xact_start)::text from pg_stat_activity where pid = pg_backend_pid()"))

	// Without a place in the queue, claims are not behind it, and it does not come back at once.
	client.exec("set lock_timeout = '200ms'") // less than a migration waits
	for i, begin := 0, time.Now(); time.Since(begin) < time.Second; i++ {
		client.mustClaim(fmt.Sprint("user ", i), "lamp")
		time.Sleep(20 * time.Millisecond)
	}
	select {
	case err := <-a.done:
		t.Fatalf("migrated during the dump: %v", err)
	default:
	}
	dump.exec("commit")
	a.succeeds(t)
	client.mustClaim("the last", "lamp")
	if version := get[int32](client, "select coupond.coupon_schema_version()"); version != db.Version()+1 {
		t.Errorf("version %d", version)
	}
}

// When Apply has to stop, its error names the session that it waited for.
func TestApply_stoppedWhileWaiting(t *testing.T) {
	t.Parallel()
	for _, during := range []string{"the wait for the lock", "the pause"} {
		t.Run(during, func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			dump, observer := dump(t, database), owner(t, database)
			holder := fmt.Sprintf("process %d (application 'pg_dump'", dump.PgConn().PID())
			files := withMigration(t, "alter table coupond.claims add column channel text")
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			if during == "the wait for the lock" {
				patient(t, files)
			}
			a := apply(ctx, t, database, files)
			if during == "the pause" {
				a.waits(t, holder)
			} else {
				// When the third look at the holders begins, Apply has the result of the first. A look is
				// parsed and executed, which has up to two start times.
				looks := map[time.Time]bool{}
				wait.For(t, "the third look", func() bool {
					for _, look := range list[time.Time](observer, `
						select query_start from pg_stat_activity
						where datname = current_database() and pid <> pg_backend_pid() and query like '%pg_blocking_pids%'`) {
						looks[look] = true
					}
					return len(looks) > 4
				})
			}
			cancel()
			err := <-a.done
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want context.Canceled", err)
			}
			contains(t, err.Error(), "stopped while it waited for "+holder)
			// Nothing is left: neither the lock of the migrations nor a part of the migration.
			dump.exec("commit")
			byApply.install(t, database, db.Files)
		})
	}
}

// Apply says what it waits for, and is done when the other session has released its lock.
func TestApply_waits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql   string // takes a lock
		files fs.FS
		line  string // of the log
		who   string // holds the lock
	}{
		"another migration": {
			"set application_name = 'another migration'; select pg_advisory_lock(" + applyLock + ")", db.Files,
			"the start: waiting for a lock that is held by", "(application 'another migration'",
		},
		// Tern has a lock of its own, the same for every program in the database that uses tern.
		"tern": {"select pg_advisory_lock(9628173550095224)", withMigration(t, "select 1"), "the schema version: waiting for a lock", ""},
		"the functions": {
			"begin; lock table coupond.sale_progress in access share mode", db.Files, "the functions: waiting for a lock", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			other := owner(t, database)
			other.exec(c.sql)
			a := apply(bounded(t), t, database, c.files)
			a.waits(t, c.line, fmt.Sprintf("process %d ", other.PgConn().PID()), c.who)
			other.exec("commit; select pg_advisory_unlock_all()")
			a.succeeds(t)
		})
	}
}

// The version's row is locked before anything that claims need, so a migration that waits for it
// holds up no claims.
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
	a.succeeds(t)
}

// The login's own settings do not matter, and Apply leaves them as they were.
func TestInstall_settingsOfTheLogin(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, by way) {
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
		files := withMigration(t, "create table coupond.next (note text); comment on table coupond.next is 'für'; select pg_sleep(1.5)")
		by.install(t, database, files)
		// The second time it parses the version in the table's comment.
		admin.exec("truncate coupond.schema_version")
		by.install(t, database, files)
		if comment := get[string](admin, "select obj_description('coupond.next'::regclass)"); comment != "für" {
			t.Errorf("the comment is %q", comment)
		}
	})
}

func TestApply_resetsTheSession(t *testing.T) {
	t.Parallel()
	c, _, database := ownedDatabase(t, "createrole")
	byApply.install(t, database, db.Files)
	s := owner(t, c.as("", database))
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
	// As after a time-out that ended the wait for the lock when it was just granted.
	s.exec("select pg_advisory_lock(" + applyLock + ")")
	if _, err := db.Apply(bounded(t), s.Conn, db.Options{}); err != nil {
		t.Fatal(err)
	}
	equal(t, "the session", state(), before)
}

// CREATE INDEX IF NOT EXISTS takes a valid index that was built before. Apply refuses one that a
// failed CREATE INDEX CONCURRENTLY has left.
func TestInstall_existingIndex(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("lamp", 2)
	admin.create("desk", 2)
	admin.claim("ann", "lamp")
	admin.claim("ann", "desk")
	const create = "create unique index concurrently claims_by_user on coupond.claims (user_id)"
	admin.fails("23505", create)
	admin.exec("delete from coupond.claims where coupon_name = 'desk'")
	files := withMigration(t, "create unique index if not exists claims_by_user on coupond.claims (user_id)")
	byApply.refused(t, database, files, "the index coupond.claims_by_user is INVALID", "drop index coupond.claims_by_user")

	admin.exec("drop index coupond.claims_by_user")
	admin.exec(create)
	before := get[int](admin, "select 'coupond.claims_by_user'::regclass::oid::int")
	byApply.install(t, database, files)
	if after := get[int](admin, "select indexrelid::int from pg_index where indexrelid = 'coupond.claims_by_user'::regclass and indisvalid"); after != before {
		t.Error("another index was built")
	}
}

// The migration waits until an index is built, and takes it.
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
		return get[bool](admin, "select cardinality(pg_blocking_pids($1)) > 0", builder.PgConn().PID())
	})
	a := apply(bounded(t), t, database, withMigration(t, "create index if not exists claims_by_time on coupond.claims (claimed_at)"))
	a.waits(t, "migration", fmt.Sprintf("process %d ", builder.PgConn().PID()))
	writer.exec("commit")
	if err := errors.Join(<-built, <-a.done); err != nil {
		t.Fatal(err)
	}
	if n := get[int](admin, "select count(*) from pg_indexes where schemaname = 'coupond' and tablename = 'claims'"); n != 3 {
		t.Errorf("%d indexes on claims, want 3", n)
	}
}

// The script does not try again by itself. It says what to do.
func TestScript_lockTimeout(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	dump := dump(t, database)
	files := withMigration(t, "alter table coupond.claims add column channel text")
	byScript.refused(t, database, files, "canceling statement due to lock timeout", "run it again")
	dump.exec("commit; select pg_advisory_lock(" + applyLock + ")")
	byScript.refused(t, database, files, fmt.Sprintf("another session installs in this database: process %d (pg_dump)", dump.PgConn().PID()), "Run this script again")
	dump.exec("select pg_advisory_unlock_all()")
	byScript.install(t, database, files)
}
