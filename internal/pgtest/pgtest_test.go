package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
	"scalable-coupon-system/internal/wait"
)

// create inserts a coupon and checks that it is the only one in the database.
func create(t *testing.T, d *Database, coupon string) {
	t.Helper()
	conn := d.Connect(t)
	_, err := conn.Exec(t.Context(), "insert into coupond.coupons (name, amount, remaining_amount) values ($1, 1, 1)", coupon)
	must(t, err)
	var coupons int
	must(t, conn.QueryRow(t.Context(), "select count(*) from coupond.coupons").Scan(&coupons))
	if coupons != 1 {
		t.Errorf("%s contains %d coupons, want only the new one", d.Name, coupons)
	}
}

func TestNew_parallel(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			create(t, New(t), "the same name everywhere")
		})
	}
}

func TestNew_schemaAndSearchPath(t *testing.T) {
	t.Parallel()
	conn := New(t).Connect(t)
	var version int32
	must(t, conn.QueryRow(t.Context(), "select coupond.coupon_schema_version()").Scan(&version))
	if version != db.Version() {
		t.Errorf("schema version %d, want %d", version, db.Version())
	}
	_, err := conn.Exec(t.Context(), "select from coupons")
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != pgerrcode.UndefinedTable {
		t.Errorf("a name without its schema: %v, want SQLSTATE 42P01", err)
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	d := Empty(t)
	if schemas := query(t, d.URL, "select nspname from pg_namespace where nspname = 'coupond'"); len(schemas) != 0 {
		t.Error("the database has the schema coupond")
	}
	if encoding := query(t, d.URL, "show server_encoding")[0]; encoding != "UTF8" {
		t.Errorf("encoding %s, want UTF8", encoding)
	}
}

func TestServer_ForProxy(t *testing.T) {
	t.Parallel()
	d := StartServer(t, map[string]string{"fsync": "off"}).ForProxy(t)
	query(t, d.URL, "create extension plproxy")
}

func TestNewOwned_isNotSuperuser(t *testing.T) {
	t.Parallel()
	d := NewOwned(t)
	got := query(t, d.URL, `
		select format('%s super %s createrole %s owner %s', rolname = current_database(), rolsuper, rolcreaterole, pg_roles.oid = datdba)
		from pg_roles, pg_database where rolname = current_user and datname = current_database()`)[0]
	if want := "t super f createrole t owner t"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	_, err := db.Apply(t.Context(), d.Connect(t), db.Options{})
	must(t, err)
}

func TestDatabase_isDroppedAfterTest(t *testing.T) {
	t.Parallel()
	admin := sharedInstance(t).admin
	var created []string
	t.Run("inner", func(t *testing.T) {
		for _, d := range []*Database{New(t), Empty(t), NewOwned(t)} {
			created = append(created, d.Name)
		}
		d := New(t)
		created = append(created, d.Name)
		d.Connect(t)
		query(t, d.URL, "select 'an open connection does not prevent the drop'")
	})
	remaining := query(t, admin, "select datname from pg_database where datname = any($1) union select rolname from pg_roles where rolname = any($1)", created)
	if len(created) != 4 || len(remaining) != 0 {
		t.Errorf("of %v remain %v", created, remaining)
	}
}

// externalServer starts a server, and returns it with a package that uses it as TEST_DATABASE_URL.
func externalServer(t *testing.T) (admin string, p *testPackage) {
	t.Helper()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "200"})
	admin = s.instance.admin
	return admin, newPackage(t, urlVariable+"="+admin)
}

func TestExternal_concurrentProcesses(t *testing.T) {
	t.Parallel()
	admin, p := externalServer(t)
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() { p.run(t, "many", true) })
	}
	group.Wait()
	if remaining := leftovers(t, admin); len(remaining) != 0 {
		t.Errorf("remaining databases and roles: %v", remaining)
	}
}

