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

func TestNew(t *testing.T) {
	t.Parallel()
	d := New(t)
	create(t, d, "the same name everywhere")
	create(t, New(t), "the same name everywhere")
	if version := query(t, d.URL, "select coupond.coupon_schema_version()"); version[0] != fmt.Sprint(db.Version()) {
		t.Errorf("schema version %s, want %d", version[0], db.Version())
	}
	_, err := d.Connect(t).Exec(t.Context(), "select from coupons")
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

func TestDatabase_isDroppedAfterTest(t *testing.T) {
	t.Parallel()
	var created []string
	t.Run("inner, with a long name and \"Größe\"", func(t *testing.T) {
		for _, d := range []*Database{New(t), Empty(t)} {
			d.Connect(t)
			created = append(created, d.Name)
			if !strings.HasSuffix(d.Name, "_database_isdroppedaftert") || len(d.Name) > 63 {
				t.Errorf("name %s", d.Name)
			}
		}
	})
	remaining := strings.Join(leftovers(t, shared(t).admin.String()), " ")
	for _, name := range created {
		if strings.Contains(remaining, name) {
			t.Errorf("%s was not dropped", name)
		}
	}
}

// Several processes use the server of TEST_DATABASE_URL, and fail or are killed.
func TestExternal(t *testing.T) {
	t.Parallel()
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "200"})
	admin := s.admin.String()
	p := newPackage(t, urlVariable+"="+admin)
	wantLeft := func(when string, want int) {
		t.Helper()
		if left := leftovers(t, admin); len(left) != want {
			t.Errorf("%s: the databases are %v, want %d", when, left, want)
		}
	}
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() { p.run(t, "many", true) })
	}
	group.Wait()
	wantLeft("after two runs at the same time", 0)

	output := p.run(t, "failing", false)
	wantLeft("after a failure", 1)
	kept := regexp.MustCompile(` failed: its database is kept .*/(coupon_test_\w+_failing)\?`).FindStringSubmatch(output)
	if kept == nil {
		t.Fatalf("the output does not contain the address of a kept database:\n%s", output)
	}
	query(t, strings.Replace(admin, "/postgres?", "/"+kept[1]+"?", 1), "select from public.evidence")
	if password, _ := s.admin.User.Password(); strings.Contains(output, password) {
		t.Errorf("the output contains the password of %s:\n%s", urlVariable, output)
	}
	newPackage(t, urlVariable+"="+admin).run(t, "passing", true)
	wantLeft("after a run of another package", 1)

	const waiting = 2 // the template, and the database of the test
	p.startWaiting(t).kill()
	wantLeft("the next run of the package dropped what was kept, and was killed", waiting)
	survivor := p.startWaiting(t)
	p.run(t, "failing", false, "CI=true")
	wantLeft("after a failure with CI=true, while another run goes on", waiting)
	must(t, os.WriteFile(filepath.Join(p.dir, "continue"), nil, 0o600))
	if err := survivor.cmd.Wait(); err != nil {
		t.Errorf("the other run failed: %v\n%s", err, survivor.output.String())
	}
	wantLeft("after all runs", 0)
}

func TestMain_startsNoServerWithoutDatabase(t *testing.T) {
	t.Parallel()
	if output := newPackage(t).run(t, "none", true); strings.Contains(output, "pgtest: using") {
		t.Errorf("a server was selected:\n%s", output)
	}
}

