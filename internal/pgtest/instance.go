package pgtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/db"
)

// instance is a PostgreSQL server as one test process uses it. The names of all databases and roles
// that it creates begin with coupon_test_<run ID>_.
type instance struct {
	admin    string // connection string of a user that may create databases and roles
	redacted string // the same without the password
	runID    string // 8 hex digits, unique to this process
	provider provider

	template func() (string, error) // creates the template once and returns its name
	created  atomic.Int64           // how many databases were created
	keepOnce func()                 // lets the server outlive this process; does nothing when called again
	kept     atomic.Bool
}

// provider started the server or connected to it.
type provider interface {
	// keep lets the server outlive this process and returns the shell command that removes it. The
	// command is "" for a server that pgtest did not start.
	keep() (string, error)
	// close removes the server with all its data. On a server that pgtest did not start, it drops
	// the template and releases the run's lock.
	close(s *instance) error
}

func newInstance(admin string, provider provider) *instance {
	s := &instance{admin: admin, redacted: admin, runID: newRunID(), provider: provider}
	s.template = sync.OnceValues(s.makeTemplate)
	s.keepOnce = sync.OnceFunc(func() {
		s.kept.Store(true)
		remove, err := provider.keep()
		switch {
		case err != nil:
			logf("%v", err)
		case remove != "":
			logf("its server is kept, too; to remove it now: %s", remove)
		}
	})
	return s
}

func newRunID() string {
	var number [4]byte
	_, _ = rand.Read(number[:]) // never fails
	return hex.EncodeToString(number[:])
}

// packageID identifies the package under test on this machine: go test runs it in its directory.
var packageID = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		dir = os.Args[0]
	}
	machine, _ := os.Hostname()
	hash := sha256.Sum256([]byte(machine + "\x00" + dir))
	return hex.EncodeToString(hash[:4])
})

func (s *instance) name(part string) string {
	return fmt.Sprintf("coupon_test_%s_%d_%s", s.runID, s.created.Add(1), namePart(part))
}

// clone creates a database from the template.
func (s *instance) clone(t testing.TB) *Database {
	t.Helper()
	template, err := s.template()
	if err != nil {
		t.Fatalf("pgtest: create the template: %v", err)
	}
	name := s.name(t.Name())
	return s.create(t, &Database{Name: name, URL: withDatabase(s.admin, name)},
		"create database "+quote(name)+" template "+quote(template),
		"alter database "+quote(name)+" set search_path = ''",
	)
}

func (s *instance) empty(t testing.TB) *Database {
	t.Helper()
	name := s.name(t.Name())
	return s.create(t, &Database{Name: name, URL: withDatabase(s.admin, name)}, createEmpty(name))
}

// owned creates a role and a database of the same name that it owns.
func (s *instance) owned(t testing.TB) *Database {
	t.Helper()
	name, password := s.name(t.Name()), rand.Text()
	return s.create(t, &Database{Name: name, URL: withLogin(withDatabase(s.admin, name), name, password)},
		"create role "+quote(name)+" login nosuperuser createrole password '"+password+"'",
		`do $$
		begin
		  if current_setting('server_version_num')::int >= 160000
		    and exists (select from pg_roles where rolname = 'coupon_service')
		  then
		    grant coupon_service to `+quote(name)+`;
		  end if;
		end $$`,
		createEmpty(name)+" owner "+quote(name),
	)
}

// createEmpty uses template0, because it has no connections; template1 may be in use.
func createEmpty(name string) string {
	return "create database " + quote(name) + " template template0 encoding 'UTF8'"
}

