package pgstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// set changes a setting of the database, which holds for sessions that start later.
func (s *testStore) set(t *testing.T, setting, value string) {
	t.Helper()
	s.exec(t, `alter database `+s.database()+` set `+setting+` = '`+value+`'`)
}

// database returns the quoted name of the database.
func (s *testStore) database() string { return pgx.Identifier{s.owner.Config().Database}.Sanitize() }

// Sessions do not depend on the settings of the database.
func TestSession_databaseSettings(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	for _, test := range []struct{ setting, value, want string }{
		{"client_encoding", "LATIN1", "UTF8"},
		{"client_min_messages", "error", "warning"},
		{"client_min_messages", "debug1", "warning"},
		{"synchronous_commit", "off", "on"},
		{"synchronous_commit", "local", "on"},
		{"synchronous_commit", "remote_write", "on"},
		{"synchronous_commit", "on", "on"},
		{"synchronous_commit", "remote_apply", "remote_apply"}, // is stronger
		{"default_transaction_isolation", "serializable", "read committed"},
		{"default_transaction_isolation", "repeatable read", "read committed"},
		{"default_transaction_read_only", "on", "off"},
	} {
		name := test.setting + "=" + test.value
		t.Run(name, func(t *testing.T) {
			s.set(t, test.setting, test.value)
			store := openStore(t, s.url)
			wantReady(t, store)
			if got := queryValue[string](t, store.pool, `select pg_catalog.current_setting($1)`, test.setting); got != test.want {
				t.Errorf("%s is %s, want %s", test.setting, got, test.want)
			}
			store.wantCreate(t, name, 2, Created)
			store.wantClaim(t, "u", name, Claimed)
			s.exec(t, `alter database `+s.database()+` reset all`)
		})
	}
}

// Names are stored as they are, whatever encoding the database suggests to clients.
func TestSession_clientEncoding(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.set(t, "client_encoding", "LATIN1")
	latin := openStore(t, s.url)
	names := []string{"für", strings.Repeat("ü", 255), "€", "🎟️"}
	for _, name := range names {
		latin.wantCreate(t, name, 2, Created)
		latin.wantClaim(t, name, name, Claimed)
	}
	// s.Store started no session yet.
	s.set(t, "client_encoding", "UTF8")
	for _, name := range names {
		s.wantClaim(t, name, name, AlreadyClaimed)
		s.wantHolders(t, name, name)
		if users := s.claimers(t, name); !slices.Equal(users, []string{name}) {
			t.Errorf("%q: claimed by %q", name, users)
		}
	}
}

// A standby is not ready, its connections are not kept, and nothing is committed there. When it is
// promoted, the store continues without a restart.
func TestReady_standby(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	url := server.New(t).URL
	s := newTestStoreAt(t, url, connect(t, url))
	s.create(t, "c", 5)
	wantReady(t, s.Store)
	s.exec(t, `copy (select) to program 'cat >standby.signal'`)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	s.owner = connect(t, url)

	wait.For(t, "Ready to report it", func() bool {
		_, err := s.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "standby")
	})
	for _, user := range []string{"u", "v"} {
		s.wantClaim(t, user, "c", ErrUnavailable)
	}
	s.wantCreate(t, "d", 1, ErrUnavailable)
	// Its state may be old, so it is not asked for that either.
	s.wantClaim(t, "u", "perhaps created meanwhile", ErrUnavailable)
	s.wantReadError(t, "c", ErrUnavailable)
	wantReady(t, s.Store, "standby")
	wait.For(t, "the connections to the standby to be closed", func() bool { return s.pool.Stat().TotalConns() == 0 })

	s.exec(t, `select pg_promote()`)
	wait.For(t, "Ready", func() bool { return isReady(t, s.Store) })
	s.wantClaim(t, "u", "c", Claimed)
}

// An error of PostgreSQL is a rollback, whatever its class: the claim and the creation are
// ErrUnavailable, or an internal error if the call is rejected. Ready reports that claims cannot be
// made, also without further claims, until they can.
func TestClaim_errorIsARollback(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	for _, test := range []struct {
		code     string
		internal bool
	}{
		{"53100", false}, // disk full
		{"42501", false},
		{"25006", false},
		{"58030", false},
		{"XX000", false},
		{"55000", false}, // for example, a publication and no replica identity
		{"P0001", true},
		{"23514", true},
	} {
		t.Run(test.code, func(t *testing.T) {
			coupon := "c" + test.code
			s.create(t, coupon, 5)
			s.exec(t, `create function coupond.fail() returns trigger language plpgsql as $$
				begin raise exception 'could not extend file' using errcode = '`+test.code+`'; end $$`)
			for _, table := range []string{"claims", "coupons"} {
				s.exec(t, `create trigger fail before insert on coupond.`+table+` for each statement execute function coupond.fail()`)
			}
			wantReady(t, s.Store) // nothing has failed yet

			var want any = ErrUnavailable
			if test.internal {
				want = internal
			}
			s.wantClaim(t, "u", coupon, want)
			s.wantCreate(t, "new", 1, want)
			claims := newClaims("u", coupon, "v", coupon, "w", "unknown")
			s.sendWithin(t, longTimeout, claims)
			wantStatuses(t, claims, want, want, CouponNotFound) // the last one needs no insert
			s.wantHolders(t, coupon)
			for range 2 {
				wantReady(t, s.Store, "claims cannot be made", "could not extend file")
			}

			s.exec(t, `drop function coupond.fail() cascade`)
			wantReady(t, s.Store)
			s.wantClaim(t, "u", coupon, Claimed)
			s.wantHolders(t, coupon, "u")
			s.wantClaim(t, "u", "new", CouponNotFound)
		})
	}
}

