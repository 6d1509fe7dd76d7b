package pgstore

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience is the ClaimTimeout of tests that are not about time: a busy machine must
// not fail them.
const patience = 30 * time.Second

// stand is a database of the test's own, the Store under test, and the proxy by way
// of which the store reaches the database.
type stand struct {
	*Store
	url   string // of the database itself, as its owner
	owner *pgx.Conn
	proxy *faultproxy.Proxy
}

// newStand makes a stand; change, if any, changes the store's Config.
func newStand(t *testing.T, change ...func(*Config)) *stand {
	t.Helper()
	database := pgtest.New(t)
	return standOn(t, database.URL, database.Connect(t), change...)
}

func standOn(t *testing.T, url string, owner *pgx.Conn, change ...func(*Config)) *stand {
	t.Helper()
	proxy, err := faultproxy.New(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	return &stand{Store: openStore(t, proxy.URL(url), change...), url: url, owner: owner, proxy: proxy}
}

// openStore opens a store with the patience of the tests; it is closed with the test.
func openStore(t testing.TB, url string, change ...func(*Config)) *Store {
	t.Helper()
	cfg := testConfig(url)
	cfg.ClaimTimeout = patience
	cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	for _, c := range change {
		c(&cfg)
	}
	store, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// exec runs SQL as the owner.
func (s *stand) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := s.owner.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// create puts a coupon on sale, past the store.
func (s *stand) create(t *testing.T, coupon string, amount int) {
	t.Helper()
	s.exec(t, `select public.create_coupon($1, $2)`, coupon, amount)
}

// holders are the users who have the coupon, in claim order, as the table says.
func (s *stand) holders(t *testing.T, coupon string) []string {
	t.Helper()
	rows, err := s.owner.Query(t.Context(),
		`select user_id from public.claims where coupon_name = $1 order by claim_number`, coupon)
	if err != nil {
		t.Fatal(err)
	}
	users, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return users
}

// wantHolders says that exactly these users have the coupon, in this order, and
// that stock and claims agree.
func (s *stand) wantHolders(t *testing.T, coupon string, want ...string) {
	t.Helper()
	holders := s.holders(t, coupon)
	if !slices.Equal(holders, want) {
		t.Errorf("%q is held by %q, want %q", coupon, holders, want)
	}
	var sold int
	if err := s.owner.QueryRow(t.Context(),
		`select amount - remaining_amount from public.coupons where name = $1`, coupon).Scan(&sold); err != nil {
		t.Fatal(err)
	}
	if sold != len(holders) {
		t.Errorf("%q: %d are sold and %d claims stand", coupon, sold, len(holders))
	}
}

// lock locks a coupon's row, as somebody's open transaction does, until the test
// ends or the returned function is called.
func (s *stand) lock(t *testing.T, coupon string) (unlock func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`begin`, `select from public.coupons where name = '` + coupon + `' for update`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	unlock = func() { _ = conn.Close(context.Background()) }
	t.Cleanup(unlock)
	return unlock
}

// noticeCalls returns a function that tells whether a claim or a creation was sent since.
func (s *stand) noticeCalls() (sent func() bool) {
	var noticed atomic.Bool
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		for _, call := range []string{claimCouponsSQL, claimBatchSQL, createCouponSQL} {
			if strings.Contains(sql, call) {
				noticed.Store(true)
			}
		}
		return faultproxy.Pass
	})
	return noticed.Load
}

// sessions counts the store's sessions on the server, past the proxy.
func (s *stand) sessions(t *testing.T) (count int) {
	t.Helper()
	err := s.owner.QueryRow(t.Context(),
		`select count(*) from pg_stat_activity where datname = current_database() and application_name = 'coupond'`).Scan(&count)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// eventually waits until it is so.
func eventually(t *testing.T, what string, isSo func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !isSo(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute, in vain, until %s", what)
		}
	}
}

// crowd makes claims of pairs of a user and a coupon.
func crowd(wishes ...string) []*claim {
	var claims []*claim
	for i := 0; i < len(wishes); i += 2 {
		claims = append(claims, &claim{user: wishes[i], coupon: wishes[i+1]})
	}
	return claims
}

// sendWithin sends the claims with so much time.
func (s *stand) sendWithin(t *testing.T, timeout time.Duration, claims []*claim) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	s.send(ctx, claims)
	for _, c := range claims {
		if (c.status == "") == (c.err == nil) {
			t.Errorf("%s has neither or both of status %q and error %v", c.user, c.status, c.err)
		}
	}
}
