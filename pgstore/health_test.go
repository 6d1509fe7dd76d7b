package pgstore

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// wantReady checks that Ready returns nil, or, if words are given, an error that contains them.
func wantReady(t *testing.T, s *Store, words ...string) {
	t.Helper()
	err := ready(t, s)
	if len(words) == 0 {
		if err != nil {
			t.Errorf("not ready: %v (%v)", err, errors.Unwrap(err))
		}
		return
	}
	if err == nil {
		t.Errorf("ready; want an error that contains %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not contain %q", err, word)
		}
	}
	for _, never := range []string{"s3cr3t", "select", "SQLSTATE", "\n"} {
		if strings.Contains(err.Error(), never) {
			t.Errorf("%q contains %q", err, never)
		}
	}
}

// isReady reports whether Ready returns nil.
func isReady(t *testing.T, s *Store) bool {
	t.Helper()
	return ready(t, s) == nil
}

// ready returns the error of Ready, after a new check.
func ready(t *testing.T, s *Store) error {
	t.Helper()
	s.readiness.setEnd(time.Now().Add(-recentResult))
	_, err := s.Ready(t.Context())
	return err
}

// setEnd changes when the last check ended.
func (r *readiness) setEnd(at time.Time) {
	if last := r.last.Load(); last != nil {
		r.last.Store(&readyCheck{at, last.result})
	}
}

// A service that was started before the migration becomes ready without a restart.
func TestReady_afterMigration(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	s := newTestStoreAt(t, database.URL, database.Connect(t), func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	wantReady(t, s.Store, "coupond migrate")
	s.wantClaim(t, "u", "c", ErrUnavailable)
	s.wantCreate(t, "c", 1, ErrUnavailable)
	s.wantReadError(t, "c", ErrUnavailable)
	if _, err := db.Apply(t.Context(), s.owner, db.Options{}); err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store)
	s.wantCreate(t, "c", 1, Created)
	s.wantClaim(t, "u", "c", Claimed)
}

func TestReady_schemaVersion(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() + 1 })
	wantReady(t, s.Store, fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1), "coupond migrate")
	s.exec(t, `update coupond.schema_version set version = version + 1`)
	wantReady(t, s.Store)
	s.exec(t, `update coupond.schema_version set version = version + 1`) // a newer schema is fine
	wantReady(t, s.Store)
	s.exec(t, `delete from coupond.schema_version`)
	wantReady(t, s.Store, "coupond migrate")
	s.exec(t, `revoke execute on function coupond.coupon_schema_version() from coupon_service`)
	wantReady(t, s.Store, "coupond migrate")
}

// A schema that lacks a function that we call is not ready, whether it is newer than this program
// or of its version.
func TestReady_missingFunction(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	wantReady(t, s.Store)
	// readySQL has all functions that are called.
	function := regexp.MustCompile(`coupond\.(\w+)\(`)
	for _, sql := range []string{claimCouponSQL, claimCouponsSQL, claimBatchSQL, createCouponSQL, getCouponSQL, claimersSQL} {
		if name := function.FindStringSubmatch(sql)[1]; !strings.Contains(readySQL, "coupond."+name+"(") {
			t.Errorf("readySQL does not check for %s", name)
		}
	}
	s.exec(t, `revoke execute on function coupond.get_coupon(text) from coupon_service`)
	wantReady(t, s.Store, "lacks functions", "run coupond migrate")
	s.exec(t, `grant execute on function coupond.get_coupon(text) to coupon_service`)
	wantReady(t, s.Store)
	s.exec(t, `update coupond.schema_version set version = version + 1`)
	s.exec(t, `drop function coupond.claim_batch(text[], text[], integer[])`)
	wantReady(t, s.Store, fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1), "lacks functions", "run a newer program")
}

// What a pooler may drop is checked: the role, without which the session has the privileges of the
// login, and the settings. The connection is not kept.
func TestReady_sessionProblem(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	wantReady(t, s.Store)
	for sql, words := range map[string]string{
		`set role none`:                                      "not those of coupon_service: a pooler",
		`set client_encoding = 'LATIN1'`:                     "client_encoding is LATIN1",
		`set client_min_messages = 'error'`:                  "client_min_messages is error",
		`set synchronous_commit = 'local'`:                   "synchronous_commit is local",
		`set default_transaction_isolation = 'serializable'`: "default_transaction_isolation is serializable",
		`set default_transaction_read_only = 'on'`:           "transaction_read_only is on",
	} {
		conn, err := s.healthPool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		execSQL(t, conn, sql)
		conn.Release()
		wantReady(t, s.Store, words)
		wantReady(t, s.Store) // on a new connection
	}
}

