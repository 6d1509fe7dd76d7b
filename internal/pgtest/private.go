package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"scalable-coupon-system/internal/localpg"
)

// Server is a PostgreSQL server of one test's own, for tests that stop it, kill it or tune it. Its address, and so that of its
// databases, survives its restarts. Stop, Kill and Start may be called from any goroutine.
type Server struct {
	server *server
	home   string
	port   int
	tuned  map[string]string

	mu      sync.Mutex
	running *localpg.Server // nil: it does not run
}

// StartServer starts a server for one test, from binaries on this machine (also where the other tests use a container or
// TEST_DATABASE_URL), with settings as in postgresql.conf. Other than the shared one's, its settings are PostgreSQL's own where
// none are given: what is committed is on disk. It ends with the test; a failing test's stays, like a database of New.
func StartServer(t testing.TB, settings map[string]string) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	home, err := newHome(ctx)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	s := &Server{home: home, tuned: settings}
	t.Cleanup(func() { s.finish(t) })
	if err := s.start(ctx); err != nil {
		t.Fatalf("dbtest: start a private server: %v", err)
	}
	s.server = newServer(s.running.URL("postgres"), s)
	return s
}

// ClusterDir returns a folder for a cluster that a test starts by other means than Private (localpg.Start, coupond dev), removed with
// the test. t.TempDir will not do for that: it is closed to the user as whom root's server runs, and so the data would go to
// /var/lib/coupond and stay there.
func ClusterDir(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	home, err := newHome(ctx)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := localpg.Remove(ctx, home); err != nil {
			t.Errorf("dbtest: %v", err)
		}
	})
	return home
}

// New returns a fresh database with our schema, as the function New does. The server must run.
func (s *Server) New(t testing.TB) *Database {
	t.Helper()
	return s.server.clone(t)
}

// Empty returns a fresh database with nothing in it. The server must run.
func (s *Server) Empty(t testing.TB) *Database {
	t.Helper()
	return s.server.empty(t)
}

// ForProxy returns a fresh, empty database, as Empty does, that can become a proxy (db.ApplyProxy). Where the server has no
// PL/Proxy the test is skipped, which `make test` says before it begins; with TEST_PLPROXY set, as in CI, it fails.
func (s *Server) ForProxy(t testing.TB) *Database {
	t.Helper()
	d := s.Empty(t)
	var available bool
	err := d.Connect(t).QueryRow(t.Context(), "select exists (select from pg_available_extensions where name = 'plproxy')").Scan(&available)
	const missing = "PL/Proxy is missing (Debian: postgresql-15-plproxy)"
	switch {
	case err != nil:
		t.Fatalf("dbtest: %v", err)
	case !available && os.Getenv("TEST_PLPROXY") != "":
		t.Fatal(missing)
	case !available:
		t.Skip(missing + ": what goes through a proxy is not tested")
	}
	return d
}

// NewOwned returns a fresh, empty database that belongs to a login of its own, as the function NewOwned does; but here the role
// coupon_service is missing until a database of this server has our schema. The server must run.
func (s *Server) NewOwned(t testing.TB) *Database {
	t.Helper()
	return s.server.owner(t)
}

// Pid is the server's first process, the postmaster; 0 when it does not run.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return 0
	}
	return s.running.Pid()
}

// Stop shuts the server down: sessions are ended, everything is written down. A server that does not run is fine.
func (s *Server) Stop() error { return s.down((*localpg.Server).Stop) }

// Kill ends the server as a crash does. A server that does not run is fine.
func (s *Server) Kill() error { return s.down((*localpg.Server).Kill) }

func (s *Server) down(how func(*localpg.Server) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	running := s.running
	s.running = nil
	return how(running)
}

// Start starts the server again, recovering first what a Kill has left, and waits until it answers. One that runs is left
// alone; one that has ended by itself meanwhile (its postmaster was killed, say) is started again.
func (s *Server) Start() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.start(ctx)
}

func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		select {
		case <-s.running.Done():
		default:
			return nil
		}
	}
	running, err := localpg.Start(ctx, localpg.Options{Dir: s.home, Port: s.port, Settings: s.tuned, Log: os.Stderr})
	if err != nil {
		return err
	}
	s.running, s.port = running, running.Port()
	return nil
}

// finish is for the end of the test.
func (s *Server) finish(t testing.TB) {
	t.Helper()
	if s.server != nil && stays(t) {
		if err := s.Start(); err != nil {
			say("%s failed: its server does not start again, its data stays in %s: %v", t.Name(), s.home, err)
			return
		}
		remove, err := s.keep()
		if err != nil {
			say("%v", err)
			return
		}
		say("%s failed: its server stays until the tests of this package run again: %s", t.Name(), s.server.admin)
		say("to remove it now: %s", remove)
		return
	}
	if err := s.close(s.server); err != nil {
		t.Errorf("dbtest: %v", err)
	}
}

func (s *Server) keep() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return "", errors.New("the server does not run")
	}
	return local{s.running}.keep()
}

func (s *Server) close(*server) error {
	err := s.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err = errors.Join(err, localpg.Remove(ctx, s.home)); err != nil {
		return fmt.Errorf("remove the private server: %w", err)
	}
	return nil
}
