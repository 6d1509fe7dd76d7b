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
)

// wantReady says what Ready says: nothing, or these words.
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
		t.Errorf("ready; want it to be told of %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q; want it to tell of %q", err, word)
		}
	}
	for _, never := range []string{"s3cr3t", "select", "SQLSTATE", "\n"} {
		if strings.Contains(err.Error(), never) {
			t.Errorf("%q shows %q", err, never)
		}
	}
}

// A service that was started before the migration turns ready by itself.
func TestReadyAfterMigration(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	s := standOn(t, database.URL, database.Connect(t), func(cfg *Config) { cfg.SchemaVersion = db.Version() })
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

func TestReadySchemaVersion(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() + 1 })
	wantReady(t, s.Store, fmt.Sprint(db.Version()), fmt.Sprint(db.Version()+1), "coupond migrate")
	s.exec(t, `update public.schema_version set version = version + 1`)
	wantReady(t, s.Store)
	s.exec(t, `update public.schema_version set version = version + 1`) // newer than we know is fine
	wantReady(t, s.Store)
	s.exec(t, `delete from public.schema_version`)
	wantReady(t, s.Store, "coupond migrate")
	s.exec(t, `revoke execute on function public.coupon_schema_version() from coupon_service`)
	wantReady(t, s.Store, "coupond migrate")
}

// A newer schema without a function that we call is no place to work, and one whose
// version is ours lacks its functions.
func TestReadyWithoutAFunction(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	wantReady(t, s.Store)
	// It looks for all that is called anywhere.
	function := regexp.MustCompile(`public\.(\w+)\(`)
	for _, sql := range []string{claimCouponsSQL, claimBatchSQL, createCouponSQL, getCouponSQL, claimersSQL} {
		if name := function.FindStringSubmatch(sql)[1]; !strings.Contains(readySQL, "public."+name+"(") {
			t.Errorf("Ready does not look for %s", name)
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

// A pooler can drop the parameter that makes us coupon_service. What is then called
// ready would have the rights of the login.
func TestReadyInTheRightRoleOnly(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	wantReady(t, s.Store)
	conn, err := s.watch.Acquire(t.Context())
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

func TestReadyServerAway(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	s := newStand(t, func(cfg *Config) { cfg.Log = zerolog.New(&log) })
	wantReady(t, s.Store)
	wantReady(t, s.Store)

	s.proxy.Freeze()
	start := time.Now()
	wantReady(t, s.Store, "does not answer")
	if took := time.Since(start); took > readyTimeout+time.Second {
		t.Errorf("took %v", took)
	}
	wantReady(t, s.Store, "does not answer")
	s.proxy.Thaw()
	wantReady(t, s.Store)
	s.wantNoCancelRequest(t)

	// Who leaves while he asks has found nothing out.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Ready(ctx); err == nil {
		t.Error("ready for a caller who has left")
	}
	wantReady(t, s.Store)

	// The log tells the changes, not every look.
	if lines := strings.Count(log.String(), "\n"); lines != 3 {
		t.Errorf("%d lines for ready, away, ready:\n%s", lines, log.String())
	}
}

// A database that cannot be written, a standby for one, is told and left, and claims
// there surely did not happen.
func TestReadyReadOnly(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	wantReady(t, s.Store)
	var database string
	if err := s.owner.QueryRow(t.Context(), `select current_database()`).Scan(&database); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `alter database "`+database+`" set default_transaction_read_only = on`)
	s.proxy.CutAll() // sessions that begin from here on are read-only
	eventually(t, "the sessions end", func() bool { return s.sessions(t) == 0 })
	eventually(t, "the store notices", func() bool {
		err := s.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "read-only")
	})
	for _, c := range []*claim{{user: "u", coupon: "c"}, {user: "v", coupon: "c"}} {
		if _, err := s.Claim(t.Context(), c.user, c.coupon); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a claim: %v; want it unavailable", err)
		}
	}
	eventually(t, "no connection to the read-only server is kept", func() bool { return s.pool.Stat().TotalConns() == 0 })

	s.exec(t, `alter database "`+database+`" reset default_transaction_read_only`)
	wantReady(t, s.Store)
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
}

// Refused sessions are told apart, without the password.
func TestReadyRefused(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	name := fmt.Sprint("pgstore_test_", time.Now().UnixNano())
	s.exec(t, `create role `+name+` login password 's3cr3t'`)
	t.Cleanup(func() { _, _ = s.owner.Exec(context.Background(), `drop role `+name) })

	at := func(user, database string) *stand {
		return standOn(t, s.url, s.owner, func(cfg *Config) {
			_, host, _ := strings.Cut(cfg.URL, "@")
			host, _, _ = strings.Cut(host, "/")
			cfg.URL = "postgres://" + user + ":s3cr3t@" + host + "/" + database
		})
	}
	path := s.url[strings.LastIndex(s.url, "/")+1:]
	database, _, _ := strings.Cut(path, "?")
	wantReady(t, at(name, database).Store, "coupon_service")
	wantReady(t, at("nobody_"+name, database).Store, "login")
	s.exec(t, `grant coupon_service to `+name)
	wantReady(t, at(name, "no_such_database").Store, "no database")
	wantReady(t, at(name, database).Store)
	s.exec(t, `alter role `+name+` connection limit 0`)
	wantReady(t, at(name, database).Store, "no connection left")
}

// A crowd that fills the pool does not keep Ready from asking.
func TestReadyWhileAllConnectionsAreTaken(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = 3 })
	s.create(t, "c", 100)
	unlock := s.lock(t, "c")
	var callers sync.WaitGroup
	for i := range 10 {
		callers.Go(func() { s.sendWithin(t, patience, crowd(fmt.Sprint(i), "c")) })
	}
	eventually(t, "the pool is full", func() bool { return s.pool.Stat().AcquiredConns() == 2 })
	wantReady(t, s.Store)
	unlock()
	callers.Wait()
}

func TestReadyWithOneConnection(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = 1 })
	s.create(t, "c", 1)
	wantReady(t, s.Store)
	if status, err := s.Claim(t.Context(), "u", "c"); status != Claimed {
		t.Error(status, err)
	}
	if n := s.sessions(t); n != 1 {
		t.Errorf("%d sessions", n)
	}
}
