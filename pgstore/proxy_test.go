package pgstore

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// shardedStore is a Store on a proxy in front of shards, each of them a server of its own.
type shardedStore struct {
	*testStore
	front  *pgtest.Server // the server of the proxy
	shards []*pgtest.Server
	urls   []string // of the shards' databases, for their owner
	proxy  string   // of the proxy's database, for its owner
}

const partitions = 64

// newShardedStore starts the shards and the proxy and sets up the roles with shard.sql of
// deploy/shards: the proxy's login may execute the functions on the shards, and a NOLOGIN role has
// the user mapping.
func newShardedStore(t testing.TB, shards int, change ...func(*Config)) *shardedStore {
	t.Helper()
	proxy := startServer(t)
	s := &shardedStore{proxy: proxy.ForProxy(t).URL, front: proxy}
	admin := connect(t, s.proxy)
	if err := db.ApplyProxy(t.Context(), admin, db.Options{}); err != nil {
		t.Fatal(err)
	}

	options := make([]string, partitions)
	for i := range shards {
		server := pgtest.StartServer(t, map[string]string{"fsync": "off", "wal_level": "logical"})
		at := server.New(t).URL
		s.shards, s.urls = append(s.shards, server), append(s.urls, at)
		owned := make([]int32, 0, partitions)
		for p := i; p < partitions; p += shards {
			options[p] = fmt.Sprintf("p%d '%s'", p, libpq(t, at))
			owned = append(owned, int32(p))
		}
		shard := connect(t, at)
		setUp, err := os.ReadFile("../deploy/shards/shard.sql")
		if err != nil {
			t.Fatal(err)
		}
		list := strings.ReplaceAll(strings.Trim(fmt.Sprint(owned), "[]"), " ", ",")
		for _, sql := range []string{
			strings.NewReplacer(":'password'", "'of the test'", ":partitions", strconv.Itoa(partitions), ":'owned'", "'{"+list+"}'").Replace(string(setUp)),
			// So that the test passes on a busy machine.
			`alter role coupon_proxy_login set statement_timeout = '5s'`,
		} {
			execSQL(t, shard, sql)
		}
	}
	for _, sql := range []string{
		`create server coupond foreign data wrapper plproxy options (` + strings.Join(options, ", ") + `)`,
		`grant usage on foreign server coupond to coupon_proxy`,
		`create user mapping for coupon_proxy server coupond options (user 'coupon_proxy_login', password 'of the test')`,
	} {
		execSQL(t, admin, sql)
	}

	s.testStore = &testStore{Store: openStore(t, s.proxy, change...)}
	if _, err := s.Ready(t.Context()); err != nil { // the first connection finds the proxy
		t.Error(err)
	}
	return s
}

