package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"

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
	if coupons := query(t, d.URL, "select name from coupond.coupons"); len(coupons) != 1 {
		t.Errorf("%s contains %v, want only the new one", d.Name, coupons)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			create(t, New(t), "the same name everywhere")
		})
	}
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
	got := query(t, Empty(t).URL, `
		select current_setting('server_encoding') || ', schemas: ' || count(*) from pg_namespace where nspname = 'coupond'`)
	if got[0] != "UTF8, schemas: 0" {
		t.Errorf("got %s, want encoding UTF8 and no schema", got[0])
	}
}

func TestServer_ForProxy(t *testing.T) {
	t.Parallel()
	query(t, StartServer(t, map[string]string{"fsync": "off"}).ForProxy(t).URL, "create extension plproxy")
}

func TestNewOwned(t *testing.T) {
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
	var created []string
	t.Run("inner, with a long name and \"Größe\"", func(t *testing.T) {
		for _, d := range []*Database{New(t), Empty(t), NewOwned(t)} {
			d.Connect(t)
			created = append(created, d.Name)
			if !strings.HasSuffix(d.Name, "_database_isdroppedaftert") || len(d.Name) > 63 {
				t.Errorf("name %s", d.Name)
			}
		}
	})
	remaining := query(t, shared(t).admin.String(),
		"select datname from pg_database where datname = any($1) union select rolname from pg_roles where rolname = any($1)", created)
	if len(created) != 3 || len(remaining) != 0 {
		t.Errorf("of %v remain %v", created, remaining)
	}
}

// external starts a server, and returns it with a package that uses it as TEST_DATABASE_URL.
func external(t *testing.T) (admin string, p *testPackage) {
	t.Helper()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "200"})
	return s.admin.String(), newPackage(t, urlVariable+"="+s.admin.String())
}

func TestExternal_concurrentProcesses(t *testing.T) {
	t.Parallel()
	admin, p := external(t)
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
	admin, p := external(t)
	output := p.run(t, "failing", false)
	config, err := pgconn.ParseConfig(admin)
	must(t, err)
	if strings.Contains(output, config.Password) {
		t.Errorf("the output contains the password of %s:\n%s", urlVariable, output)
	}
	wantEvidence(t, strings.Replace(addressIn(t, output), "postgres@", "postgres:"+config.Password+"@", 1))

	// A run of another package keeps them, the next run of its own package drops them.
	newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
	first := leftovers(t, admin)
	if len(first) != 3 { // a New, and a NewOwned with its role
		t.Fatalf("%v remain", first)
	}
	p.run(t, "failing", false)
	if now := leftovers(t, admin); len(now) != 3 || now[0] == first[0] {
		t.Errorf("the next failure left %v, before it %v", now, first)
	}
	p.with("CI=true").run(t, "failing", false)
	if now := leftovers(t, admin); len(now) != 0 {
		t.Errorf("with CI=true %v remain", now)
	}
}

func TestExternal_dropsDatabasesOfKilledRun(t *testing.T) {
	t.Parallel()
	admin, p := external(t)
	killed := p.start(t, "waiting")
	waitReady(t, p)
	killed.kill()
	must(t, os.Remove(filepath.Join(p.dir, "ready")))
	survivor := p.start(t, "waiting")
	waitReady(t, p)
	p.run(t, "passing", true)
	if now := leftovers(t, admin); len(now) != 4 { // of the survivor: the template, a New, and a NewOwned with its role
		t.Errorf("%v remain, want those of one run", now)
	}
	must(t, os.WriteFile(filepath.Join(p.dir, "continue"), nil, 0o600))
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

func TestLocal_keepAndRemove(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)
	output := p.run(t, "passing", true)
	if !strings.Contains(output, "pgtest: no container: no Docker engine answers") || !strings.Contains(output, ", from ") {
		t.Errorf("the output does not say which server was selected:\n%s", output)
	}
	if remaining := homes(t, p.tempDir()); len(remaining) != 0 {
		t.Errorf("after a passing test %v remain", remaining)
	}

	first := addressIn(t, p.run(t, "failing", false))
	wantEvidence(t, first)
	second := addressIn(t, p.run(t, "failing", false)) // replaces it
	if answers(t, first) || !answers(t, second) || len(homes(t, p.tempDir())) != 1 {
		t.Errorf("the first answers: %t, the second: %t, homes: %v", answers(t, first), answers(t, second), homes(t, p.tempDir()))
	}
	p.with("CI=true").run(t, "failing", false)
	if remaining := homes(t, p.tempDir()); len(remaining) != 0 || answers(t, second) {
		t.Errorf("with CI=true %v remain", remaining)
	}
}

func TestLocal_killedRun(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)
	run := p.start(t, "waiting")
	waitReady(t, p)
	home := homes(t, p.tempDir())
	if len(home) != 1 {
		t.Fatalf("home directories: %v, want 1", home)
	}
	run.kill()
	wait.For(t, "the server to end", func() bool { _, err := localpg.Running(home[0]); return err != nil })
	p.run(t, "passing", true)
	if remaining := homes(t, p.tempDir()); len(remaining) != 0 {
		t.Errorf("the next run left %v", remaining)
	}
}

