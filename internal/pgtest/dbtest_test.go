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
)

// create makes a coupon and wants it to be the only one of its database.
func create(t *testing.T, d *Database, coupon string) {
	t.Helper()
	conn := d.Connect(t)
	_, err := conn.Exec(t.Context(), "insert into public.coupons (name, amount, remaining_amount) values ($1, 1, 1)", coupon)
	must(t, err)
	var coupons int
	must(t, conn.QueryRow(t.Context(), "select count(*) from public.coupons").Scan(&coupons))
	if coupons != 1 {
		t.Errorf("%s holds %d coupons, want the 1 just made", d.Name, coupons)
	}
}

func TestDatabasesOfParallelTestsAreIndependent(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			create(t, New(t), "the same name everywhere")
		})
	}
}

func TestNewHasOurSchemaAndNoSearchPath(t *testing.T) {
	t.Parallel()
	conn := New(t).Connect(t)
	var version int32
	must(t, conn.QueryRow(t.Context(), "select public.coupon_schema_version()").Scan(&version))
	if version != db.Version() {
		t.Errorf("schema version %d, want %d", version, db.Version())
	}
	_, err := conn.Exec(t.Context(), "select from coupons")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != pgerrcode.UndefinedTable {
		t.Errorf("a name without its schema: %v, want SQLSTATE 42P01", err)
	}
}

func TestEmptyHasNothing(t *testing.T) {
	t.Parallel()
	d := Empty(t)
	if tables := query(t, d.URL, "select relname from pg_class where relnamespace = 'public'::regnamespace"); len(tables) != 0 {
		t.Errorf("there is %v", tables)
	}
	if encoding := query(t, d.URL, "show server_encoding")[0]; encoding != "UTF8" {
		t.Errorf("encoding %s, want UTF8", encoding)
	}
}

func TestForProxyHasPLProxy(t *testing.T) {
	t.Parallel()
	d := StartServer(t, map[string]string{"fsync": "off"}).ForProxy(t)
	query(t, d.URL, "create extension plproxy")
}

func TestOwnerIsNoSuperuser(t *testing.T) {
	t.Parallel()
	d := NewOwned(t)
	got := query(t, d.URL, `
		select format('%s super %s createrole %s owner %s', rolname = current_database(), rolsuper, rolcreaterole, pg_roles.oid = datdba)
		from pg_roles, pg_database where rolname = current_user and datname = current_database()`)[0]
	if want := "t super f createrole t owner t"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	_, err := db.Apply(t.Context(), d.Connect(t))
	must(t, err)
}

func TestDatabaseEndsWithItsTest(t *testing.T) {
	t.Parallel()
	admin := find(t).admin
	var made []string
	t.Run("inner", func(t *testing.T) {
		for _, d := range []*Database{New(t), Empty(t), NewOwned(t)} {
			made = append(made, d.Name)
		}
		d := New(t)
		made = append(made, d.Name)
		d.Connect(t)
		query(t, d.URL, "select 'a connection that is still open does not matter'")
	})
	stays := query(t, admin, "select datname from pg_database where datname = any($1) union select rolname from pg_roles where rolname = any($1)", made)
	if len(made) != 4 || len(stays) != 0 {
		t.Errorf("of %v stay %v", made, stays)
	}
}

// sharedServer is a server as TEST_DATABASE_URL names it, with a password that is not ours to show.
func sharedServer(t *testing.T) (admin string, p *pkg) {
	t.Helper()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "200"})
	admin = s.server.admin
	return admin, newPackage(t, urlVariable+"="+admin)
}

func TestProcessesShareAServer(t *testing.T) {
	t.Parallel()
	admin, p := sharedServer(t)
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() { p.run(t, "many", true) })
	}
	wait.Wait()
	if stays := left(t, admin); len(stays) != 0 {
		t.Errorf("stays behind: %v", stays)
	}
}

