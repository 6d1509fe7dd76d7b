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
	err := s.Ready(t.Context())
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

// A service that was started before the migration becomes ready without a restart.
func TestReady_afterMigration(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	s := newTestStoreAt(t, database.URL, database.Connect(t), func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	wantReady(t, s.Store, "coupond migrate")
	if _, err := s.Claim(t.Context(), "u", "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a claim before the migration: %v", err)
	}
	if _, err := s.CreateCoupon(t.Context(), "c", 1); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a creation before the migration: %v", err)
	}
	if _, _, err := s.Coupon(t.Context(), "c"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a read before the migration: %v", err)
	}
	if _, err := db.Apply(t.Context(), s.owner); err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store)
	if status, err := s.CreateCoupon(t.Context(), "c", 1); status != Created {
		t.Error(status, err)
	}
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Error(status, err)
	}
}

func TestReady_schemaVersion(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() + 1 })
	wantReady(t, s.Store, fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1), "coupond migrate")
	s.exec(t, `update public.schema_version set version = version + 1`)
	wantReady(t, s.Store)
	s.exec(t, `update public.schema_version set version = version + 1`) // a newer schema is fine
	wantReady(t, s.Store)
	s.exec(t, `delete from public.schema_version`)
	wantReady(t, s.Store, "coupond migrate")
	s.exec(t, `revoke execute on function public.coupon_schema_version() from coupon_service`)
	wantReady(t, s.Store, "coupond migrate")
}

// A schema that lacks a function that we call is not ready, whether it is newer than this program
// or of its version.
func TestReady_missingFunction(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	wantReady(t, s.Store)
	// readySQL has all functions that are called.
	function := regexp.MustCompile(`public\.(\w+)\(`)
	for _, sql := range []string{claimCouponsSQL, claimBatchSQL, createCouponSQL, getCouponSQL, claimersSQL} {
		if name := function.FindStringSubmatch(sql)[1]; !strings.Contains(readySQL, "public."+name+"(") {
			t.Errorf("readySQL does not check for %s", name)
		}
	}
	s.exec(t, `revoke execute on function public.get_coupon(text) from coupon_service`)
	wantReady(t, s.Store, "lacks functions", "run coupond migrate")
	s.exec(t, `grant execute on function public.get_coupon(text) to coupon_service`)
	wantReady(t, s.Store)
	s.exec(t, `update public.schema_version set version = version + 1`)
	s.exec(t, `drop function public.claim_batch(text[], text[], integer[])`)
	wantReady(t, s.Store, fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1), "lacks functions", "run a newer program")
}

// If a pooler drops the parameter that sets the role, the session has the privileges of the login
// and is not ready.
func TestReady_wrongRole(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	wantReady(t, s.Store)
	conn, err := s.healthPool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), `set role none`)
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store, "not as coupon_service", "pooler")
	wantReady(t, s.Store) // on a new connection
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
	if err := s.Ready(ctx); err == nil {
		t.Error("a canceled call returned nil, want an error")
	}
	wantReady(t, s.Store)

	// Only changes are logged.
	if lines := strings.Count(log.String(), "\n"); lines != 3 {
		t.Errorf("%d log lines for ready, not ready, ready; want 3:\n%s", lines, log.String())
	}
}

// A read-only database (a standby, for example) is not ready, its connections are not kept, and
// claims on it are not committed.
func TestReady_readOnly(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	wantReady(t, s.Store)
	var database string
	if err := s.owner.QueryRow(t.Context(), `select current_database()`).Scan(&database); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `alter database "`+database+`" set default_transaction_read_only = on`)
	s.proxy.CutAll() // the next sessions are read-only
	wait.For(t, "the sessions to end", func() bool { return s.sessions(t) == 0 })
	wait.For(t, "Ready to report it", func() bool {
		err := s.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "read-only")
	})
	for _, c := range []*claim{{user: "u", coupon: "c"}, {user: "v", coupon: "c"}} {
		if _, err := s.Claim(t.Context(), c.user, c.coupon); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a claim: %v; want ErrUnavailable", err)
		}
	}
	wait.For(t, "the connections to the read-only server to be closed", func() bool { return s.pool.Stat().TotalConns() == 0 })

	s.exec(t, `alter database "`+database+`" reset default_transaction_read_only`)
	wantReady(t, s.Store)
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
}

// Each reason for which a session is refused has its own message, without the password.
func TestReady_sessionRefused(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	name := fmt.Sprint("pgstore_test_", time.Now().UnixNano())
	s.exec(t, `create role `+name+` login password 's3cr3t'`)
	t.Cleanup(func() { _, _ = s.owner.Exec(context.Background(), `drop role `+name) })

	at := func(user, database string) *testStore {
		return newTestStoreAt(t, s.url, s.owner, func(cfg *Config) {
			_, host, _ := strings.Cut(cfg.URL, "@")
			host, _, _ = strings.Cut(host, "/")
			cfg.URL = "postgres://" + user + ":s3cr3t@" + host + "/" + database
		})
	}
	path := s.url[strings.LastIndex(s.url, "/")+1:]
	database, _, _ := strings.Cut(path, "?")
	wantReady(t, at(name, database).Store, "coupon_service")
	wantReady(t, at("not_"+name, database).Store, "login")
	s.exec(t, `grant coupon_service to `+name)
	wantReady(t, at(name, "no_such_database").Store, "no database")
	wantReady(t, at(name, database).Store)
	s.exec(t, `alter role `+name+` connection limit 0`)
	wantReady(t, at(name, database).Store, "no connection left")
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
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Error(status, err)
	}
	if n := s.sessions(t); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}
