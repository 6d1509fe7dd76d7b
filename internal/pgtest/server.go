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

// server is a PostgreSQL server as one process of tests uses it. All that is made on it is named coupon_test_<run>_….
type server struct {
	admin string // connection string of a user who may create databases
	show  string // the same, fit for a screen
	run   string // 8 hex digits, this process' own
	host  host   // what it runs on

	template func() (string, error) // makes the template once, and returns its name
	made     atomic.Int64           // how many databases were made
	kept     func()                 // lets the server outlive this process, once
	isKept   atomic.Bool
}

// host is what a server runs on.
type host interface {
	// keep lets the server outlive this process, and returns the command that removes it; "": the server is not ours.
	keep() (string, error)
	// close ends the server and removes it with all of its data, or what of ours is on it.
	close(s *server) error
}

func newServer(admin string, host host) *server {
	s := &server{admin: admin, show: admin, run: newRun(), host: host}
	s.template = sync.OnceValues(s.makeTemplate)
	s.kept = sync.OnceFunc(func() {
		s.isKept.Store(true)
		remove, err := host.keep()
		switch {
		case err != nil:
			say("%v", err)
		case remove != "":
			say("and so does its server; to remove it now: %s", remove)
		}
	})
	return s
}

func newRun() string {
	var number [4]byte
	_, _ = rand.Read(number[:]) // never fails
	return hex.EncodeToString(number[:])
}

// thisPackage stands for the package whose tests these are, on this machine: go test runs them in its folder.
var thisPackage = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		dir = os.Args[0]
	}
	machine, _ := os.Hostname()
	hash := sha256.Sum256([]byte(machine + "\x00" + dir))
	return hex.EncodeToString(hash[:4])
})

func (s *server) name(part string) string {
	return fmt.Sprintf("coupon_test_%s_%d_%s", s.run, s.made.Add(1), namePart(part))
}

// clone makes a database from the template.
func (s *server) clone(t testing.TB) *Database {
	t.Helper()
	template, err := s.template()
	if err != nil {
		t.Fatalf("dbtest: make the template: %v", err)
	}
	name := s.name(t.Name())
	return s.register(t, &Database{Name: name, URL: withDatabase(s.admin, name)},
		"create database "+quote(name)+" template "+quote(template),
		"alter database "+quote(name)+" set search_path = ''",
	)
}

func (s *server) empty(t testing.TB) *Database {
	t.Helper()
	name := s.name(t.Name())
	return s.register(t, &Database{Name: name, URL: withDatabase(s.admin, name)}, createEmpty(name))
}

// owner makes a role and a database of the same name.
func (s *server) owner(t testing.TB) *Database {
	t.Helper()
	name, password := s.name(t.Name()), rand.Text()
	return s.register(t, &Database{Name: name, URL: withLogin(withDatabase(s.admin, name), name, password)},
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

// createEmpty takes template0, which nobody is ever connected to: template1 may be in use.
func createEmpty(name string) string {
	return "create database " + quote(name) + " template template0 encoding 'UTF8'"
}

// register makes the database by commands, and sees to its end.
func (s *server) register(t testing.TB, d *Database, commands ...string) *Database {
	t.Helper()
	if err := s.exec(commands...); err != nil {
		t.Fatalf("dbtest: make a database: %v", err)
	}
	if _, private := s.host.(*Server); private {
		return d // ends with its server
	}
	t.Cleanup(func() {
		if stays(t) {
			// Not by t.Logf, whose lines are lost when a test panics.
			say("%s failed: its database stays until the tests of this package run again: %s", t.Name(), withDatabase(s.show, d.Name))
			if err := s.exec("comment on database " + quote(d.Name) + " is '" + keptFor(thisPackage()) + "'"); err != nil {
				say("%v", err)
			}
			s.kept()
			return
		}
		// The role is only there for an Owner.
		if err := s.exec(dropDatabase(d.Name), dropRole(d.Name)); err != nil {
			t.Errorf("dbtest: drop the database: %v", err)
		}
	})
	return d
}

func dropDatabase(name string) string {
	return "drop database if exists " + quote(name) + " with (force)"
}

func dropRole(name string) string { return "drop role if exists " + quote(name) }

// keptFor marks a database that a failing test has left.
func keptFor(pkg string) string { return "kept for " + pkg }

// makeTemplate makes the database that New clones. It takes no connections: one would keep it from being cloned.
func (s *server) makeTemplate() (string, error) {
	name := "coupon_test_" + s.run + "_template"
	if err := s.exec(createEmpty(name)); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, withDatabase(s.admin, name))
	if err != nil {
		return "", err
	}
	_, err = db.Apply(ctx, conn)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return "", err
	}
	return name, s.exec("alter database " + quote(name) + " allow_connections false")
}

// exec runs commands one by one, on a connection of its own.
func (s *server) exec(commands ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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

// execRetrying tries again where PostgreSQL loses a race with itself: two changes of one role's memberships at once are
// "tuple concurrently updated" (an internal error), and a template that a session is just leaving is "in use".
func execRetrying(ctx context.Context, conn *pgx.Conn, command string) error {
	for attempt := 1; ; attempt++ {
		_, err := conn.Exec(ctx, command)
		var pgErr *pgconn.PgError
		if err == nil || attempt == 5 || !errors.As(err, &pgErr) ||
			(pgErr.Code != pgerrcode.InternalError && pgErr.Code != pgerrcode.ObjectInUse) {
			return err
		}
		time.Sleep(time.Duration(attempt) * 50 * time.Millisecond)
	}
}

// close is for the end of the process.
func (s *server) close() {
	if s.isKept.Load() {
		if _, ours := s.host.(*given); !ours {
			return
		}
	}
	if err := s.host.close(s); err != nil {
		say("%v", err)
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase is a connection string, URL or keyword=value, with another database.
func withDatabase(connection, name string) string {
	u, err := url.Parse(connection)
	if err != nil || u.Scheme == "" {
		return connection + " dbname='" + name + "'" // the last one counts
	}
	u.Path = "/" + name
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	u.RawQuery = query.Encode()
	return u.String()
}

// withLogin is a connection string with another login.
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

// withoutPassword is a connection string fit for a screen.
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