// A run is killed, and its server ends. The next one removes its data, and shares its own server
// with another process.
func TestLocal(t *testing.T) {
	t.Parallel()
	// Whatever the environment says, and with a root certificate of the user that is not valid.
	user := t.TempDir()
	must(t, os.Mkdir(filepath.Join(user, ".postgresql"), 0o700))
	must(t, os.WriteFile(filepath.Join(user, ".postgresql", "root.crt"), []byte("not a certificate"), 0o600))
	p := newPackage(t, withoutDocker, "HOME="+user, "PGSERVICE=nowhere", "PGSSLMODE=verify-full", "PGTARGETSESSIONATTRS=standby",
		"PGTZ=Mars/Phobos", "PGOPTIONS=-c default_transaction_read_only=on", "PGSSLROOTCERT=/nowhere")

	run := p.startWaiting(t)
	home := p.homes(t)
	if len(home) != 1 {
		t.Fatalf("home directories: %v, want 1", home)
	}
	run.kill()
	wait.For(t, "the server to end", func() bool { return !localpg.Running(home[0]) })

	output := p.run(t, "sharing", false)
	wantContains(t, output, "pgtest: no container: no Docker engine answers", "pgtest: using PostgreSQL ",
		"pgtest: using the server of "+urlVariable)
	if strings.Contains(output, " is kept") {
		t.Errorf("a database is kept on a server that ends:\n%s", output)
	}
	if remaining := p.homes(t); len(remaining) != 0 {
		t.Errorf("the runs left %v", remaining)
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	var home string
	t.Cleanup(func() {
		if exists(home) {
			t.Errorf("%s still exists after the test", home)
		}
	})
	s := StartServer(t, map[string]string{"fsync": "off", "max_connections": "42"})
	home = s.options.Dir
	if data, err := filepath.EvalSymlinks(filepath.Join(home, "data")); err != nil || filepath.Dir(data) != home {
		t.Errorf("the data is in %s, %v; want %s", data, err, home)
	}
	d := s.New(t)
	if got := query(t, d.URL, "show max_connections")[0]; got != "42" {
		t.Errorf("max_connections is %s, want 42", got)
	}
	create(t, d, "kept")
	for name, end := range map[string]func(*Server) error{
		"Stop": (*Server).Stop, "Kill": (*Server).Kill,
	} {
		must(t, end(s))
		must(t, s.Start())
		if got := query(t, d.URL, "select name from coupond.coupons"); len(got) != 1 {
			t.Errorf("after %s the coupons are %v, want 1", name, got)
		}
	}
	t.Run("ForProxy", func(t *testing.T) { query(t, s.ForProxy(t).URL, "create extension plproxy") })
}

func TestSelectServer_fails(t *testing.T) {
	t.Parallel()
	const image = imageVariable + "=127.0.0.1:1/none:5"
	for message, environment := range map[string][]string{
		urlVariable + ": failed to connect":  {urlVariable + "=postgres://missing:secret@127.0.0.1:1/none"},
		urlVariable + ": not a URL such as":  {urlVariable + "=host=127.0.0.1 password=secret"},
		image + ": ":                         {image},
		image + ": no Docker engine answers": {image, withoutDocker},
	} {
		output := newPackage(t, environment...).run(t, "passing", false)
		wantContains(t, output, "no PostgreSQL server for the tests: "+message)
		if strings.Contains(output, "secret") {
			t.Errorf("%s: the output contains the password:\n%s", environment, output)
		}
	}
}

// The test is skipped if this machine has no Docker engine, or the engine has no image.
func TestContainer(t *testing.T) {
	t.Parallel()
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
	exists := func(name string) bool {
		_, err := pool.Client.InspectContainer(name)
		return err == nil
	}
	name := regexp.MustCompile(`using ` + defaultImage + ` in container (coupon_test_\w+)`)
	p := newPackage(t)
	var output string
	var group sync.WaitGroup
	group.Go(func() { output = p.run(t, "passing", true) })
	run := p.startWaiting(t)
	group.Wait()
	if passed := name.FindStringSubmatch(output); passed == nil || exists(passed[1]) {
		t.Fatalf("after a passing test: container %v", passed)
	}
	containers, err := pool.Client.ListContainers(docker.ListContainersOptions{Filters: map[string][]string{"name": {"coupon_test_"}}})
	must(t, err)
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.IP != "127.0.0.1" {
				t.Errorf("the port of %v is published on %s, want 127.0.0.1 only", c.Names, port.IP)
			}
		}
	}
	run.kill()
	killed := name.FindStringSubmatch(run.output.String())
	if killed == nil {
		t.Fatalf("no container was used:\n%s", run.output.String())
	}
	wait.For(t, "the removal of the container of the killed run", func() bool { return !exists(killed[1]) })
}