// create creates a database with commands. At the end of the test it is dropped or kept.
func (s *instance) create(t testing.TB, d *Database, commands ...string) *Database {
	t.Helper()
	if err := s.exec(commands...); err != nil {
		t.Fatalf("pgtest: create a database: %v", err)
	}
	if _, ok := s.provider.(*Server); ok {
		return d // removed with its server
	}
	t.Cleanup(func() {
		if mustKeep(t) {
			// Not with t.Logf: its output is lost if a test panics.
			logf("%s failed: its database is kept until the tests of this package run again: %s", t.Name(), withDatabase(s.redacted, d.Name))
			if err := s.exec("comment on database " + quote(d.Name) + " is '" + keptComment(packageID()) + "'"); err != nil {
				logf("%v", err)
			}
			s.keepOnce()
			return
		}
		// Only NewOwned has created a role.
		if err := s.exec(dropDatabase(d.Name), dropRole(d.Name)); err != nil {
			t.Errorf("pgtest: drop the database: %v", err)
		}
	})
	return d
}

func dropDatabase(name string) string {
	return "drop database if exists " + quote(name) + " with (force)"
}

func dropRole(name string) string { return "drop role if exists " + quote(name) }

// keptComment returns the comment that marks the kept databases of a package.
func keptComment(pkg string) string { return "kept for " + pkg }

// makeTemplate creates the database that New clones. It allows no connections, because a database
// with connections cannot be cloned.
func (s *instance) makeTemplate() (string, error) {
	name := "coupon_test_" + s.runID + "_template"
	if err := s.exec(createEmpty(name)); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, withDatabase(s.admin, name))
	if err != nil {
		return "", err
	}
	_, err = db.Apply(ctx, conn, db.Options{})
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return "", err
	}
	return name, s.exec("alter database " + quote(name) + " allow_connections false")
}

// exec executes commands one by one on a new connection.
func (s *instance) exec(commands ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, command := range commands {
		if err := execRetrying(ctx, conn, command); err != nil {
			return err
		}
	}
	return nil
}

// execRetrying retries in two cases. Concurrent changes of one role's memberships fail with "tuple
// concurrently updated" (an internal error), and a template that a session has just left may still
// be "in use".
func execRetrying(ctx context.Context, conn *pgx.Conn, command string) error {
	for attempt := 1; ; attempt++ {
		_, err := conn.Exec(ctx, command)
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		if err == nil || attempt == 5 || !ok ||
			(pgErr.Code != pgerrcode.InternalError && pgErr.Code != pgerrcode.ObjectInUse) {
			return err
		}
		time.Sleep(time.Duration(attempt) * 50 * time.Millisecond)
	}
}

// close runs at the end of the process.
func (s *instance) close() {
	if s.kept.Load() {
		if _, ok := s.provider.(*external); !ok {
			return
		}
	}
	if err := s.provider.close(s); err != nil {
		logf("%v", err)
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase replaces the database in a connection string, which may be a URL or keyword=value.
func withDatabase(connection, name string) string {
	u, err := url.Parse(connection)
	if err != nil || u.Scheme == "" {
		return connection + " dbname='" + name + "'" // the last dbname wins
	}
	u.Path = "/" + name
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	u.RawQuery = query.Encode()
	return u.String()
}

// withLogin replaces the user and the password in a connection string.
func withLogin(connection, user, password string) string {
	u, err := url.Parse(connection)
	if err != nil || u.Scheme == "" {
		return connection + " user='" + user + "' password='" + password + "'"
	}
	u.User = url.UserPassword(user, password)
	query := u.Query()
	query.Del("user")
	query.Del("password")
	u.RawQuery = query.Encode()
	return u.String()
}

// withoutPassword removes the password from a connection string.
func withoutPassword(connection string) string {
	if u, err := url.Parse(connection); err == nil && u.Scheme != "" {
		query := u.Query()
		query.Del("password")
		u.RawQuery = query.Encode()
		return u.Redacted()
	}
	var shown []string
	for word := range strings.FieldsSeq(connection) {
		if !strings.HasPrefix(strings.ToLower(word), "password") {
			shown = append(shown, word)
		}
	}
	return strings.Join(shown, " ")
}
