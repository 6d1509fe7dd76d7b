package db_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestApply_emptyDatabase(t *testing.T) {
	t.Parallel()
	admin := owner(t, pgtest.Empty(t))
	apply := func(want db.Result) {
		t.Helper()
		if result, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err != nil || result != want {
			t.Fatalf("got %+v, %v, want %+v", result, err, want)
		}
	}
	apply(db.Result{From: 0, To: db.Version()})
	if version := get[int32](admin, "select coupond.coupon_schema_version()"); version != db.Version() {
		t.Errorf("coupon_schema_version: got %d, want %d", version, db.Version())
	}
	admin.exec("set role coupon_service")
	admin.create("kept", 2)
	admin.mustClaim("ann", "kept")
	admin.exec("reset role")

	// Again, which changes nothing.
	before := catalog(admin)
	if len(before) < 50 { // else the comparison proves nothing
		t.Fatalf("only %d lines of catalog:\n%s", len(before), strings.Join(before, "\n"))
	}
	for range 2 {
		apply(db.Result{From: db.Version(), To: db.Version()})
	}
	equal(t, "the catalog after Apply", catalog(admin), before)
	equal(t, "users of the coupon", admin.claims("kept"), []string{"ann"})
}

// The script for psql does what Apply does.
func TestScript(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	byScript.install(t, database, db.Files)
	equal(t, "the catalog after the script", catalog(owner(t, database)), catalog(owner(t, pgtest.New(t))))
}

func TestApply_concurrent(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	results := concurrently(t, several(t, 3, database, owner), func(_ int, s *session) db.Result {
		result, err := db.Apply(bounded(t), s.Conn, db.Options{})
		if err != nil {
			s.t.Fatal(err)
		}
		return result
	})

	migrated := 0
	for _, result := range results {
		if result.From == 0 {
			migrated++
		}
	}
	if migrated != 1 {
		t.Errorf("%d calls migrated an empty database, want 1: %+v", migrated, results)
	}
	equal(t, "the catalog after three concurrent calls", catalog(owner(t, database)), catalog(owner(t, pgtest.New(t))))
}

// A role belongs to the cluster: the advisory locks of its databases do not order the sessions that
// create it.
func TestApply_concurrentInDatabasesOfOneCluster(t *testing.T) {
	t.Parallel()
	for loginKind, ends := range map[string][]string{
		"superuser":   {"rollback", "commit of the monitor role only"},
		"plain owner": {"rollback", "commit"},
	} {
		for _, end := range ends {
			t.Run(loginKind+", "+end, func(t *testing.T) {
				t.Parallel()
				const n = 3
				c := newCluster(t)
				login := ""
				if loginKind == "plain owner" {
					login = c.login("createrole")
				}
				files, role := c.programWithOtherRoles()
				patient(t, files)
				databases, sessions := make([]string, n), make([]*session, n)
				for i := range databases {
					database := c.database(login)
					// Waiting for a role of another database would not end if it could not see that role.
					c.exec("alter database " + database.Name + " set default_transaction_isolation = 'serializable'")
					databases[i], sessions[i] = database.Name, owner(t, database)
				}

				// To make the race certain, all sessions wait for a transaction that has created the role, and
				// continue concurrently when it ends. Then one of them creates the role, or all find it, and
				// each checks its membership.
				end, contested := end, role
				if end == "commit of the monitor role only" {
					end, contested = "commit", monitorOf(role)
				}
				c.exec("begin; create role " + contested + " nologin")
				if login != "" {
					c.exec("grant " + contested + " to " + login + " with admin option")
				}
				observer := owner(t, c.base)
				concurrently(t, append([]*session{c.session}, sessions...), func(i int, s *session) any {
					if i == 0 {
						waitBlocked(inGoroutine{t}, observer, n, databases...)
						s.exec(end)
						return nil
					}
					result, err := db.ApplyFiles(bounded(t), s.Conn, files, false, db.Options{})
					if want := (db.Result{From: 0, To: db.Version()}); err != nil || result != want {
						s.t.Errorf("got %+v, %v, want %+v", result, err, want)
					}
					return nil
				})
				for _, s := range sessions {
					s.exec("set role " + role)
					s.create("first", 1)
				}
			})
		}
	}
}

// waitBlocked waits until n sessions of these databases wait for a lock.
func waitBlocked(t testing.TB, observer *session, n int, databases ...string) {
	t.Helper()
	wait.For(t, fmt.Sprintf("%d sessions to wait for a lock", n), func() bool {
		return n == get[int](&session{observer.Conn, t}, `
			select count(*)
			from pg_catalog.pg_stat_activity
			where datname = any ($1)
			  and cardinality(pg_catalog.pg_blocking_pids(pid)) > 0`, databases)
	})
}

func TestApply_missingPrivilege(t *testing.T) {
	t.Parallel()
	t.Run("a login that owns nothing, empty database", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		byApply.refused(t, c.as(c.login(), c.base), db.Files, "the login lacks a privilege", "own the database")
	})
	t.Run("an owner without CREATEROLE", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login()
		files, role := c.programWithOtherRoles()
		database := c.database(login)
		byApply.refused(t, database, files,
			"the login "+login+" may not create or grant the roles", "create role "+role, "create role "+monitorOf(role), "grant "+role+" to "+login)
		if get[bool](owner(t, database), "select exists (select from pg_catalog.pg_namespace where nspname = 'coupond')") {
			t.Error("the schema was created without the roles")
		}
		// The advice in the error text solves it.
		c.exec("create role " + role + " nologin; create role " + monitorOf(role) + " nologin; grant " + role + " to " + login)
		byApply.install(t, database, files)
	})
	t.Run("an owner with CREATEROLE, the role was created by another login", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login("createrole")
		files, role := c.programWithOtherRoles()
		c.exec("create role " + role + " nologin")
		if database := c.database(login); get[int](c.session, "select current_setting('server_version_num')::int") >= 160000 {
			byApply.refused(t, database, files, "may not create or grant the roles", "grant "+role+" to "+login)
		} else { // before 16, CREATEROLE may grant every role
			byApply.install(t, database, files)
		}
	})
}

