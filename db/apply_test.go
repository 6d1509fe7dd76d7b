package db_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
)

func TestApplyBringsAnEmptyDatabaseUpToDate(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	admin := owner(t, database)

	for _, want := range []db.Result{{From: 0, To: db.Version()}, {From: db.Version(), To: db.Version()}} {
		result, err := db.Apply(bounded(t), admin.Conn)
		if err != nil || result != want {
			t.Fatalf("%+v %v, not %+v", result, err, want)
		}
	}
	if version := get[int32](admin, "select public.coupon_schema_version()"); version != db.Version() {
		t.Errorf("coupon_schema_version: %d, not %d", version, db.Version())
	}
	admin.exec("set role coupon_service")
	admin.create("first", 1)
	if status := admin.claim("somebody", "first"); status != claimed {
		t.Errorf("a claim: %s", status)
	}
}

func TestApplyAgainChangesNothing(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("kept", 2)
	admin.claim("somebody", "kept")
	before := catalog(admin)
	if len(before) < 50 { // or else nothing would be compared
		t.Fatalf("%d lines of catalog:\n%s", len(before), strings.Join(before, "\n"))
	}
	for range 2 {
		if _, err := db.Apply(bounded(t), admin.Conn); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "the catalog after Apply", catalog(admin), before)
	equal(t, "who has the coupon", admin.claims("kept"), []string{"somebody"})
}

func TestApplyThreeAtOnceOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	results := together(t, several(t, 3, database, owner), func(ctx context.Context, _ int, s *session) (db.Result, error) {
		return db.Apply(ctx, s.Conn)
	})

	migrated := 0
	for _, result := range results {
		if result.From == 0 {
			migrated++
		}
	}
	if migrated != 1 {
		t.Errorf("one was first, the others found the schema: %+v", results)
	}
	equal(t, "the catalog after three at once", catalog(owner(t, database)), catalog(owner(t, pgtest.New(t))))
}