func TestExternal_keepsDatabaseOfFailedTest(t *testing.T) {
	t.Parallel()
	admin, p := externalServer(t)

	output := p.run(t, "failing", false)
	shown := addressIn(t, output)
	if config, err := pgconn.ParseConfig(admin); err != nil || strings.Contains(output, config.Password) {
		t.Errorf("the output contains the password of %s (%v):\n%s", urlVariable, err, output)
	}
	first := leftovers(t, admin)
	if len(first) != 1 || !strings.Contains(shown, "/"+first[0]+"?sslmode=disable") {
		t.Fatalf("%v remain, and the output contains %s", first, shown)
	}
	if rows := query(t, withDatabase(admin, first[0]), "select value from public.evidence"); len(rows) != 1 {
		t.Errorf("the kept database contains %v, want 1 row", rows)
	}

	// A run of another package keeps the database, the next run of its own package drops it.
	newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
	if now := leftovers(t, admin); len(now) != 1 || now[0] != first[0] {
		t.Errorf("another package's run left %v of %v", now, first)
	}
	p.run(t, "failing_owner", false)
	if now := leftovers(t, admin); len(now) != 1 || now[0] == first[0] { // a role and a database of the same name
		t.Errorf("the next failure left %v, before it %v", now, first)
	}
	p.with("CI=true").run(t, "failing", false)
	if now := leftovers(t, admin); len(now) != 0 {
		t.Errorf("with CI=true %v remain", now)
	}
}

func TestExternal_dropsDatabasesOfKilledRun(t *testing.T) {
	t.Parallel()
	admin, p := externalServer(t)
	other := newPackage(t, urlVariable+"="+admin)
	killed, survivor := p.start(t, "waiting"), other.start(t, "waiting")
	waitReady(t, p, other)
	killed.kill()
	before := leftovers(t, admin)
	if len(before) != 6 { // for each run: the template, a New, and a NewOwned with its role
		t.Fatalf("two runs have %v, want 6 databases and roles", before)
	}

	// The server notices a little later that the client is gone.
	wait.For(t, "the databases of the killed run to be dropped", func() bool {
		newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
		return len(leftovers(t, admin)) == 3
	})
	must(t, os.WriteFile(filepath.Join(other.dir, "continue"), nil, 0o600))
	if err := survivor.cmd.Wait(); err != nil {
		t.Errorf("the other run failed: %v\n%s", err, survivor.output.String())
	}
	if now := leftovers(t, admin); len(now) != 0 {
		t.Errorf("remaining databases and roles: %v", now)
	}
}

func TestMain_startsNoServerWithoutDatabase(t *testing.T) {
	t.Parallel()
	if output := newPackage(t).run(t, "none", true); strings.Contains(output, "pgtest: PostgreSQL") {
		t.Errorf("a server was selected:\n%s", output)
	}
}

// homes returns the home directories of the package's local servers.
func homes(t *testing.T, p *testPackage) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.tempDir(), "coupond-pgtest-*"))
	must(t, err)
	return found
}

func TestLocal_keepAndRemove(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)

	output := p.run(t, "passing", true)
	if !strings.Contains(output, "pgtest: no container: no Docker engine answers") || !strings.Contains(output, ", from ") {
		t.Errorf("the output does not say which server was selected:\n%s", output)
	}
	if remaining := homes(t, p); len(remaining) != 0 {
		t.Errorf("after a passing test %v remain", remaining)
	}

	first := addressIn(t, p.run(t, "failing", false))
	if rows := query(t, first, "select value from public.evidence"); len(rows) != 1 {
		t.Errorf("the kept database contains %v, want 1 row", rows)
	}
	// A run of another package keeps it.
	another := newPackage(t, withoutDocker)
	another.environment[0] = p.environment[0] // the same directory for temporary files
	another.run(t, "passing", true)
	if !answers(t, first) {
		t.Error("a run of another package removed the server")
	}
	// The next failure of its own package replaces it. A panic is a failure, too.
	second := addressIn(t, p.run(t, "panicking", false))
	if answers(t, first) || !answers(t, second) || len(homes(t, p)) != 1 {
		t.Errorf("the first answers: %t, the second: %t, homes: %v", answers(t, first), answers(t, second), homes(t, p))
	}
	p.with("CI=true").run(t, "failing", false)
	if remaining := homes(t, p); len(remaining) != 0 || answers(t, second) {
		t.Errorf("with CI=true %v remain", remaining)
	}

	// After keepTime a run of another package removes it, too.
	old := addressIn(t, p.run(t, "failing", false))
	for _, home := range homes(t, p) {
		must(t, os.Chtimes(home, time.Time{}, time.Now().Add(-keepTime)))
	}
	another.run(t, "passing", true)
	if remaining := homes(t, p); len(remaining) != 0 || answers(t, old) {
		t.Errorf("after keepTime %v remain", remaining)
	}
}