// If the owner of a function cannot use the tables or the other functions, every call fails.
func TestReady_ownerLacksPrivileges(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	wantReady(t, s.Store)
	name := fmt.Sprint("pgstore_owner_", time.Now().UnixNano())
	s.exec(t, `create role `+name)
	t.Cleanup(func() {
		_, _ = s.owner.Exec(context.Background(), `drop owned by `+name)
		_, _ = s.owner.Exec(context.Background(), `drop role `+name)
	})
	for _, function := range []string{
		"claim_coupon(text, text)", "claim_batch(text[], text[], integer[])", "get_coupon(text)", "coupon_schema_version()",
	} {
		s.exec(t, `alter function coupond.`+function+` owner to `+name)
		s.exec(t, `grant usage on schema coupond to `+name)
		wantReady(t, s.Store, "run coupond migrate")
		s.exec(t, `grant select, insert, update on all tables in schema coupond to `+name)
		wantReady(t, s.Store, name, "lacks EXECUTE", "run coupond migrate")
		s.exec(t, `grant execute on all functions in schema coupond to `+name)
		wantReady(t, s.Store)
		s.exec(t, `revoke update on coupond.coupons from `+name)
		wantReady(t, s.Store, name, "lacks UPDATE on coupond.coupons", "run coupond migrate")
		s.exec(t, `revoke all on all functions in schema coupond from `+name)
		s.exec(t, `revoke all on all tables in schema coupond from `+name)
		s.exec(t, `alter function coupond.`+function+` owner to current_user`)
		s.exec(t, `grant execute on function coupond.`+function+` to coupon_service`)
		wantReady(t, s.Store)
	}
}

func TestReady_frozenServer(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s := newTestStore(t, func(cfg *Config) { cfg.Log = zerolog.New(&log) })
	wantReady(t, s.Store)
	wantReady(t, s.Store)

	s.proxy.Freeze()
	start := time.Now()
	wantReady(t, s.Store, "does not answer")
	if took := time.Since(start); took > readyTimeout+time.Second {
		t.Errorf("Ready took %v, want at most %v", took, readyTimeout+time.Second)
	}
	wantReady(t, s.Store, "does not answer")
	s.proxy.Thaw()
	wantReady(t, s.Store)
	s.wantNoCancelRequest(t)

	// A canceled call says nothing about the database.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _ = s.Ready(ctx)
	wantReady(t, s.Store)

	// Only changes are logged.
	if lines := strings.Count(log.String(), "\n"); lines != 3 {
		t.Errorf("%d log lines for ready, not ready, ready; want 3:\n%s", lines, log.String())
	}
}

// Each reason for which a session is refused has its own message, without the password.
func TestReady_sessionRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	name, _ := s.newLogin(t, "")

	at := func(user, database string) *testStore {
		return newTestStoreAt(t, s.url, s.owner, func(cfg *Config) {
			_, host, _ := strings.Cut(cfg.URL, "@")
			host, _, _ = strings.Cut(host, "/")
			cfg.URL = "postgres://" + user + ":s3cr3t@" + host + "/" + database
		})
	}
	path := s.url[strings.LastIndex(s.url, "/")+1:]
	database, _, _ := strings.Cut(path, "?")
	wantReady(t, at(name, database).Store, "does not let the login become coupon_service", "grant coupon_service")
	wantReady(t, at("not_"+name, database).Store, "refuses the login", "check the user")
	s.exec(t, `grant coupon_service to `+name)
	wantReady(t, at(name, "no_such_database").Store, "no database", `"no_such_database"`)
	wantReady(t, at(name, database).Store)
	wantReady(t, at(name, database+"?timezone=Mars/Phobos").Store, "TimeZone", "Mars/Phobos", "connection string")
	wantReady(t, at(name, database+"?log_statement=all").Store, "log_statement", "refuses the login")
	s.exec(t, `alter role `+name+` connection limit 0`)
	wantReady(t, at(name, database).Store, "no connection left")
	s.exec(t, `alter role `+name+` connection limit -1 nologin`)
	wantReady(t, at(name, database).Store, "refuses the login", "check the user")
	s.exec(t, `alter role `+name+` login`)
	s.exec(t, `revoke connect on database "`+database+`" from public`)
	wantReady(t, at(name, database).Store, "refuses the login", database, "CONNECT")
}

// Ready does not wait for claims that use all connections of the pool.
func TestReady_poolExhausted(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = 3 })
	s.create(t, "c", 100)
	unlock := s.lock(t, "c")
	var callers sync.WaitGroup
	for i := range 10 {
		callers.Go(func() { s.sendWithin(t, longTimeout, newClaims(fmt.Sprint(i), "c")) })
	}
	wait.For(t, "all connections to be acquired", func() bool { return s.pool.Stat().AcquiredConns() == 2 })
	wantReady(t, s.Store)
	unlock()
	callers.Wait()
}

func TestReady_oneConnection(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = 1 })
	s.create(t, "c", 1)
	wantReady(t, s.Store)
	s.wantClaim(t, "u", "c", Claimed)
	if n := s.sessions(t); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}
