package pgstore

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// longTimeout is the ClaimTimeout of tests that do not depend on time, so that they pass on a busy
// machine.
const longTimeout = 30 * time.Second

// testStore is a Store with a database of its own, and the proxy between them.
type testStore struct {
	*Store
	url   string // of the database, for its owner
	owner *pgx.Conn
	proxy *faultproxy.Proxy
}

// newTestStore creates a database and a store on it; change, if any, changes the store's Config.
func newTestStore(t *testing.T, change ...func(*Config)) *testStore {
	t.Helper()
	database := pgtest.New(t)
	return newTestStoreAt(t, database.URL, database.Connect(t), change...)
}

// newTestStoreAt creates a store on an existing database.
func newTestStoreAt(t *testing.T, url string, owner *pgx.Conn, change ...func(*Config)) *testStore {
	t.Helper()
	proxy, err := faultproxy.New(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	return &testStore{Store: openStore(t, proxy.URL(url), change...), url: url, owner: owner, proxy: proxy}
}

// openStore opens a store with longTimeout. It is closed at the end of the test.
func openStore(t testing.TB, url string, change ...func(*Config)) *Store {
	t.Helper()
	cfg := testConfig(url)
	cfg.ClaimTimeout = longTimeout
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
func (s *testStore) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := s.owner.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// create creates a coupon directly in the database.
func (s *testStore) create(t *testing.T, coupon string, amount int) {
	t.Helper()
	s.exec(t, `select coupond.create_coupon($1, $2)`, coupon, amount)
}

// holders returns the users that have the coupon, in claim order, from the table.
func (s *testStore) holders(t *testing.T, coupon string) []string {
	t.Helper()
	rows, err := s.owner.Query(t.Context(),
		`select user_id from coupond.claims where coupon_name = $1 order by claim_number`, coupon)
	if err != nil {
		t.Fatal(err)
	}
	users, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return users
}

// wantHolders checks that exactly these users have the coupon, in this order, and that the stock
// agrees with the claims.
func (s *testStore) wantHolders(t *testing.T, coupon string, want ...string) {
	t.Helper()
	holders := s.holders(t, coupon)
	if !slices.Equal(holders, want) {
		t.Errorf("coupon %q: holders are %q, want %q", coupon, holders, want)
	}
	var sold int
	if err := s.owner.QueryRow(t.Context(),
		`select amount - remaining_amount from coupond.coupons where name = $1`, coupon).Scan(&sold); err != nil {
		t.Fatal(err)
	}
	if sold != len(holders) {
		t.Errorf("coupon %q: the stock shows %d sold, the table has %d claims", coupon, sold, len(holders))
	}
}

// lock locks the rows of coupons, as an open transaction of another program would, until unlock is
// called or the test ends.
func (s *testStore) lock(t *testing.T, coupons ...string) (unlock func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.url)
	if err != nil {
		t.Fatal(err)
	}
	unlock = func() { _ = conn.Close(context.Background()) }
	t.Cleanup(unlock)
	if _, err := conn.Exec(t.Context(), `begin`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `select from coupond.coupons where name = any ($1) for update`, coupons); err != nil {
		t.Fatal(err)
	}
	return unlock
}

// watchWrites returns a function that reports whether a claim or a creation was sent meanwhile.
func (s *testStore) watchWrites() (sent func() bool) {
	var seen atomic.Bool
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		for _, call := range []string{claimCouponSQL, claimCouponsSQL, claimBatchSQL, createCouponSQL} {
			if strings.Contains(sql, call) {
				seen.Store(true)
			}
		}
		return faultproxy.Pass
	})
	return seen.Load
}

// sessions counts the store's sessions on the server.
func (s *testStore) sessions(t *testing.T) (count int) {
	t.Helper()
	err := s.owner.QueryRow(t.Context(),
		`select count(*) from pg_stat_activity where datname = current_database() and application_name = 'coupond'`).Scan(&count)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// newClaims returns claims for pairs of a user and a coupon.
func newClaims(usersAndCoupons ...string) []*claim {
	var claims []*claim
	for i := 0; i < len(usersAndCoupons); i += 2 {
		claims = append(claims, &claim{user: usersAndCoupons[i], coupon: usersAndCoupons[i+1]})
	}
	return claims
}

// sendBatch sends the claims as the batcher does: in one shared call, and in a solo call for each
// coupon that this one leaves.
func (s *Store) sendBatch(ctx context.Context, claims []*claim) {
	if len(claims) == 0 {
		return
	}
	srv := s.serverOf(claims[0].coupon)
	srv.sendShared(ctx, claims)
	left := make(map[string][]*claim)
	for _, c := range claims {
		if c.toSendAgain() {
			left[c.coupon] = append(left[c.coupon], c)
		}
	}
	var solo sync.WaitGroup
	for _, claims := range left {
		solo.Go(func() { srv.sendSolo(ctx, claims) })
	}
	solo.Wait()
}

// sendWithin sends the claims as one batch and checks that each has either a status or an error.
func (s *testStore) sendWithin(t *testing.T, timeout time.Duration, claims []*claim) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	s.sendBatch(ctx, claims)
	for _, c := range claims {
		if (c.status == "") == (c.err == nil) {
			t.Errorf("user %s: status %q and error %v; want exactly one of them", c.user, c.status, c.err)
		}
	}
}