// A full disk is a rollback, and the service is not ready until there is room.
func TestReady_diskFull(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("only root on Linux can mount a small disk")
	}
	disk := pgtest.ClusterDir(t)
	run := func(name string, args ...string) error {
		output, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, output)
		}
		return nil
	}
	if err := run("mount", "-t", "tmpfs", "-o", "size=512k,mode=777", "pgstore", disk); err != nil {
		t.Skip(err) // in an unprivileged container, for example
	}
	t.Cleanup(func() {
		if err := run("umount", "--lazy", disk); err != nil {
			t.Error(err)
		}
	})
	s := newServerStore(t)
	s.exec(t, `copy (select) to program 'mkdir --mode=700 `+disk+`/space'`)
	s.exec(t, `create tablespace small location '`+disk+`/space'`)
	s.exec(t, `alter table all in tablespace pg_default owned by current_user set tablespace small`)
	s.exec(t, `alter index all in tablespace pg_default owned by current_user set tablespace small`)
	s.create(t, "c", 1_000_000)
	wantReady(t, s.Store)

	granted := 0
	sell := func() error {
		claims := make([]*claim, 100)
		for i := range claims {
			claims[i] = &claim{user: fmt.Sprint("user ", granted+i), coupon: "c"}
		}
		s.sendWithin(t, longTimeout, claims)
		for _, c := range claims {
			if c.err != nil {
				return c.err
			}
			granted++
		}
		return nil
	}
	for granted < 100_000 && sell() == nil {
	}
	if err := sell(); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("after %d claims: %v; want ErrUnavailable", granted, err)
	}
	wantReady(t, s.Store, "claims cannot be made", "No space left on device")
	if n := len(s.holders(t, "c")); n != granted {
		t.Errorf("%d claims are stored, want %d", n, granted)
	}
	if err := run("mount", "-o", "remount,size=64m", disk); err != nil {
		t.Fatal(err)
	}
	wantReady(t, s.Store)
	if err := sell(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// An error that concerns one claim only does not make the service unhealthy.
func TestReady_errorOfOneCoupon(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "broken", 5)
	s.create(t, "c", 5)
	s.exec(t, `create function coupond.fail() returns trigger language plpgsql as $$
		begin raise exception 'invalid page' using errcode = 'XX001'; end $$`)
	s.exec(t, `create trigger fail before insert on coupond.claims for each row when (new.coupon_name = 'broken') execute function coupond.fail()`)
	s.wantClaim(t, "u", "broken", ErrUnavailable)
	wantReady(t, s.Store)
	s.wantClaim(t, "u", "c", Claimed)
}

// warn makes claims raise warnings, by a trigger and by auto_explain, if the server has that. The
// latter holds for sessions that start later.
func (s *testStore) warn(t *testing.T) {
	t.Helper()
	s.exec(t, `create function coupond.audit() returns trigger language plpgsql as $$
		begin
			raise warning 'audited';
			raise warning 'audited' using errcode = '57P01', detail = 'with a detail';
			return null;
		end $$`)
	s.exec(t, `create trigger audit after insert on coupond.claims for each statement execute function coupond.audit()`)
	if _, err := s.owner.Exec(t.Context(), `load 'auto_explain'`); err != nil {
		t.Logf("without auto_explain: %v", err)
		return
	}
	s.set(t, "session_preload_libraries", "auto_explain")
	s.set(t, "auto_explain.log_min_duration", "0")
	s.set(t, "auto_explain.log_nested_statements", "on")
	s.set(t, "auto_explain.log_level", "warning")
}

// Warnings of triggers and of auto_explain do not make an outcome unknown.
func TestClaim_otherWarnings(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 10)
	s.warn(t)
	for _, claims := range [][]*claim{newClaims("u1", "c"), newClaims("u2", "c", "u3", "c"), newClaims("u4", "c", "u5", "unknown")} {
		s.sendWithin(t, longTimeout, claims)
		if claims[0].status != Claimed {
			t.Errorf("%d claims: %q, %v; want claimed", len(claims), claims[0].status, claims[0].err)
		}
	}
	s.wantCreate(t, "d", 1, Created)
	wantReady(t, s.Store)
	s.wantHolders(t, "c", "u1", "u2", "u3", "u4")
}