// A command shares a server, which is kept with the database of its failed test.
func TestShare(t *testing.T) {
	t.Parallel()
	p := newPackage(t, withoutDocker)
	output := p.run(t, "sharing", false)
	if !strings.Contains(output, "the server of "+urlVariable) {
		t.Errorf("the command did not use the shared server:\n%s", output)
	}
	server := regexp.MustCompile(`the server is kept, too: (postgres://[^/]+@[^/]+)/`).FindStringSubmatch(output)
	if server == nil {
		t.Fatalf("the server was not kept:\n%s", output)
	}
	wantEvidence(t, server[1]+regexp.MustCompile(`/[^/]+$`).FindString(addressIn(t, output)))
}

// Whatever the environment says, and with a root certificate of the user that is not valid.
func TestMain_ignoresEnvironment(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	must(t, os.Mkdir(filepath.Join(home, ".postgresql"), 0o700))
	must(t, os.WriteFile(filepath.Join(home, ".postgresql", "root.crt"), []byte("not a certificate"), 0o600))
	newPackage(t, withoutDocker, "HOME="+home, "PGSERVICE=nowhere", "PGSSLMODE=verify-full", "PGTARGETSESSIONATTRS=standby",
		"PGTZ=Mars/Phobos", "PGOPTIONS=-c default_transaction_read_only=on", "PGSSLROOTCERT=/nowhere").run(t, "passing", true)
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
			err := syscall.Kill(s.Pid(), syscall.SIGKILL)
			<-s.running.Done()
			return err
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

func TestServer_keptAfterFailure(t *testing.T) {
	t.Parallel()
	p := newPackage(t)
	url := addressIn(t, p.run(t, "private", false))
	if names := leftovers(t, url); len(names) != 2 { // template and database
		t.Errorf("the kept server has %v, want 2 databases", names)
	}
	p.with("CI=1").run(t, "private", false)
	if remaining := homes(t, p.tempDir()); len(remaining) != 0 || answers(t, url) {
		t.Errorf("with CI=1 %v remain", remaining)
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
	if exists(home) {
		t.Errorf("%s still exists", home)
	}
}

func TestSelectServer_fails(t *testing.T) {
	t.Parallel()
	const image = imageVariable + "=127.0.0.1:1/none:5"
	for _, test := range []struct{ variable, message string }{
		{urlVariable + "=postgres://missing:secret@127.0.0.1:1/none", urlVariable + ": failed to connect"},
		{urlVariable + "=host=127.0.0.1 password=secret", urlVariable + ": not a URL such as"},
		{image, image + ": "},
		{image, image + ": no Docker engine answers"},
	} {
		p := newPackage(t, test.variable)
		if strings.HasSuffix(test.message, "answers") {
			p = p.with(withoutDocker)
		}
		output := p.run(t, "passing", false)
		if !strings.Contains(output, "no PostgreSQL server for the tests: "+test.message) || strings.Contains(output, "secret") {
			t.Errorf("%s: the output is\n%s", test.variable, output)
		}
	}
}

// engine returns a client of this machine's Docker engine. It skips the test if the engine or the
// image is missing.
func engine(t *testing.T) *dockertest.Pool {
	t.Helper()
	pool, err := dockertest.NewPool("")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ctx); err != nil {
		t.Skipf("no Docker engine: %v", err)
	}
	if _, err := pool.Client.InspectImage(defaultImage); err != nil {
		t.Skipf("no image %s: %v", defaultImage, err)
	}
	return pool
}

func TestContainer(t *testing.T) {
	t.Parallel()
	pool := engine(t)
	exists := func(name string) bool {
		_, err := pool.Client.InspectContainer(name)
		return err == nil
	}
	name := regexp.MustCompile(`container (coupon_test_\w+) of ` + defaultImage)
	p := newPackage(t)
	passed := name.FindStringSubmatch(p.run(t, "passing", true))
	if passed == nil || exists(passed[1]) {
		t.Fatalf("after a passing test: container %v", passed)
	}

	output := p.run(t, "failing", false)
	failed := name.FindStringSubmatch(output)[1]
	t.Cleanup(func() {
		_ = pool.Client.RemoveContainer(docker.RemoveContainerOptions{ID: failed, Force: true, RemoveVolumes: true}) // after a failure
	})
	wantEvidence(t, addressIn(t, output))
	if !strings.Contains(output, "docker rm --force --volumes "+failed) {
		t.Errorf("the output does not say how to remove the container:\n%s", output)
	}
	if container, err := pool.Client.InspectContainer(failed); err != nil || container.NetworkSettings.Ports[postgresPort][0].HostIP != "127.0.0.1" {
		t.Errorf("the port is published on %+v, %v; want 127.0.0.1 only", container.NetworkSettings.Ports, err)
	}

	// The next run of the package removes the container. Then that run is killed.
	run := p.start(t, "waiting")
	waitReady(t, p)
	if exists(failed) {
		t.Error("the container of the failed test still exists after the next run started")
	}
	run.kill()
	killed := name.FindStringSubmatch(run.output.String())[1]
	wait.For(t, "the removal of the container of the killed run", func() bool { return !exists(killed) })
}

func TestPublishAddresses(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string][2]string{
		"unix:///var/run/docker.sock": {"127.0.0.1", "127.0.0.1"},
		"tcp://127.0.0.1:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://localhost:2375":        {"127.0.0.1", "127.0.0.1"},
		"tcp://docker:2376":           {"0.0.0.0", "docker"},
		"https://192.0.2.7:2376":      {"0.0.0.0", "192.0.2.7"},
	} {
		if bind, dial := publishAddresses(endpoint); bind != want[0] || dial != want[1] {
			t.Errorf("%s: got publish address %s and connect address %s, want %v", endpoint, bind, dial, want)
		}
	}
}