// libpq returns the connection string of a shard for PL/Proxy, without a login.
func libpq(t testing.TB, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("host=%s port=%s dbname=%s", u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"))
}

// couponsOf returns the names of coupons by shard, each names per shard.
func (s *shardedStore) couponsOf(t testing.TB, each int) [][]string {
	t.Helper()
	conn := connect(t, s.proxy)
	found := make([][]string, len(s.urls))
	for n := 0; slices.ContainsFunc(found, func(c []string) bool { return len(c) < each }); n++ {
		name := fmt.Sprint("coupon-", n)
		i := queryValue[int](t, conn, `select (hashtext($1) & $2) % $3`, name, partitions-1, len(s.urls))
		if len(found[i]) < each {
			found[i] = append(found[i], name)
		}
	}
	return found
}

// sell creates each coupons per shard, each with a stock of amount.
func (s *shardedStore) sell(t testing.TB, each int, amount int32) [][]string {
	t.Helper()
	coupons := s.couponsOf(t, each)
	for _, coupon := range slices.Concat(coupons...) {
		s.wantCreate(t, coupon, amount, Created)
	}
	return coupons
}

// claims returns the number of claims of a coupon on a shard, and checks that the stock and the
// claim numbers agree with it.
func (s *shardedStore) claims(t *testing.T, shard int, coupon string) (count int) {
	t.Helper()
	conn := connect(t, s.urls[shard])
	var sold, maxNumber int
	if err := conn.QueryRow(t.Context(), `
select
  (select count(*) from coupond.claims where coupon_name = $1),
  (select coalesce(max(claim_number), 0) from coupond.claims where coupon_name = $1),
  (select amount - remaining_amount from coupond.coupons where name = $1)`, coupon).Scan(&count, &maxNumber, &sold); err != nil {
		t.Fatal(err)
	}
	if count != maxNumber || count != sold {
		t.Errorf("coupon %q: %d claims, numbered up to %d, and the stock shows %d sold", coupon, count, maxNumber, sold)
	}
	return count
}

// A sale through a proxy is exact, and each coupon is on its own shard.
func TestProxy_sale(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 3, func(cfg *Config) { cfg.ClaimQueue = 4096 })
	wantReady(t, s.Store)
	const each, amount, users = 4, 7, 40
	coupons := s.couponsOf(t, each)
	all := slices.Concat(coupons...)
	for _, coupon := range all {
		s.wantCreate(t, coupon, amount, Created)
		s.wantCreate(t, coupon, amount, CouponExists)
	}
	s.wantClaim(t, "u", "none", CouponNotFound)

	var mu sync.Mutex
	counts := make(map[string]map[ClaimStatus]int) // by coupon
	var clients sync.WaitGroup
	for user := range users {
		clients.Go(func() {
			for n := range 2 * len(all) { // each coupon twice
				coupon := all[(n+user)%len(all)]
				status, err := s.Claim(t.Context(), fmt.Sprint("u", user), coupon)
				if err != nil {
					t.Errorf("user %d, %s: %v", user, coupon, err)
				}
				mu.Lock()
				if counts[coupon] == nil {
					counts[coupon] = make(map[ClaimStatus]int)
				}
				counts[coupon][status]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	for i := range coupons {
		for _, coupon := range coupons[i] {
			got := counts[coupon]
			if got[Claimed] != amount || got[AlreadyClaimed] != amount || got[OutOfStock] != 2*(users-amount) {
				t.Errorf("%s: %v", coupon, got)
			}
			if n := s.claims(t, i, coupon); n != amount {
				t.Errorf("%s: %d claims on shard %d", coupon, n, i)
			}
			read, found, err := s.Coupon(t.Context(), coupon)
			if err != nil || !found || read.RemainingAmount != 0 {
				t.Errorf("%s: %+v, %v, %v", coupon, read, found, err)
			}
		}
	}
}

// When one shard is down, its coupons are refused, the other shard's are not, and no claim gets a
// wrong outcome. When it is up again, its claims are made without a restart.
func TestProxy_deadShard(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 2, 100)
	mixed := func(round string) []*claim {
		return newClaims(round, coupons[0][0], round, coupons[1][0], round, coupons[0][1], round, coupons[1][1])
	}
	claims := mixed("before")
	s.sendWithin(t, longTimeout, claims)
	for _, c := range claims {
		if c.status != Claimed {
			t.Errorf("before: %s, %s, %v", c.coupon, c.status, c.err)
		}
	}

	if err := s.shards[1].Kill(); err != nil {
		t.Fatal(err)
	}
	// If a split call fails, the part of the running shard may have been committed. So its coupons
	// are claimed alone first …
	for i, coupon := range coupons[0] {
		s.wantClaim(t, fmt.Sprint("meanwhile", i), coupon, Claimed)
	}
	// … and then in a mixed batch, where each claim is either made or reported as unknown.
	claims = mixed("down")
	s.sendWithin(t, longTimeout, claims)
	for _, c := range claims {
		switch {
		case slices.Contains(coupons[1], c.coupon):
			if !errors.Is(c.err, ErrOutcomeUnknown) && !errors.Is(c.err, ErrUnavailable) {
				t.Errorf("claim on the dead shard: %q, %v", c.status, c.err)
			}
		case c.status != Claimed && !errors.Is(c.err, ErrOutcomeUnknown):
			t.Errorf("claim on the running shard: %q, %v", c.status, c.err)
		}
	}
	s.wantReadError(t, coupons[1][0], ErrUnavailable)
	wantReady(t, s.Store)
	for _, coupon := range coupons[0] {
		if n := s.claims(t, 0, coupon); n != 3 {
			t.Errorf("%s: %d claims", coupon, n)
		}
	}

	if err := s.shards[1].Start(); err != nil {
		t.Fatal(err)
	}
	wait.For(t, "reads on the restarted shard", func() bool {
		_, found, err := s.Coupon(t.Context(), coupons[1][0])
		return found && err == nil
	})
	for _, coupon := range coupons[1] {
		before := s.claims(t, 1, coupon)
		wait.For(t, "claims on the restarted shard", func() bool {
			_, err := s.Claim(t.Context(), "again", coupon)
			return err == nil
		})
		if n := s.claims(t, 1, coupon); n != before+1 {
			t.Errorf("%s: %d claims, want %d", coupon, n, before+1)
		}
	}
}

// A coupon on which the proxy's map and the shard disagree is unavailable, and never reported as
// not found.
func TestProxy_movingCoupon(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	coupons := s.couponsOf(t, 1)
	ours, moving := coupons[0][0], coupons[1][0]
	for _, coupon := range []string{ours, moving} {
		s.wantCreate(t, coupon, 100, Created)
	}
	shard := connect(t, s.urls[1])
	own := func(sql string) {
		t.Helper()
		execSQL(t, shard, sql)
	}
	own(`update coupond.shard set owned = '{}'`)

	s.wantClaim(t, "u", moving, ErrUnavailable)
	s.wantCreate(t, moving, 5, ErrUnavailable)
	s.wantReadError(t, moving, ErrUnavailable)
	s.wantClaim(t, "u", ours, Claimed)
	own(`update coupond.shard set owned = (select array_agg(p) from generate_series(1, 63, 2) as p)`)
	s.wantClaim(t, "u", moving, Claimed)
	if n := s.claims(t, 1, moving); n != 1 {
		t.Errorf("%d claims, want 1", n)
	}
}

// A coupon that is locked on its shard does not fail the others. Its claim, ended by the shard's
// time-out, is ambiguous: the proxy's errors prove nothing.
func TestProxy_lockedCoupon(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	coupons := s.sell(t, 1, 100)
	holder := connect(t, s.urls[1])
	execSQL(t, holder, `begin`)
	execSQL(t, holder, `select from coupond.coupons for update`)
	s.wantClaim(t, "u", coupons[1][0], ErrOutcomeUnknown)
	s.wantClaim(t, "u", coupons[0][0], Claimed)
	execSQL(t, holder, `rollback`)
	s.wantClaim(t, "u", coupons[1][0], Claimed)
}

// Only the functions' owner can use the connection to the shards, and on a shard the proxy's login
// can execute the functions and nothing else.
func TestProxy_roles(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 1)
	as := func(at, sql string) *pgx.Conn {
		conn := connect(t, at)
		execSQL(t, conn, sql)
		return conn
	}
	execSQL(t, connect(t, s.proxy), `create role service login in role coupon_service`)
	service := as(s.proxy, `set session authorization service`)
	shard := as(s.urls[0], `set session authorization coupon_proxy_login`)
	for _, test := range []struct {
		conn *pgx.Conn
		sql  string
	}{
		{service, `create function coupond.mine() returns integer language plproxy as $$ cluster 'coupond'; run on 0; select 1; $$`},
		{service, `set role coupon_proxy`},
		{service, `alter function coupond.get_coupon(text) security invoker`},
		{service, `alter server coupond options (set p0 'host=elsewhere')`},
		{service, `select umoptions from pg_catalog.pg_user_mapping`},
		{shard, `select from coupond.coupons`},
		{shard, `select from coupond.shard`},
		{shard, `update coupond.shard set owned = '{}'`},
		{shard, `create table coupond.mine ()`},
	} {
		if _, err := test.conn.Exec(t.Context(), test.sql); sqlState(err) != "42501" {
			t.Errorf("%s: %v", test.sql, err)
		}
	}
	var seen *string
	if err := service.QueryRow(t.Context(), `select umoptions::text from pg_catalog.pg_user_mappings`).Scan(&seen); err != nil || seen != nil {
		t.Errorf("the service can read the user mapping: %v, %v", seen, err)
	}
}

// A shard that becomes silent, but is not dead, delays calls in flight for ClaimTimeout at most,
// and the other shard's claims are made: the stuck connection to the proxy is closed.
// TestShards_deadAndSilent tests the calls that come later.
func TestProxy_silentShard(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 1, 100)
	s.silence(t, 1)

	start := time.Now()
	s.wantClaim(t, "u", coupons[1][0], ErrOutcomeUnknown)
	took := time.Since(start)
	t.Logf("the claim on the silent shard was answered after %v", took)
	if took > s.timeout+time.Second {
		t.Errorf("the claim on the silent shard was answered after %v, want at most %v", took, s.timeout)
	}
	admin := connect(t, s.proxy)
	wait.For(t, "the proxy to end the session of that call, while the shard is silent", func() bool {
		left := queryValue[int](t, admin, `select count(*) from pg_stat_activity where query = $1 and state = 'active'`, claimCouponsSQL)
		return left == 0
	})
	start = time.Now()
	s.wantClaim(t, "u", coupons[0][0], Claimed)
	t.Logf("the claim on the other shard was answered after %v", time.Since(start))
}
