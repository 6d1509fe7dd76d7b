// Package dbtest gives each test a fresh PostgreSQL database.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
//	func TestClaim(t *testing.T) {
//		t.Parallel()
//		database := pgtest.New(t) // with our schema; pgtest.Empty(t) is without
//		conn := database.Connect(t)
//		…
//	}
//
// The server is looked for when the first test of a process asks for a database, and what was found is said on stderr:
//
//  1. the one that TEST_DATABASE_URL names, as a user who may create databases (a superuser, for all tests to work);
//  2. a container of the image TEST_POSTGRES_IMAGE, or else postgres:17, when a Docker engine answers; an image that is named is
//     insisted on, the other is done without when it cannot be had;
//  3. a server from binaries on this machine, which are got when there are none (package localpg).
//
// Processes do not disturb each other, also where they share the server of TEST_DATABASE_URL. A new database is a clone of a
// template, which each process makes once by db.Apply. Its search_path is empty, so that a name without its schema fails here
// and not on the server of somebody whose search_path is another.
//
// A passing test's database is dropped. A failing test's stays, and its address is printed; so does the server, when it is one
// of ours. They stay until the tests of the same package run again (a server 8 hours at most), so that they do not pile up.
// Where nobody will come to look (CI=true) nothing stays. A run that is killed leaves nothing either, or what the next run finds
// and removes.
//
// Tests that stop, kill or tune a server take one of their own: Private.
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
)

// patience bounds each thing we ask of a server. It is long: a laden machine is no reason for a test to fail.
const patience = 2 * time.Minute

// workingDay is the longest that a server of ours stays for somebody to look at.
const workingDay = 8 * time.Hour

// Database is a database of one test.
type Database struct {
	// URL is the connection string of its owner: the server's superuser, except for a database of Owner.
	URL string
	// Name is the database's name.
	Name string
}

// shared is the server of this process, found when the first test asks for it.
var shared struct {
	once   sync.Once
	server *server
	err    error
}

// Main runs the tests of a package and then cleans up after them. It is what TestMain does.
func Main(m *testing.M) {
	m.Run() // leaves the exit code with m
	if shared.server != nil {
		shared.server.close()
	}
}

// New returns a fresh database with our schema, whose search_path is empty.
func New(t testing.TB) *Database {
	t.Helper()
	return find(t).clone(t)
}

// Empty returns a fresh database with nothing in it.
func Empty(t testing.TB) *Database {
	t.Helper()
	return find(t).empty(t)
}

// NewOwned returns a fresh, empty database that belongs to a login of its own, as a plain owner has it: no superuser, but with
// CREATEROLE. URL logs in as that owner.
//
// The role coupon_service belongs to the whole server, where other tests have made it already. From PostgreSQL 16 on a
// CREATEROLE can hand out only what he made or was given: there the owner is a member of coupon_service from the start, as if
// the administrator had granted it. Where the role is to be missing, take the NewOwned of a Private server.
func NewOwned(t testing.TB) *Database {
	t.Helper()
	s := find(t)
	if _, err := s.template(); err != nil { // so that the role exists, whichever test comes first
		t.Fatal(err)
	}
	return s.owner(t)
}

// Connect opens a connection as the database's owner, closed when the test ends.
func (d *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.URL)
	if err != nil {
		t.Fatalf("dbtest: connect to %s: %v", d.Name, err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func find(t testing.TB) *server {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // it may have to be downloaded
		defer cancel()
		shared.server, shared.err = findServer(ctx)
	})
	if shared.err != nil {
		t.Fatalf("dbtest: no PostgreSQL to test with: %v", shared.err)
	}
	return shared.server
}

// say tells whoever runs the tests something that belongs to no single one.
func say(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stderr, "dbtest: "+format+"\n", args...)
}

// nobodyLooks is true where what stays behind is of no use.
func nobodyLooks() bool {
	ci, err := strconv.ParseBool(os.Getenv("CI"))
	return err == nil && ci
}

// stays tells, in a cleanup, whether what the test has left is worth a look.
//
// A panicking test's cleanups are run while it does not count as failed yet, and recover works in deferred functions only; but
// the panic is on the stack.
func stays(t testing.TB) bool {
	t.Helper()
	if nobodyLooks() {
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

var noNamePart = regexp.MustCompile(`[^a-z0-9]+`)

// namePart makes a test's name fit for the name of a database.
func namePart(name string) string {
	part := noNamePart.ReplaceAllString(strings.ToLower(strings.TrimPrefix(name, "Test")), "_")
	return strings.Trim(part[:min(len(part), 30)], "_")
}