func TestLocal_killedRun(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)
	run := p.start(t, "waiting")
	waitReady(t, p)
	home := homes(t, p)
	if len(home) != 1 {
		t.Fatalf("home directories: %v, want 1", home)
	}
	run.kill()
	wait.For(t, "the server to end", func() bool { _, err := localpg.Running(home[0]); return err != nil })

	another := newPackage(t, withoutDocker)
	another.environment[0] = p.environment[0] // the same directory for temporary files
	another.run(t, "passing", true)
	if remaining := homes(t, p); len(remaining) != 0 {
		t.Errorf("another package's run left %v", remaining)
	}
}

func TestMain_ignoresEnvironment(t *testing.T) {
	t.Parallel()
	newPackage(t, withoutDocker, "PGSERVICE=nowhere", "PGSSLMODE=verify-full", "PGTARGETSESSIONATTRS=standby", "PGTZ=Mars/Phobos",
		"PGOPTIONS=-c default_transaction_read_only=on", "PGSSLROOTCERT=/nowhere").run(t, "passing", true)
}

func TestServer(t *testing.T) {
	t.Parallel()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "42"})

	// On a server without coupon_service, an owner that is not a superuser creates the role.
	owner := s.NewOwned(t)
	if roles := query(t, owner.URL, "select rolname from pg_roles where rolname = 'coupon_service'"); len(roles) != 0 {
		t.Fatal("the role coupon_service already exists")
	}
	_, err := db.Apply(t.Context(), owner.Connect(t), db.Options{})
	must(t, err)

	d := s.New(t)
	if got := query(t, d.URL, "show max_connections")[0]; got != "42" {
		t.Errorf("max_connections is %s, want 42", got)
	}
	create(t, d, "kept")
	for name, restart := range map[string]func() error{
		"Stop": s.Stop,
		"Kill": s.Kill,
		"kill -9": func() error {
			if err := syscall.Kill(s.Pid(), syscall.SIGKILL); err != nil {
				return err
			}
			<-s.running.Done()
			return nil
		},
		"nothing": func() error { return nil },
	} {
		must(t, restart())
		must(t, s.Start())
		if got := query(t, d.URL, "select name from coupond.coupons"); len(got) != 1 {
			t.Errorf("after %s the coupons are %v, want 1", name, got)
		}
	}

	must(t, s.Kill())
	must(t, s.Kill()) // already ended
	must(t, s.Stop())
	if s.Pid() != 0 || answers(t, d.URL) {
		t.Errorf("the server is running after Kill, as process %d", s.Pid())
	}
}

func TestClusterDir(t *testing.T) {
	t.Parallel()
	var home string
	t.Run("inner", func(t *testing.T) {
		home = ClusterDir(t)
		running, err := localpg.Start(t.Context(), localpg.Options{Dir: home, Settings: sharedSettings})
		must(t, err)
		t.Cleanup(func() { _ = running.Stop() })
		if data, err := filepath.EvalSymlinks(filepath.Join(home, "data")); err != nil || filepath.Dir(data) != home {
			t.Errorf("the data is in %s, %v; want %s", data, err, home)
		}
	})
	if _, err := os.Stat(home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s still exists: %v", home, err)
	}
}

func TestServer_keptAfterFailure(t *testing.T) {
	t.Parallel()
	p := newPackage(t)
	url := addressIn(t, p.run(t, "private", false))
	if names := leftovers(t, url); len(names) != 2 { // template and database
		t.Errorf("the kept server has %v, want 2 databases", names)
	}
	p.with("CI=1").run(t, "private", false)
	if remaining := homes(t, p); len(remaining) != 0 || answers(t, url) {
		t.Errorf("with CI=1 %v remain", remaining)
	}
}

func TestExternal_connectionFails(t *testing.T) {
	t.Parallel()
	output := newPackage(t, urlVariable+"=postgres://missing:secret@127.0.0.1:1/none").run(t, "passing", false)
	if !strings.Contains(output, "no PostgreSQL server for the tests: "+urlVariable) || strings.Contains(output, "secret") {
		t.Errorf("the output is\n%s", output)
	}
}

func TestContainer_namedImageIsRequired(t *testing.T) {
	t.Parallel()
	const image = "127.0.0.1:1/none:5"
	for _, p := range []*testPackage{
		newPackage(t, imageVariable+"="+image),
		newPackage(t, imageVariable+"="+image, withoutDocker),
	} {
		if output := p.run(t, "passing", false); !strings.Contains(output, "no PostgreSQL server for the tests: "+imageVariable+"="+image) {
			t.Errorf("the output is\n%s", output)
		}
	}
}
