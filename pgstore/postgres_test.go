package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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

// newServerStore is newTestStore on a server of its own, for what must not be done to a shared one.
func newServerStore(t *testing.T, change ...func(*Config)) *testStore {
	t.Helper()
	url := startServer(t).New(t).URL
	return newTestStoreAt(t, url, connect(t, url), change...)
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
	execSQL(t, s.owner, sql, args...)
}

// create creates a coupon directly in the database.
func (s *testStore) create(t *testing.T, coupon string, amount int) {
	t.Helper()
	s.exec(t, `select coupond.create_coupon($1, $2)`, coupon, amount)
}

// holders returns the users that have the coupon, in claim order, from the table.
func (s *testStore) holders(t *testing.T, coupon string) []string {
	t.Helper()
	return queryValue[[]string](t, s.owner,
		`select coalesce(array_agg(user_id order by claim_number), '{}') from coupond.claims where coupon_name = $1`, coupon)
}

// wantHolders checks that exactly these users have the coupon, in this order, and that the stock
// agrees with the claims.
func (s *testStore) wantHolders(t *testing.T, coupon string, want ...string) {
	t.Helper()
	holders := s.holders(t, coupon)
	if !slices.Equal(holders, want) {
		t.Errorf("coupon %q: holders are %q, want %q", coupon, holders, want)
	}
	sold := queryValue[int](t, s.owner, `select amount - remaining_amount from coupond.coupons where name = $1`, coupon)
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
	unlock = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	t.Cleanup(unlock)
	execSQL(t, conn, `begin`)
	execSQL(t, conn, `select from coupond.coupons where name = any ($1) for update`, coupons)
	return unlock
}

// hold holds calls with SQL that contains text until release is called, and counts them.
func (s *testStore) hold(text string) (held *atomic.Int32, release func()) {
	held = new(atomic.Int32)
	released := make(chan struct{})
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, text) {
			held.Add(1)
			<-released
		}
		return faultproxy.Pass
	})
	return held, sync.OnceFunc(func() { close(released) })
}