func TestApply_newerSchema(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	result, err := db.ApplyFiles(bounded(t), admin.Conn, newerProgram(t), false, db.Options{})
	if want := (db.Result{From: db.Version(), To: db.Version() + 1}); err != nil || result != want {
		t.Fatalf("the upgrade: got %+v, %v, want %+v", result, err, want)
	}
	before := catalog(admin)
	output, err := byApply(t, database, db.Files)
	if sqlstate(t, err) != "UC006" {
		t.Fatalf("got %v, want a refusal", err)
	}
	contains(t, output, fmt.Sprintf("version %d", db.Version()+1), fmt.Sprintf("installs version %d", db.Version()))
	equal(t, "the catalog", catalog(admin), before)
}

// An older program that began when the schema was old must not install its functions if a newer
// program has migrated meanwhile.
func TestApply_olderProgramKeepsNewerFunctions(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin, observer := owner(t, database), owner(t, database)
	var errs []chan error
	begin := func(files fstest.MapFS) {
		t.Helper()
		errs = append(errs, apply(bounded(t), t, database, patient(t, files)).done)
		waitBlocked(t, observer, len(errs), database.Name)
	}
	admin.exec("select pg_advisory_lock(" + applyLock + ")")
	begin(newerProgram(t))
	begin(program(t))
	begin(program(t))
	admin.exec("select pg_advisory_unlock_all()")

	if err := <-errs[0]; err != nil {
		t.Fatal(err)
	}
	for _, older := range errs[1:] {
		if err := <-older; sqlstate(t, err) != "UC006" {
			t.Errorf("got %v, want a refusal", err)
		}
	}
	if comment := get[string](admin, "select obj_description('coupond.claim_coupon(text, text)'::regprocedure)"); comment != "newer" {
		t.Errorf("an older program's functions on a newer schema: %s", comment)
	}
}

func TestApply_refusesServer(t *testing.T) {
	t.Parallel()
	older := program(t)
	replaceIn(t, older, "start.sql", "150000", "990000")
	for name, c := range map[string]struct {
		files  fs.FS
		locale string
		want   string
	}{
		"too old":  {older, "", "PostgreSQL is too old: version "},
		"not UTF8": {db.Files, "encoding 'LATIN1' locale 'C'", "the database is not encoded in UTF8 but in LATIN1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := newCluster(t).database("", c.locale)
			output, err := byApply(t, database, c.files)
			if err == nil || !strings.HasPrefix(output, c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if get[bool](owner(t, database), "select exists (select from pg_catalog.pg_namespace where nspname = 'coupond')") {
				t.Error("a refused database has the schema")
			}
		})
	}
}

func TestApply_failureChangesNothing(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	before := catalog(admin)
	broken := func(name, sql string) fs.FS {
		files := program(t)
		files[name] = &fstest.MapFile{Data: []byte(sql)}
		return files
	}
	for want, files := range map[string]fs.FS{
		"migrate: ":           broken(nextMigration, "create table coupond.half (); select 1 / 0"),
		"load migrations: ":   broken("migrations/9_gap.sql", "select 1"),
		"template: ":          broken("functions/claim_coupon.sql", "select '{{1,2}}'"),
		"install functions: ": broken("functions/claim_batch.sql", "create function coupond.half() returns int language sql as 'nonsense'"),
	} {
		if output, err := byApply(t, database, files); err == nil || !strings.HasPrefix(output, want) {
			t.Errorf("got %v, want %q…", err, want)
		}
		equal(t, "the catalog after "+want, catalog(admin), before)
	}
	byApply.install(t, database, db.Files)

	if err := admin.Close(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err == nil {
		t.Error("Apply succeeds without a connection")
	}
}

// program returns the files that Apply installs.
func program(t testingTB) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	err := fs.WalkDir(db.Files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(db.Files, path)
		files[path] = &fstest.MapFile{Data: text}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// patient gives the program a long lock_timeout.
func patient(t testingTB, files fstest.MapFS) fstest.MapFS {
	t.Helper()
	replaceIn(t, files, "pins.sql", "lock_timeout = '500ms'", fmt.Sprintf("lock_timeout = '%ds'", int(testTimeout.Seconds())))
	return files
}

func replaceIn(t testingTB, files fstest.MapFS, name, old, text string) {
	t.Helper()
	before := string(files[name].Data)
	if !strings.Contains(before, old) {
		t.Fatalf("no %q in %s", old, name)
	}
	files[name].Data = []byte(strings.ReplaceAll(before, old, text))
}

// newerProgram returns program with one more migration and a different claim_coupon.
func newerProgram(t testingTB) fstest.MapFS {
	t.Helper()
	files := withMigration(t, "alter table coupond.coupons add column if not exists note text")
	function := files["functions/claim_coupon.sql"]
	function.Data = append(function.Data, "\ncomment on function coupond.claim_coupon(text, text) is 'newer';"...)
	return files
}

func onlyError[T any](_ T, err error) error { return err }
