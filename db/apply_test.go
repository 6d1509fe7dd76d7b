package db_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

func TestApply_emptyDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	admin := owner(t, database)

	for _, want := range []db.Result{{From: 0, To: db.Version()}, {From: db.Version(), To: db.Version()}} {
		result, err := db.Apply(bounded(t), admin.Conn, db.Options{})
		if err != nil || result != want {
			t.Fatalf("got %+v, %v, want %+v", result, err, want)
		}
	}
	if version := get[int32](admin, "select coupond.coupon_schema_version()"); version != db.Version() {
		t.Errorf("coupon_schema_version: got %d, want %d", version, db.Version())
	}
	admin.exec("set role coupon_service")
	admin.create("first", 1)
	if status := admin.claim("ann", "first"); status != claimed {
		t.Errorf("a claim: %s", status)
	}
}

func TestApply_again(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("kept", 2)
	admin.claim("ann", "kept")
	before := catalog(admin)
	if len(before) < 50 { // else the comparison proves nothing
		t.Fatalf("only %d lines of catalog:\n%s", len(before), strings.Join(before, "\n"))
	}
	for range 2 {
		if _, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "the catalog after Apply", catalog(admin), before)
	equal(t, "users of the coupon", admin.claims("kept"), []string{"ann"})
}

func TestApply_concurrent(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	results := concurrently(t, several(t, 3, database, owner), func(ctx context.Context, _ int, s *session) (db.Result, error) {
		return db.Apply(ctx, s.Conn, db.Options{})
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
	for _, loginKind := range []string{"superuser", "plain owner"} {
		for _, end := range []string{"rollback", "commit", "commit of the monitor role only"} {
			t.Run(loginKind+", "+end, func(t *testing.T) {
				t.Parallel()
				const n = 5
				c := newCluster(t)
				login := ""
				if loginKind == "plain owner" {
					login = c.login("createrole")
				}
				files, role := c.programWithOtherRoles()
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
				ended := make(chan error, 1)
				go func() {
					err := waitBlocked(observer, n, databases)
					_, err2 := c.Exec(context.Background(), end)
					ended <- errors.Join(err, err2)
				}()
				for _, result := range concurrently(t, sessions, func(ctx context.Context, _ int, s *session) (db.Result, error) {
					return db.ApplyFiles(ctx, s.Conn, files, db.WithLockTimeout(db.Options{}, testTimeout))
				}) {
					if result.From != 0 || result.To != db.Version() {
						t.Errorf("got %+v, want from 0 to %d", result, db.Version())
					}
				}
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
				for _, s := range sessions {
					s.exec("set role " + role)
					s.create("first", 1)
				}
			})
		}
	}
}

// waitBlocked waits until n sessions of these databases wait for a lock.
func waitBlocked(observer *session, n int, databases []string) error {
	ctx := bounded(observer.t)
	for {
		blocked, err := getErr[int](ctx, observer.Conn, `
			select count(*)
			from pg_catalog.pg_stat_activity
			where datname = any ($1)
			  and cardinality(pg_catalog.pg_blocking_pids(pid)) > 0`, databases)
		if err != nil || blocked == n {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func TestApply_serversAndOwners(t *testing.T) {
	t.Parallel()
	private := pgtest.StartServer(t, map[string]string{"fsync": "off"})
	databases := map[string]*pgtest.Database{
		"the tests' server, a superuser":   pgtest.Empty(t),
		"the tests' server, a plain owner": pgtest.NewOwned(t),
		"a private server, a superuser":    private.Empty(t),
		"a private server, a plain owner":  private.NewOwned(t),
	}
	for name, database := range databases {
		s := owner(t, database)
		for range 2 {
			if _, err := db.Apply(bounded(t), s.Conn, db.Options{}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		t.Logf("%s: PostgreSQL %s", name, get[string](s, "select current_setting('server_version')"))
		// The owner's login may also be the service's: it must be able to switch to the service's role.
		s.exec("set role coupon_service")
		s.create("first", 2)
		equal(t, name, s.claimBatch([]string{"a", "b", "a"}, same("first", 3)), []string{claimed, claimed, alreadyClaimed})
		if err := onlyError(s.Exec(bounded(t), "select from coupond.claims")); sqlstate(t, err) != "42501" {
			t.Errorf("%s: coupon_service reads a table: %v", name, err)
		}
	}
}

func TestApply_missingPrivilege(t *testing.T) {
	t.Parallel()
	apply := func(conn *pgx.Conn) error { return onlyError(db.Apply(bounded(t), conn, db.Options{})) }
	refused := func(t *testing.T, err error, parts ...string) {
		t.Helper()
		if !errors.Is(err, db.ErrMissingPrivilege) {
			t.Fatalf("got %v, want ErrMissingPrivilege", err)
		}
		contains(t, err.Error(), parts...)
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("not one line: %v", err)
		}
	}

	t.Run("a login that owns nothing, empty database", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		refused(t, apply(c.connectAs(c.login(), c.base)), "the login lacks a privilege", "own the database")
	})
	t.Run("an owner without CREATEROLE", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login()
		files, role := c.programWithOtherRoles()
		s := owner(t, c.database(login))
		refused(t, onlyError(db.ApplyFiles(bounded(t), s.Conn, files, db.Options{})),
			"the login "+login+" may not create or grant the roles", "create role "+role, "create role "+monitorOf(role), "grant "+role+" to "+login)
		if get[bool](s, "select exists (select from pg_catalog.pg_namespace where nspname = 'coupond')") {
			t.Error("the schema was created without the roles")
		}
		// The advice in the error text solves it.
		c.exec("create role " + role + " nologin; create role " + monitorOf(role) + " nologin; grant " + role + " to " + login)
		if err := onlyError(db.ApplyFiles(bounded(t), s.Conn, files, db.Options{})); err != nil {
			t.Error(err)
		}
	})
	t.Run("an owner with CREATEROLE, the role was created by another login", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login("createrole")
		files, role := c.programWithOtherRoles()
		c.exec("create role " + role + " nologin")
		err := onlyError(db.ApplyFiles(bounded(t), owner(t, c.database(login)).Conn, files, db.Options{}))
		if get[int](c.session, "select current_setting('server_version_num')::int") >= 160000 {
			refused(t, err, "may not create or grant the roles", "grant "+role+" to "+login)
		} else if err != nil { // before 16, CREATEROLE may grant every role
			t.Error(err)
		}
	})
}

func TestApply_ownerCreatesTheRoles(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	login := c.login("createrole")
	files, role := c.programWithOtherRoles()
	s := owner(t, c.database(login))
	for range 2 {
		if _, err := db.ApplyFiles(bounded(t), s.Conn, files, db.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	s.exec("set role " + role)
	s.create("first", 1)
	if status := s.claim("ann", "first"); status != claimed {
		t.Errorf("a claim: %s", status)
	}
}

func TestApply_newerSchema(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	newer := newerProgram(t)
	result, err := db.ApplyFiles(bounded(t), admin.Conn, newer, db.Options{})
	if want := (db.Result{From: db.Version(), To: db.Version() + 1}); err != nil || result != want {
		t.Fatalf("the upgrade: got %+v, %v, want %+v", result, err, want)
	}
	before := catalog(admin)

	_, err = db.Apply(bounded(t), admin.Conn, db.Options{})
	if !errors.Is(err, db.ErrSchemaIsNewer) {
		t.Fatalf("got %v, want ErrSchemaIsNewer", err)
	}
	for _, part := range []string{fmt.Sprintf("version %d", db.Version()+1), fmt.Sprintf("installs version %d", db.Version())} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in: %v", part, err)
		}
	}
	equal(t, "the catalog", catalog(admin), before)
}

// An older program that began when the schema was old must not install its functions if a newer
// program has migrated meanwhile.
func TestApply_olderProgramKeepsNewerFunctions(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin, observer := owner(t, database), owner(t, database)
	options := db.WithLockTimeout(db.Options{}, testTimeout)
	var errs []chan error
	begin := func(files fs.FS) {
		t.Helper()
		conn, done := database.Connect(t), make(chan error, 1)
		errs = append(errs, done)
		go func() { done <- onlyError(db.ApplyFiles(bounded(t), conn, files, options)) }()
		if err := waitBlocked(observer, len(errs), []string{database.Name}); err != nil {
			t.Fatal(err)
		}
	}
	admin.exec(fmt.Sprintf("select pg_advisory_lock(%d)", db.ApplyLock))
	begin(newerProgram(t))
	begin(db.Files)
	begin(db.Files)
	admin.exec("select pg_advisory_unlock_all()")

	if err := <-errs[0]; err != nil {
		t.Fatal(err)
	}
	for _, older := range errs[1:] {
		if err := <-older; !errors.Is(err, db.ErrSchemaIsNewer) {
			t.Errorf("got %v, want ErrSchemaIsNewer", err)
		}
	}
	if comment := get[string](admin, "select obj_description('coupond.claim_coupon(text, text)'::regprocedure)"); comment != "newer" {
		t.Errorf("an older program's functions on a newer schema: %s", comment)
	}
}

func TestApply_notUTF8(t *testing.T) {
	t.Parallel()
	s := owner(t, newCluster(t).database("", "encoding 'LATIN1' locale 'C'"))
	_, err := db.Apply(bounded(t), s.Conn, db.Options{})
	if !errors.Is(err, db.ErrNotUTF8) || !strings.Contains(err.Error(), "LATIN1") {
		t.Errorf("got %v, want ErrNotUTF8 with the encoding LATIN1", err)
	}
	if get[bool](s, "select exists (select from pg_catalog.pg_namespace where nspname = 'coupond')") {
		t.Error("a refused database has the schema")
	}
}

func TestValidateServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		number            int
		version, encoding string
		want              error
	}{
		{140022, "14.22 (Debian 14.22-1)", "UTF8", db.ErrServerTooOld},
		{90624, "9.6.24", "SQL_ASCII", db.ErrServerTooOld},
		{150000, "15.0", "UTF8", nil},
		{180001, "18.1", "UTF8", nil},
		{150000, "15.0", "SQL_ASCII", db.ErrNotUTF8},
	} {
		err := db.ValidateServer(c.number, c.version, c.encoding)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v", c, err)
		}
		if errors.Is(c.want, db.ErrServerTooOld) && (!strings.Contains(err.Error(), c.version) || !strings.Contains(err.Error(), "15")) {
			t.Errorf("not both versions in: %v", err)
		}
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
	next := fmt.Sprintf("migrations/%03d_broken.sql", db.Version()+1)
	for want, files := range map[string]fs.FS{
		"migrate: ":           broken(next, "create table coupond.half (); select 1 / 0"),
		"load migrations: ":   broken(next, "select '{{1,2}}'"),
		"load functions: ":    broken("functions/claim_coupon.sql", "select '{{1,2}}'"),
		"install functions: ": broken("functions/claim_batch.sql", "create function coupond.half() returns int language sql as 'nonsense'"),
	} {
		_, err := db.ApplyFiles(bounded(t), admin.Conn, files, db.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q…", err, want)
		}
		equal(t, "the catalog after "+want, catalog(admin), before)
	}
	if _, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err != nil {
		t.Errorf("Apply after the failures: %v", err)
	}

	// A lost connection is not one of the errors that the caller can fix.
	if err := admin.Close(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Apply(bounded(t), admin.Conn, db.Options{}); err == nil || errors.Is(err, db.ErrMissingPrivilege) {
		t.Errorf("without a connection: %v", err)
	}
}

// program returns the files that Apply installs.
func program(t testingTB) fstest.MapFS {
	t.Helper()
	return copyOf(t, db.Files)
}

func copyOf(t testingTB, embedded fs.FS) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	err := fs.WalkDir(embedded, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(embedded, path)
		files[path] = &fstest.MapFile{Data: text}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// newerProgram returns program with one more migration and a different claim_coupon.
func newerProgram(t testingTB) fstest.MapFS {
	t.Helper()
	files := program(t)
	next := fmt.Sprintf("migrations/%03d_newer.sql", db.Version()+1)
	files[next] = &fstest.MapFile{Data: []byte("alter table coupond.coupons add column if not exists note text")}
	function := files["functions/claim_coupon.sql"]
	function.Data = append(function.Data, "\ncomment on function coupond.claim_coupon(text, text) is 'newer';"...)
	return files
}

func onlyError[T any](_ T, err error) error { return err }