func TestFailedTestsDatabaseStaysOnASharedServer(t *testing.T) {
	t.Parallel()
	admin, p := sharedServer(t)

	output := p.run(t, "failing", false)
	shown := addressIn(t, output)
	if config, err := pgconn.ParseConfig(admin); err != nil || strings.Contains(output, config.Password) {
		t.Errorf("the output shows the password of %s (%v):\n%s", urlVariable, err, output)
	}
	first := left(t, admin)
	if len(first) != 1 || !strings.HasSuffix(shown, "/"+first[0]+"?sslmode=disable") {
		t.Fatalf("%v stay, and the output says %s", first, shown)
	}
	if evidence := query(t, withDatabase(admin, first[0]), "select value from public.evidence"); len(evidence) != 1 {
		t.Errorf("what the test has left is %v", evidence)
	}

	// Tests of other packages leave it alone; those of its own make room.
	newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
	if now := left(t, admin); len(now) != 1 || now[0] != first[0] {
		t.Errorf("another package's run left %v of %v", now, first)
	}
	p.run(t, "failing_owner", false)
	if now := left(t, admin); len(now) != 1 || now[0] == first[0] { // a role and a database of one name
		t.Errorf("the next failure left %v, before it %v", now, first)
	}
	p.with("CI=true").run(t, "failing", false)
	if now := left(t, admin); len(now) != 0 {
		t.Errorf("with CI=true stay %v", now)
	}
}

func TestKilledRunIsSweptAway(t *testing.T) {
	t.Parallel()
	admin, p := sharedServer(t)
	other := newPackage(t, urlVariable+"="+admin)
	holds := func(p *pkg) func() bool {
		return func() bool { _, err := os.Stat(filepath.Join(p.dir, "holds")); return err == nil }
	}
	killed, living := p.start(t, "holding"), other.start(t, "holding")
	eventually(t, "both runs hold databases", func() bool { return holds(p)() && holds(other)() })
	killed.kill()
	before := left(t, admin)
	if len(before) != 6 { // for each: the template, a New, and an Owner with its role of the same name
		t.Fatalf("two runs hold %v", before)
	}

	// The server notices a moment later that the killed process is gone.
	eventually(t, "only the living run's databases stay", func() bool {
		newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
		return len(left(t, admin)) == 3
	})
	must(t, os.WriteFile(filepath.Join(other.dir, "go on"), nil, 0o600))
	if err := living.cmd.Wait(); err != nil {
		t.Errorf("a living run was disturbed: %v\n%s", err, living.output.String())
	}
	if now := left(t, admin); len(now) != 0 {
		t.Errorf("stays behind: %v", now)
	}
}

func TestRunWithoutDatabaseStartsNoServer(t *testing.T) {
	t.Parallel()
	if output := newPackage(t).run(t, "none", true); strings.Contains(output, "dbtest: PostgreSQL") {
		t.Errorf("a server was started:\n%s", output)
	}
}

// homes lists those of the package's local servers.
func homes(t *testing.T, p *pkg) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.tmp(), "coupon-dbtest-*"))
	must(t, err)
	return found
}

func TestLocalServer(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)

	output := p.run(t, "passing", true)
	if !strings.Contains(output, "dbtest: no container: no Docker engine answers") || !strings.Contains(output, ", from ") {
		t.Errorf("it is not said which server was taken:\n%s", output)
	}
	if stays := homes(t, p); len(stays) != 0 {
		t.Errorf("after a passing test: %v", stays)
	}

	first := addressIn(t, p.run(t, "failing", false))
	if evidence := query(t, first, "select value from public.evidence"); len(evidence) != 1 {
		t.Errorf("what the test has left is %v", evidence)
	}
	// Another package leaves it alone.
	another := newPackage(t, withoutDocker)
	another.environment[0] = p.environment[0] // the same folder for temporary files
	another.run(t, "passing", true)
	if !answers(t, first) {
		t.Error("another package's run has removed it")
	}
	// Its next failure takes its place, a panic is one, too.
	second := addressIn(t, p.run(t, "panicking", false))
	if answers(t, first) || !answers(t, second) || len(homes(t, p)) != 1 {
		t.Errorf("the first answers: %t, the second: %t, homes: %v", answers(t, first), answers(t, second), homes(t, p))
	}
	p.with("CI=true").run(t, "failing", false)
	if stays := homes(t, p); len(stays) != 0 || answers(t, second) {
		t.Errorf("with CI=true: %v", stays)
	}

	// After a working day another package's run removes it, too.
	old := addressIn(t, p.run(t, "failing", false))
	for _, home := range homes(t, p) {
		must(t, os.Chtimes(home, time.Time{}, time.Now().Add(-workingDay)))
	}
	another.run(t, "passing", true)
	if stays := homes(t, p); len(stays) != 0 || answers(t, old) {
		t.Errorf("after a working day: %v", stays)
	}
}

