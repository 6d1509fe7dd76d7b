// Package pgtest gives each test a fresh PostgreSQL database.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestClaim(t *testing.T) {
//		t.Parallel()
//		database := pgtest.New(t) // with the coupon schema; pgtest.Empty(t) has none
//		conn := database.Connect(t)
//		…
//	}
//
// The first test of a process that asks for a database selects the server, which is printed to
// stderr:
//
//  1. The server of TEST_DATABASE_URL. Its user must be able to create databases and roles; some
//     tests need a superuser. Several processes may use it at the same time. With `make test` all
//     packages share such a server: see the command internal/pgtest/share.
//  2. A container of the image TEST_POSTGRES_IMAGE. It is an error if the container cannot be
//     started.
//  3. A container of postgres:17, if a Docker engine answers and has or can pull the image.
//  4. A server from binaries on this machine (package localpg).
//
// Each process makes a template database with db.Apply once and clones it for each test. The
// search_path of a clone is empty, so that a name without its schema fails.
//
// A database is dropped at the end of its test. If the test fails on the server of
// TEST_DATABASE_URL, its database is kept until the tests of the same package run again, and its
// address is printed, unless CI=true. A server that pgtest started ends with the process, even
// after SIGKILL.
//
// Tests that stop, kill or configure a server use their own: StartServer.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/localpg"
)

// timeout limits each operation on a server. It is long, so that tests do not fail on a slow
// machine.
const timeout = 2 * time.Minute

// Database is the database of one test.
type Database struct {
	URL  string // the connection string of its owner, which created it
	Name string
}

// Main runs the tests of a package and then cleans up. Call it from TestMain. It removes the
// variables of libpq (PG…) from the environment, so that the tests of all packages and servers do
// not depend on it; TEST_DATABASE_URL has all that is needed.
func Main(m *testing.M) {
	localpg.IgnoreEnvironment()
	m.Run() // m keeps the exit code
	close(atExit)
	for remove := range atExit {
		if err := remove(); err != nil {
			logf("%v", err)
		}
	}
}

// atExit removes what the tests of this process share: the server, and the template of StartServer.
var atExit = make(chan func() error, 2)

// New returns a fresh database with the coupon schema and an empty search_path.
func New(t testing.TB) *Database {
	t.Helper()
	return shared(t).New(t)
}

// Empty returns a fresh, empty database.
func Empty(t testing.TB) *Database {
	t.Helper()
	return shared(t).Empty(t)
}

// Connect opens a connection as the database's owner. It is closed when the test ends.
func (d *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		t.Fatalf("pgtest: connect to %s: %v", d.Name, err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// selected is the server of this process, selected when the first test needs it.
var selected = sync.OnceValues(func() (*instance, error) {
	s, err := selectServer()
	if err == nil {
		atExit <- s.finish
	}
	return s, err
})

func shared(t testing.TB) *instance {
	t.Helper()
	s, err := selected()
	if err != nil {
		t.Fatalf("pgtest: no PostgreSQL server for the tests: %v", err)
	}
	return s
}

// instance is a PostgreSQL server as one test process uses it.
type instance struct {
	admin   *url.URL // of a user that may create databases and roles
	private bool     // it belongs to one test, so no database has to be dropped
	// stop removes a server that this process started, with all its data. It is nil for the server of
	// TEST_DATABASE_URL.
	stop func() error

	template func() (string, error) // creates the template once and returns its name
	created  atomic.Int64           // how many databases were created
}

func newInstance(admin string, stop func() error) (*instance, error) {
	u, err := url.Parse(admin)
	if err != nil || u.Host == "" {
		return nil, errors.New("not a URL such as postgres://user:password@127.0.0.1:5432/postgres")
	}
	s := &instance{admin: u, stop: stop}
	s.template = sync.OnceValues(s.makeTemplate)
	return s, nil
}

// url returns the connection string of a database.
func (s *instance) url(name string, user *url.Userinfo) string {
	u := *s.admin
	u.User, u.Path = user, "/"+name
	return u.String()
}

// New returns a fresh database with the coupon schema, cloned from the template.
func (s *instance) New(t testing.TB) *Database {
	t.Helper()
	template, err := s.template()
	if err != nil {
		t.Fatalf("pgtest: create the template: %v", err)
	}
	name := s.newName(t)
	return s.create(t, name,
		"create database "+name+" template "+template, "alter database "+name+" set search_path = ''")
}

// Empty returns a fresh, empty database.
func (s *instance) Empty(t testing.TB) *Database {
	t.Helper()
	name := s.newName(t)
	return s.create(t, name, createEmpty(name))
}

// createEmpty uses template0, because template1 may have connections.
func createEmpty(name string) string {
	return "create database " + name + " template template0 encoding 'UTF8'"
}

// create creates a database with commands. At the end of the test it is dropped or kept.
func (s *instance) create(t testing.TB, name string, commands ...string) *Database {
	t.Helper()
	if err := s.exec(commands...); err != nil {
		t.Fatalf("pgtest: create a database: %v", err)
	}
	t.Cleanup(func() {
		ci, _ := strconv.ParseBool(os.Getenv("CI"))
		switch {
		case s.private: // removed with its server
		case t.Failed() && s.stop == nil && !ci:
			// Not with t.Logf: its output is lost if a test panics later. The password is known to the user.
			logf("%s failed: its database is kept until the tests of this package run again: %s",
				t.Name(), s.url(name, url.User(s.admin.User.Username())))
		default:
			if err := s.exec(dropDatabase(name)); err != nil {
				t.Errorf("pgtest: drop the database: %v", err)
			}
		}
	})
	return &Database{Name: name, URL: s.url(name, s.admin.User)}
}

func dropDatabase(name string) string {
	return "drop database if exists " + name + " with (force)"
}

// makeTemplate creates the database that New clones. It allows no connections, which would prevent
// that.
func (s *instance) makeTemplate() (string, error) {
	name := runPrefix() + "template"
	if err := s.exec(createEmpty(name)); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url(name, s.admin.User))
	if err != nil {
		return "", err
	}
	_, err = db.Apply(ctx, conn, db.Options{})
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return "", err
	}
	return name, s.exec("alter database " + name + " allow_connections false")
}

// exec executes commands one by one on a new connection.
func (s *instance) exec(commands ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, command := range commands {
		if _, err := conn.Exec(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

// finish runs at the end of the process.
func (s *instance) finish() error {
	if s.stop == nil {
		return s.exec(dropDatabase(runPrefix() + "template"))
	}
	return s.stop()
}

// logf prints a message that does not belong to one test.
func logf(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stderr, "pgtest: "+format+"\n", args...)
}