// concurrently calls f from that number of goroutines, again and again until stop is called. stop
// waits for them.
func concurrently(t *testing.T, clients int, f func(client, n int)) (stop func()) {
	t.Helper()
	stopped := make(chan struct{})
	var running sync.WaitGroup
	for client := range clients {
		running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stopped:
					return
				default:
					f(client, n)
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(stopped)
		running.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// newLogin creates a login with the password s3cr3t, which the end of the test drops, and returns
// its name and its URL of the database.
func (s *testStore) newLogin(t *testing.T, options string) (name, url string) {
	t.Helper()
	name = fmt.Sprint("pgstore_test_", time.Now().UnixNano())
	s.exec(t, `create role `+name+` login password 's3cr3t' `+options)
	t.Cleanup(func() { _, _ = s.owner.Exec(context.Background(), `drop role `+name) })
	_, host, _ := strings.Cut(s.url, "@")
	return name, "postgres://" + name + ":s3cr3t@" + host
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
func (s *testStore) sessions(t *testing.T) int {
	t.Helper()
	return queryValue[int](t, s.owner, `select count(*) from pg_stat_activity where datname = current_database() and application_name = 'coupond'`)
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

// wantClaim makes a claim and checks its outcome: a ClaimStatus, or an error of the package.
func (s *Store) wantClaim(t testing.TB, user, coupon string, want any) {
	t.Helper()
	status, err := s.Claim(t.Context(), user, coupon)
	wantOutcome(t, fmt.Sprintf("claim of %q by %q", coupon, user), status, err, want)
}

// wantCreate creates a coupon and checks the outcome: a CreateStatus, or an error of the package.
func (s *Store) wantCreate(t testing.TB, coupon string, amount int32, want any) {
	t.Helper()
	status, err := s.CreateCoupon(t.Context(), coupon, amount)
	wantOutcome(t, fmt.Sprintf("creation of %q", coupon), status, err, want)
}

// claimers returns the users that have a coupon, as Coupon returns them in memory.
func (s *Store) claimers(t testing.TB, coupon string) []string {
	t.Helper()
	c, found, err := s.Coupon(t.Context(), coupon)
	if err != nil || !found || c.Name != coupon {
		t.Fatalf("read of %q: %v, %v, %v", coupon, c, found, err)
	}
	users, _ := c.Whole()
	if len(users)+c.RemainingAmount != c.Amount {
		t.Errorf("%q: %d claimed and %d remain of %d", coupon, len(users), c.RemainingAmount, c.Amount)
	}
	return users
}

// wantReadError checks that reading a coupon fails with an error of the package, or internal.
func (s *Store) wantReadError(t testing.TB, coupon string, want any) {
	t.Helper()
	_, _, err := s.Coupon(t.Context(), coupon)
	wantOutcome(t, fmt.Sprintf("read of %q", coupon), "", err, want)
}

// wantOutcome checks an outcome: a status without an error, an error of the package without a
// status, or, if want is internal, an error that says nothing about the database.
func wantOutcome[S ~string](t testing.TB, what string, status S, err error, want any) {
	t.Helper()
	is := func(target error) bool { return errors.Is(err, target) }
	ok := status == want && err == nil
	switch want {
	case ErrUnavailable, ErrOverloaded:
		ok = status == "" && is(want.(error)) && !is(ErrOutcomeUnknown)
	case ErrOutcomeUnknown:
		ok = status == "" && is(ErrOutcomeUnknown)
	case internal:
		ok = status == "" && err != nil && !is(ErrUnavailable) && !is(ErrOverloaded) && !is(ErrOutcomeUnknown)
	}
	if !ok || strings.Contains(fmt.Sprint(err), "s3cr3t") {
		t.Errorf("%s: %q, %v; want %v, without a password", what, status, err, want)
	}
}

const internal = "an internal error"

// wantStatuses checks the outcomes of claims, as wantOutcome does.
func wantStatuses(t testing.TB, claims []*claim, want ...any) {
	t.Helper()
	for i, c := range claims {
		if i < len(want) {
			wantOutcome(t, fmt.Sprintf("claim %d, of %q by %q", i, c.coupon, c.user), c.status, c.err, want[i])
		}
	}
}

// querier is a connection or a pool.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// execSQL executes SQL.
func execSQL(t testing.TB, conn querier, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// queryValue returns the only value of a query.
func queryValue[V any](t testing.TB, conn querier, sql string, args ...any) V {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[V])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// recorder keeps the outcomes of calls, by caller.
type recorder struct {
	mu       sync.Mutex
	outcomes map[string]string
}

const (
	unknown = "unknown"
	refused = "not committed"
)

// record stores the outcome of a call: its status, unknown, refused or the text of its error.
func record[S ~string](r *recorder, caller string, status S, err error) {
	outcome := string(status)
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		outcome = unknown
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOverloaded):
		outcome = refused
	case err != nil:
		outcome = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outcomes == nil {
		r.outcomes = map[string]string{}
	}
	r.outcomes[caller] = outcome
}

// callers returns the callers with an outcome.
func (r *recorder) callers(outcome string) (callers []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for caller, o := range r.outcomes {
		if o == outcome {
			callers = append(callers, caller)
		}
	}
	return callers
}

// count returns the number of callers with an outcome.
func (r *recorder) count(outcome string) int { return len(r.callers(outcome)) }

// wantTrue checks the outcomes of claims, one for each user, of a coupon that these users have by
// now: each granted claim is stored, and none that was not committed.
func (r *recorder) wantTrue(t *testing.T, holders []string, stock int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	has := make(map[string]bool)
	for _, user := range holders {
		has[user] = true
	}
	counts := map[string]int{}
	for user, outcome := range r.outcomes {
		counts[outcome]++
		switch {
		case outcome == unknown,
			outcome == string(Claimed) && has[user],
			outcome == refused && !has[user],
			outcome == string(OutOfStock) && !has[user] && len(holders) == stock:
		default:
			t.Errorf("user %s: %s; stored: %v, with %d of %d claims", user, outcome, has[user], len(holders), stock)
		}
	}
	t.Log(counts)
}