func TestKilledRunWithALocalServer(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)
	run := p.start(t, "holding")
	eventually(t, "the run holds databases", func() bool { _, err := os.Stat(filepath.Join(p.dir, "holds")); return err == nil })
	home := homes(t, p)
	if len(home) != 1 {
		t.Fatalf("homes: %v", home)
	}
	run.kill()
	eventually(t, "the server has ended", func() bool { _, err := localpg.Running(home[0]); return err != nil })

	another := newPackage(t, withoutDocker)
	another.environment[0] = p.environment[0] // the same folder for temporary files
	another.run(t, "passing", true)
	if stays := homes(t, p); len(stays) != 0 {
		t.Errorf("another package's run left %v", stays)
	}
}

func TestPrivateServer(t *testing.T) {
	t.Parallel()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "42"})

	// On a server without coupon_service a plain owner makes it himself.
	owner := s.NewOwned(t)
	if roles := query(t, owner.URL, "select rolname from pg_roles where rolname = 'coupon_service'"); len(roles) != 0 {
		t.Fatal("coupon_service is there already")
	}
	_, err := db.Apply(t.Context(), owner.Connect(t))
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
		if got := query(t, d.URL, "select name from public.coupons"); len(got) != 1 {
			t.Errorf("after %s there is %v", name, got)
		}
	}

	must(t, s.Kill())
	must(t, s.Kill()) // nothing runs any more
	must(t, s.Stop())
	if s.Pid() != 0 || answers(t, d.URL) {
		t.Errorf("it runs after Kill, as %d", s.Pid())
	}
}

func TestHomeHoldsWhatIsStartedInIt(t *testing.T) {
	t.Parallel()
	var home string
	t.Run("inner", func(t *testing.T) {
		home = ClusterDir(t)
		running, err := localpg.Start(t.Context(), localpg.Options{Dir: home, Settings: settings})
		must(t, err)
		t.Cleanup(func() { _ = running.Stop() })
		if data, err := filepath.EvalSymlinks(filepath.Join(home, "data")); err != nil || filepath.Dir(data) != home {
			t.Errorf("the data is in %s, %v; want it in %s", data, err, home)
		}
	})
	if _, err := os.Stat(home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s stays behind: %v", home, err)
	}
}

func TestPrivateServerOfAFailedTestStays(t *testing.T) {
	t.Parallel()
	p := newPackage(t)
	url := addressIn(t, p.run(t, "private", false))
	if names := left(t, url); len(names) != 2 { // template and database
		t.Errorf("on it are %v", names)
	}
	p.with("CI=1").run(t, "private", false)
	if stays := homes(t, p); len(stays) != 0 || answers(t, url) {
		t.Errorf("with CI=1: %v", stays)
	}
}

func TestWrongAddressIsNamed(t *testing.T) {
	t.Parallel()
	output := newPackage(t, urlVariable+"=postgres://nobody:secret@127.0.0.1:1/none").run(t, "passing", false)
	if !strings.Contains(output, "no PostgreSQL to test with: "+urlVariable) || strings.Contains(output, "secret") {
		t.Errorf("the output is\n%s", output)
	}
}

func TestNamedImageIsInsistedOn(t *testing.T) {
	t.Parallel()
	const image = "127.0.0.1:1/none:5"
	for _, p := range []*pkg{
		newPackage(t, imageVariable+"="+image),
		newPackage(t, imageVariable+"="+image, withoutDocker),
	} {
		if output := p.run(t, "passing", false); !strings.Contains(output, "no PostgreSQL to test with: "+imageVariable+"="+image) {
			t.Errorf("the output is\n%s", output)
		}
	}
}
