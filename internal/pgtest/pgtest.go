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
//     tests need a superuser.
//  2. A container of the image TEST_POSTGRES_IMAGE. It is an error if the container cannot be
//     started.
//  3. A container of postgres:17, if a Docker engine answers and has or can pull the image.
//  4. A server from binaries on this machine. Package localpg installs them if necessary.
//
// Several processes may use the server of TEST_DATABASE_URL at the same time. Each makes a template
// database with db.Apply once and clones it for each test. The search_path of a clone is empty, so
// that a name without its schema fails here, and not later on a server with another search_path.
//
// When a test passes, its database is dropped. When a test fails, its database is kept and its
// address is printed; the server is kept, too, if pgtest started it. They are removed when the
// tests of the same package run again, and such a server after 8 hours at the latest. With CI=true
// nothing is kept. A killed run leaves nothing, or only what the next run removes.
//
// Tests that stop, kill or configure a server use their own: StartServer.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/localpg"
)

// timeout limits each operation on a server. It is long, so that tests do not fail on a slow
// machine.
const timeout = 2 * time.Minute

// keepTime is how long a server is kept at most after a failed test.
const keepTime = 8 * time.Hour

// Database is the database of one test.
type Database struct {
	// URL is the connection string of its owner: of the server's superuser, or of a login of its
	// own if NewOwned created it.
	URL string
	// Name is the database's name.
	Name string
}

// shared is the server of this process, selected when the first test needs it.
var shared struct {
	once     sync.Once
	instance *instance
	err      error
}

// Main runs the tests of a package and then cleans up. Call it from TestMain. It removes the
// variables of libpq (PG…) from the environment, so that the tests of all packages and servers do
// not depend on it; TEST_DATABASE_URL has all that is needed.
func Main(m *testing.M) {
	localpg.IgnoreEnvironment()
	m.Run() // m keeps the exit code
	if shared.instance != nil {
		shared.instance.close()
	}
}

// New returns a fresh database with the coupon schema and an empty search_path.
func New(t testing.TB) *Database {
	t.Helper()
	return sharedInstance(t).clone(t)
}

// Empty returns a fresh, empty database.
func Empty(t testing.TB) *Database {
	t.Helper()
	return sharedInstance(t).empty(t)
}

// NewOwned returns a fresh, empty database that is owned by a login of its own. Its owner is not a
// superuser, but has CREATEROLE. URL logs in as the owner.
//
// The role coupon_service belongs to the whole server and exists already. From PostgreSQL 16 on, a
// role with CREATEROLE can grant only the roles that it created or was given. There NewOwned makes
// the owner a member of coupon_service, as an administrator would. Tests that need a server without
// coupon_service use StartServer and Server.NewOwned.
func NewOwned(t testing.TB) *Database {
	t.Helper()
	s := sharedInstance(t)
	if _, err := s.template(); err != nil { // creates the role coupon_service
		t.Fatal(err)
	}
	return s.owned(t)
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

func sharedInstance(t testing.TB) *instance {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // PostgreSQL may have to be downloaded
		defer cancel()
		shared.instance, shared.err = findServer(ctx)
	})
	if shared.err != nil {
		t.Fatalf("pgtest: no PostgreSQL server for the tests: %v", shared.err)
	}
	return shared.instance
}

// logf prints a message that does not belong to one test.
func logf(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stderr, "pgtest: "+format+"\n", args...)
}

// runsInCI reports whether CI=true is set. Nothing is kept there, because the machine is removed
// after the run.
func runsInCI() bool {
	ci, err := strconv.ParseBool(os.Getenv("CI"))
	return err == nil && ci
}

// mustKeep reports, in a cleanup, whether the test's database must be kept.
//
// During the cleanup of a panicking test, t.Failed is still false, and recover works in deferred
// functions only. But the panic is on the stack.
func mustKeep(t testing.TB) bool {
	t.Helper()
	if runsInCI() {
		return false
	}
	if t.Failed() {
		return true
	}
	callers := make([]uintptr, 64)
	frames := runtime.CallersFrames(callers[:runtime.Callers(0, callers)])
	for frame, more := frames.Next(); ; frame, more = frames.Next() {
		if frame.Function == "runtime.gopanic" {
			return true
		}
		if !more {
			return false
		}
	}
}

var invalidInName = regexp.MustCompile(`[^a-z0-9]+`)

// namePart converts a test's name to a part of a database name.
func namePart(name string) string {
	part := invalidInName.ReplaceAllString(strings.ToLower(strings.TrimPrefix(name, "Test")), "_")
	return strings.Trim(part[:min(len(part), 30)], "_")
}
