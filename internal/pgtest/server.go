package pgtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"scalable-coupon-system/internal/localpg"
)

// Server is a PostgreSQL server for one test that stops, kills or configures it. Its methods New
// and Empty return databases like the functions; the role coupon_service does not exist until New
// has created it. The addresses stay the same after a restart.
type Server struct {
	*instance
	*localpg.Server // what Start started last

	options localpg.Options
}

// StartServer starts a server for one test from the binaries of this machine, even if other tests
// use a container or TEST_DATABASE_URL. settings are settings of postgresql.conf. Unlike those of
// the shared server, all others have PostgreSQL's defaults: committed data is on disk. The server
// ends with the test.
func StartServer(t testing.TB, settings map[string]string) *Server {
	t.Helper()
	s := &Server{options: localpg.Options{Dir: ClusterDir(t), Settings: settings, Log: os.Stderr}}
	template, err := clusterTemplate()
	if err == nil {
		err = exec.CommandContext(context.Background(), "cp", "-RHp",
			filepath.Join(template, "data"), filepath.Join(template, "pgpass"), s.options.Dir).Run()
	}
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatalf("pgtest: start a server: %v", err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	s.options.Port = s.Port()
	if s.instance, err = newInstance(s.URL("postgres"), nil); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	s.private = true
	return s
}

// clusterTemplate returns the home directory of a cluster that StartServer copies: that is much
// faster than initdb.
var clusterTemplate = sync.OnceValues(func() (string, error) {
	home, err := newHomeDir()
	if err != nil {
		return "", err
	}
	atExit <- func() error { return removeHomeDir(home) }
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	running, err := localpg.Start(ctx, localpg.Options{Dir: home, Settings: map[string]string{"fsync": "off"}, Log: os.Stderr})
	if err != nil {
		return "", err
	}
	return home, running.Stop()
})

// ClusterDir returns a directory for a cluster that the test starts by other means (localpg.Start,
// coupond dev). It is removed at the end of the test. t.TempDir would not do: if root runs the
// tests, the server's user cannot enter it, and the data would be left in /var/lib/coupond.
func ClusterDir(t testing.TB) string {
	t.Helper()
	home, err := newHomeDir()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if err := removeHomeDir(home); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return home
}

// ForProxy returns a fresh, empty database for db.ApplyProxy. If the server has no PL/Proxy, the
// test is skipped, which `make test` prints before it starts; if TEST_PLPROXY is set, as in CI, the
// test fails.
func (s *Server) ForProxy(t testing.TB) *Database {
	t.Helper()
	d := s.Empty(t)
	var available bool
	err := d.Connect(t).QueryRow(t.Context(), "select exists (select from pg_available_extensions where name = 'plproxy')").Scan(&available)
	const missing = "PL/Proxy is not installed (Debian: apt-get install postgresql-15-plproxy)"
	switch {
	case err != nil:
		t.Fatalf("pgtest: %v", err)
	case !available && os.Getenv("TEST_PLPROXY") != "":
		t.Fatal(missing)
	case !available:
		t.Skip(missing + "; tests with a proxy are skipped")
	}
	return d
}

// Start starts the server again after Stop or Kill, and waits until it answers. After a Kill the
// server recovers first.
func (s *Server) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	running, err := localpg.Start(ctx, s.options)
	if err == nil {
		s.Server = running
	}
	return err
}