// A role belongs to the cluster: the databases' advisory locks do not order those who create it.
func TestApplyToManyDatabasesOfOneClusterAtOnce(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"superuser", "plain owner"} {
		for _, end := range []string{"rollback", "commit", "commit of the monitor's alone"} {
			t.Run(who+", "+end, func(t *testing.T) {
				t.Parallel()
				const n = 5
				c := newCluster(t)
				login := ""
				if who == "plain owner" {
					login = c.login("createrole")
				}
				files, role := c.programWithRoleOfItsOwn()
				databases, sessions := make([]string, n), make([]*session, n)
				for i := range databases {
					database := c.database(login)
					databases[i], sessions[i] = database.Name, owner(t, database)
				}

				// The race is made certain: all of them wait for a transaction that has created the role, and go on at once
				// when it ends. One of them must then create it, or find it there; and each looks to its membership.
				end, contested := end, role
				if end == "commit of the monitor's alone" {
					end, contested = "commit", monitorOf(role)
				}
				c.exec("begin; create role " + contested + " nologin")
				if login != "" {
					c.exec("grant " + contested + " to " + login + " with admin option")
				}
				watcher := owner(t, c.base)
				released := make(chan error, 1)
				go func() {
					err := waitBlocked(watcher, n, databases)
					_, err2 := c.Exec(context.Background(), end)
					released <- errors.Join(err, err2)
				}()
				for _, result := range together(t, sessions, func(ctx context.Context, _ int, s *session) (db.Result, error) {
					return db.ApplyFiles(ctx, s.Conn, files)
				}) {
					if result.From != 0 || result.To != db.Version() {
						t.Errorf("%+v", result)
					}
				}
				if err := <-released; err != nil {
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
func waitBlocked(watcher *session, n int, databases []string) error {
	ctx := bounded(watcher.t)
	for {
		blocked, err := ask[int](ctx, watcher.Conn, `
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

func TestApplyOnEveryServerThereIs(t *testing.T) {
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
			if _, err := db.Apply(bounded(t), s.Conn); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		t.Logf("%s: PostgreSQL %s", name, get[string](s, "select current_setting('server_version')"))
		// The owner's login is the service's, too: it must be able to put its rights down.
		s.exec("set role coupon_service")
		s.create("first", 2)
		equal(t, name, s.claimBatch([]string{"a", "b", "a"}, same("first", 3)), []string{claimed, claimed, alreadyClaimed})
		if err := onlyError(s.Exec(bounded(t), "select from public.claims")); sqlstate(t, err) != "42501" {
			t.Errorf("%s: coupon_service looks into a table: %v", name, err)
		}
	}
}

func TestApplyWithoutTheRightsSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	apply := func(conn *pgx.Conn) error { return onlyError(db.Apply(bounded(t), conn)) }
	refused := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, db.ErrMissingPrivilege) {
			t.Fatalf("not ErrMissingPrivilege: %v", err)
		}
		text := err.Error()
		for _, part := range []string{"the login lacks a privilege", "CREATEROLE", "grant coupon_service to"} {
			if !strings.Contains(text, part) || strings.Contains(text, "\n") {
				t.Errorf("one sentence that names %q: %s", part, text)
			}
		}
	}

	t.Run("a login that owns nothing, on an empty database", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		refused(t, apply(c.as(c.login(), c.base)))
	})
	t.Run("a login that owns nothing, on a database that is up to date", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		if err := apply(c.Conn); err != nil {
			t.Fatal(err)
		}
		refused(t, apply(c.as(c.login(), c.base)))
	})
	t.Run("an owner without CREATEROLE", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login()
		files, role := c.programWithRoleOfItsOwn()
		conn := owner(t, c.database(login)).Conn
		refused(t, onlyError(db.ApplyFiles(bounded(t), conn, files)))
		// What the sentence says is what helps.
		c.exec("create role " + role + " nologin; create role " + monitorOf(role) + " nologin; grant " + role + " to " + login)
		if err := onlyError(db.ApplyFiles(bounded(t), conn, files)); err != nil {
			t.Error(err)
		}
	})
	t.Run("an owner with CREATEROLE, where the role is somebody else's", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		login := c.login("createrole")
		files, role := c.programWithRoleOfItsOwn()
		c.exec("create role " + role + " nologin")
		err := onlyError(db.ApplyFiles(bounded(t), owner(t, c.database(login)).Conn, files))
		if get[int](c.session, "select current_setting('server_version_num')::int") >= 160000 {
			refused(t, err)
		} else if err != nil { // there every CREATEROLE may grant every role
			t.Error(err)
		}
	})
}

func TestApplyAsAPlainOwnerOfAClusterWithoutTheRole(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	login := c.login("createrole")
	files, role := c.programWithRoleOfItsOwn()
	s := owner(t, c.database(login))
	for range 2 {
		if _, err := db.ApplyFiles(bounded(t), s.Conn, files); err != nil {
			t.Fatal(err)
		}
	}
	s.exec("set role " + role)
	s.create("first", 1)
	if status := s.claim("somebody", "first"); status != claimed {
		t.Errorf("a claim: %s", status)
	}
}

func TestApplyRefusesANewerSchema(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin := owner(t, database)
	newer := newerProgram(t)
	result, err := db.ApplyFiles(bounded(t), admin.Conn, newer)
	if want := (db.Result{From: db.Version(), To: db.Version() + 1}); err != nil || result != want {
		t.Fatalf("the upgrade: %+v %v, not %+v", result, err, want)
	}
	before := catalog(admin)

	_, err = db.Apply(bounded(t), admin.Conn)
	if !errors.Is(err, db.ErrSchemaIsNewer) {
		t.Fatalf("not ErrSchemaIsNewer: %v", err)
	}
	for _, part := range []string{fmt.Sprintf("version %d", db.Version()+1), fmt.Sprintf("brings %d", db.Version())} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("it names %q: %v", part, err)
		}
	}
	equal(t, "the catalog, untouched", catalog(admin), before)
}

// An older program that has found an old schema must not install its functions after a newer program has come in between.
func TestApplyOfAnOlderProgramNeverReplacesNewerFunctions(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin, newer := owner(t, database), newerProgram(t)
	sessions := several(t, 5, database, owner)
	for range 5 {
		admin.exec(fmt.Sprintf("update public.schema_version set version = %d", db.Version()))
		refused := together(t, sessions, func(ctx context.Context, i int, s *session) (bool, error) {
			if i == 0 {
				return false, onlyError(db.ApplyFiles(ctx, s.Conn, newer))
			}
			err := onlyError(db.Apply(ctx, s.Conn))
			if errors.Is(err, db.ErrSchemaIsNewer) {
				return true, nil
			}
			return false, err
		})
		if comment := get[string](admin, "select obj_description('public.claim_coupon(text, text)'::regprocedure)"); comment != "newer" {
			t.Fatalf("an older program's functions on a newer schema (who was refused: %v): %s", refused, comment)
		}
	}
}

func TestApplyRefusesADatabaseThatIsNotUTF8(t *testing.T) {
	t.Parallel()
	s := owner(t, newCluster(t).database("", "encoding 'LATIN1' locale 'C'"))
	_, err := db.Apply(bounded(t), s.Conn)
	if !errors.Is(err, db.ErrNotUTF8) || !strings.Contains(err.Error(), "LATIN1") {
		t.Errorf("not ErrNotUTF8: %v", err)
	}
	if n := get[int](s, "select count(*) from pg_catalog.pg_class where relnamespace = 'public'::regnamespace"); n != 0 {
		t.Errorf("%d tables in a database that was refused", n)
	}
}

func TestJudgeServer(t *testing.T) {
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
		err := db.JudgeServer(c.number, c.version, c.encoding)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
		if errors.Is(c.want, db.ErrServerTooOld) && (!strings.Contains(err.Error(), c.version) || !strings.Contains(err.Error(), "15")) {
			t.Errorf("it names both versions: %v", err)
		}
	}
}

func TestApplyThatFailsLeavesWhatWasThere(t *testing.T) {
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
		"migrate: ":           broken(next, "create table public.half (); select 1 / 0"),
		"load migrations: ":   broken(next, "select '{{1,2}}'"),
		"load functions: ":    broken("functions/claim_coupon.sql", "select '{{1,2}}'"),
		"install functions: ": broken("functions/claim_batch.sql", "create function public.half() returns int language sql as 'nonsense'"),
	} {
		_, err := db.ApplyFiles(bounded(t), admin.Conn, files)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
		equal(t, "the catalog after "+want, catalog(admin), before)
	}
	if _, err := db.Apply(bounded(t), admin.Conn); err != nil {
		t.Errorf("and the right files go in afterwards: %v", err)
	}

	// A lost connection is a fault, not one of the errors that tell what to do.
	if err := admin.Close(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Apply(bounded(t), admin.Conn); err == nil || errors.Is(err, db.ErrMissingPrivilege) {
		t.Errorf("without a connection: %v", err)
	}
}

// The index of migration 005 may have been built before, while claims went on; then it is taken as it is. What was claimed stays.
func TestApplyTakesTheIndexThatWasBuiltBefore(t *testing.T) {
	t.Parallel()
	for _, built := range []string{"", "create unique index concurrently claims_coupon_name_user_id_key on public.claims (coupon_name, user_id)"} {
		t.Run(built, func(t *testing.T) {
			t.Parallel()
			database := pgtest.Empty(t)
			admin := owner(t, database)
			older := program(t)
			maps.DeleteFunc(older, func(name string, _ *fstest.MapFile) bool {
				return strings.HasPrefix(name, "migrations/") && name >= "migrations/005"
			})
			if result, err := db.ApplyFiles(bounded(t), admin.Conn, older); err != nil || result.To != 4 {
				t.Fatalf("%+v %v", result, err)
			}
			admin.create("lamp", 2)
			admin.claim("ann", "lamp")
			before := ""
			if built != "" {
				admin.exec(built)
				before = get[string](admin, "select 'public.claims_coupon_name_user_id_key'::regclass::oid::text")
			}

			if result, err := db.Apply(bounded(t), admin.Conn); err != nil || result != (db.Result{From: 4, To: db.Version()}) {
				t.Fatalf("%+v %v", result, err)
			}
			const constraint = "from pg_catalog.pg_constraint where conname = 'claims_user_has_coupon_once'"
			if got := get[string](admin, "select pg_catalog.pg_get_constraintdef(oid) "+constraint); got != "UNIQUE (coupon_name, user_id)" {
				t.Errorf("the constraint: %s", got)
			}
			if after := get[string](admin, "select conindid::text "+constraint); before != "" && after != before {
				t.Errorf("index %s was built before, and the constraint has %s", before, after)
			}
			if n := get[int](admin, "select count(*)::int from pg_catalog.pg_index where indrelid = 'public.claims'::regclass"); n != 2 {
				t.Errorf("%d indexes", n)
			}
			if got := admin.claim("ann", "lamp"); got != alreadyClaimed {
				t.Errorf("claimed again: %s", got)
			}
		})
	}
}

// program are the files that Apply installs.
func program(t tester) fstest.MapFS {
	t.Helper()
	return copyOf(t, db.Files)
}

func copyOf(t tester, embedded fs.FS) fstest.MapFS {
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

// newerProgram has one migration more, and another claim_coupon.
func newerProgram(t tester) fstest.MapFS {
	t.Helper()
	files := program(t)
	next := fmt.Sprintf("migrations/%03d_newer.sql", db.Version()+1)
	files[next] = &fstest.MapFile{Data: []byte("alter table public.coupons add column if not exists note text")}
	function := files["functions/claim_coupon.sql"]
	function.Data = append(function.Data, "\ncomment on function public.claim_coupon(text, text) is 'newer';"...)
	return files
}

func onlyError[T any](_ T, err error) error { return err }
