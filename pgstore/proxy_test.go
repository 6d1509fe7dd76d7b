package pgstore

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"scalable-coupon-system/db"
	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

// shardedStore is a Store on a proxy in front of shards.
type shardedStore struct {
	*testStore // on the proxy's database
	shards     []*testShard
}

// testShard is a database with a faultproxy in front of it, through which PL/Proxy reaches it.
type testShard struct {
	testStore        // without a Store
	address   string // for PL/Proxy, without a login
}

const partitions = 64

// onOne returns the servers of count shards that are databases of one server.
func onOne(server *pgtest.Server, count int) []*pgtest.Server {
	return slices.Repeat([]*pgtest.Server{server}, count)
}

// settingUp is held while a store creates the role of the proxy's login, if its server lacks it.
var settingUp sync.Mutex

// newShardedStore creates a shard on each server, and the proxy on the first one. It sets up the
// roles with shard.sql of deploy/shards: the proxy's login may execute the functions on the shards,
// and a NOLOGIN role has the user mapping.
func newShardedStore(t testing.TB, servers []*pgtest.Server, change ...func(*Config)) *shardedStore {
	t.Helper()
	at := servers[0].ForProxy(t).URL
	s := &shardedStore{testStore: &testStore{url: at, owner: connect(t, at)}}
	if err := db.ApplyProxy(t.Context(), s.owner, db.Options{}); err != nil {
		t.Fatal(err)
	}
	setUp, err := os.ReadFile("../deploy/shards/shard.sql")
	if err != nil {
		t.Fatal(err)
	}
	settingUp.Lock()
	defer settingUp.Unlock()
	var options []string
	for n, server := range servers {
		shard := newTestShard(t, server)
		s.shards = append(s.shards, shard)
		var owned []string
		for p := n; p < partitions; p += len(servers) {
			options = append(options, fmt.Sprintf("p%d '%s'", p, shard.address))
			owned = append(owned, strconv.Itoa(p))
		}
		sql := strings.NewReplacer(":'password'", "'of the test'", ":partitions", strconv.Itoa(partitions), ":'owned'", "'{"+strings.Join(owned, ",")+"}'").Replace(string(setUp))
		if queryValue[bool](t, shard.owner, `select exists (select from pg_catalog.pg_roles where rolname = 'coupon_proxy_login')`) {
			sql = sql[strings.Index(sql, "insert into coupond.shard"):]
		}
		execSQL(t, shard.owner, sql)
		execSQL(t, shard.owner, `alter role coupon_proxy_login set statement_timeout = '5s'`) // for a busy machine
	}
	for _, sql := range []string{
		`create server coupond foreign data wrapper plproxy options (` + strings.Join(options, ", ") + `)`,
		`grant usage on foreign server coupond to coupon_proxy`,
		`create user mapping for coupon_proxy server coupond options (user 'coupon_proxy_login', password 'of the test')`,
	} {
		execSQL(t, s.owner, sql)
	}

	s.Store = openStore(t, s.url, change...)
	if _, err := s.Ready(t.Context()); err != nil { // the first connection finds the proxy
		t.Error(err)
	}
	return s
}

func newTestShard(t testing.TB, server *pgtest.Server) *testShard {
	t.Helper()
	at := server.New(t).URL
	proxy, err := faultproxy.New(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	u, err := url.Parse(proxy.URL(at))
	if err != nil {
		t.Fatal(err)
	}
	return &testShard{
		testStore: testStore{url: at, owner: connect(t, at), proxy: proxy},
		address:   fmt.Sprintf("host=%s port=%s dbname=%s", u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/")),
	}
}

// couponsOf returns the names of coupons by shard, each names per shard.
func (s *shardedStore) couponsOf(t testing.TB, each int) [][]string {
	t.Helper()
	found := make([][]string, len(s.shards))
	for n := 0; slices.ContainsFunc(found, func(c []string) bool { return len(c) < each }); n++ {
		name := fmt.Sprint("coupon-", n)
		i := queryValue[int](t, s.owner, `select (hashtext($1) & $2) % $3`, name, partitions-1, len(s.shards))
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
	holders := s.shards[shard].holders(t, coupon)
	s.shards[shard].wantHolders(t, coupon, holders...)
	highest := queryValue[int](t, s.shards[shard].owner, `select coalesce(max(claim_number), 0) from coupond.claims where coupon_name = $1`, coupon)
	if highest != len(holders) {
		t.Errorf("coupon %q: %d claims, numbered up to %d", coupon, len(holders), highest)
	}
	return len(holders)
}

// What a proxy changes although nothing fails. The tests share one proxy, so each leaves it as it
// was, except the last two.
func TestProxy(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	change := func(cfg *Config) {
		cfg.ClaimQueue, cfg.SchemaVersion, cfg.Log = 4096, db.Version(), zerolog.New(log)
	}
	s := newShardedStore(t, onOne(startServer(t), 2), change)
	s.wantShards(t, 2, nil)
	other := s.shards[1]
	coupons := s.couponsOf(t, 9)
	ours, theirs := coupons[0][0], coupons[1][0]
	s.wantCreate(t, ours, 100, Created)
	s.wantCreate(t, theirs, 100, Created)

	// A sale is exact, and each coupon is on its own shard.
	t.Run("sale", func(t *testing.T) {
		s.wantClaim(t, "u", "none", CouponNotFound)
		s.wantSale(t, [][]string{coupons[0][1:5], coupons[1][1:5]})
	})

	// Only the functions' owner can use the connection to the shards, and on a shard the proxy's
	// login can execute the functions and nothing else.
	t.Run("roles", func(t *testing.T) {
		as := func(at, sql string) *pgx.Conn {
			conn := connect(t, at)
			execSQL(t, conn, sql)
			return conn
		}
		s.exec(t, `create role service login in role coupon_service`)
		service := as(s.url, `set session authorization service`)
		shard := as(other.url, `set session authorization coupon_proxy_login`)
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
		if seen := queryValue[*string](t, service, `select umoptions::text from pg_catalog.pg_user_mappings`); seen != nil {
			t.Error("the service can read the user mapping")
		}
	})

	// A coupon on which the proxy's map and the shard disagree is unavailable, and never reported
	// as not found.
	t.Run("movingCoupon", func(t *testing.T) {
		owned := queryValue[[]int32](t, other.owner, `select owned from coupond.shard`)
		other.exec(t, `update coupond.shard set owned = '{}'`)
		s.wantClaim(t, "moving", theirs, ErrUnavailable)
		s.wantCreate(t, theirs, 5, ErrUnavailable)
		s.wantReadError(t, theirs, ErrUnavailable)
		s.wantClaim(t, "moving", ours, Claimed)
		other.exec(t, `update coupond.shard set owned = $1`, owned)
		s.wantClaim(t, "moving", theirs, Claimed)
		s.claims(t, 1, theirs)
	})

	// A coupon that is locked on its shard does not fail the others. Its claim, ended by the shard's
	// time-out, is ambiguous: the proxy's errors prove nothing.
	t.Run("lockedCoupon", func(t *testing.T) {
		unlock := other.lock(t, theirs)
		s.wantClaim(t, "locked", theirs, ErrOutcomeUnknown)
		s.wantClaim(t, "locked", ours, Claimed)
		unlock()
		s.wantClaim(t, "locked", theirs, Claimed)
	})

	// A shard with an older schema is reported as unhealthy, but its claims are sent.
	t.Run("olderSchema", func(t *testing.T) {
		other.exec(t, `update coupond.schema_version set version = version - 1`)
		s.wantShards(t, 2, map[int]string{1: "run coupond migrate"})
		s.wantClaim(t, "older schema", theirs, Claimed)
		other.exec(t, `update coupond.schema_version set version = version + 1`)
		s.wantShards(t, 2, nil)
	})

	// The same holds for a shard on which the proxy's sessions have a setting that breaks a promise.
	t.Run("sessionProblem", func(t *testing.T) {
		set := func(value string) {
			other.set(t, "synchronous_commit", value)
			other.proxy.CutAll()
		}
		set("off")
		s.wantShards(t, 2, map[int]string{1: "synchronous_commit is off"})
		s.wantClaim(t, "session problem", theirs, Claimed)
		set("on")
		s.wantShards(t, 2, nil)
	})

	// Warnings of triggers and of auto_explain on a shard do not make an outcome unknown.
	t.Run("otherWarnings", func(t *testing.T) {
		other.warn(t)
		other.proxy.CutAll()
		s.wantShards(t, 2, nil)
		for _, claims := range [][]*claim{newClaims("w1", theirs), newClaims("w2", theirs, "w3", theirs)} {
			s.sendWithin(t, longTimeout, claims)
			wantStatuses(t, claims, Claimed)
		}
	})

	// A proxy of an older program has no map: one batcher then sends the claims of all shards, and
	// all outcomes are exact.
	t.Run("olderProxy", func(t *testing.T) {
		s.Close()
		s.exec(t, `drop function coupond.coupon_shards()`)
		s.Store = openStore(t, s.url, change)
		if _, err := s.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		const message = "the map of shards cannot be read from the proxy"
		wait.For(t, "the log message", func() bool { return len(log.with(t, message)) > 0 })
		s.wantSale(t, [][]string{coupons[0][5:], coupons[1][5:]})
		if shards := s.Store.proxy.states(); shards != nil {
			t.Errorf("shards are %v, want none", shards)
		}
		if n := len(log.with(t, message)); n != 1 {
			t.Errorf("logged %d times, want 1", n)
		}
	})

	// A status that the proxy or this program does not know is an internal error, for the claims of
	// that shard only.
	s.Store = openStore(t, s.url, change)
	t.Run("unknownStatus", func(t *testing.T) {
		const newStatus = `alter type coupond.claim_status add value 'not_yet'`
		other.exec(t, newStatus)
		other.exec(t, `
create or replace function coupond.claim_coupon(p_user text, p_coupon text)
returns coupond.claim_status
language sql
as $$ select 'not_yet'::coupond.claim_status $$`)
		s.wantClaim(t, "before", theirs, internal)
		s.wantClaim(t, "before", ours, Claimed)
		s.exec(t, newStatus)
		s.wantClaim(t, "after", theirs, internal)
		s.wantClaim(t, "after", ours, Claimed)
	})
}

// wantSale creates coupons, by shard, and sells them out: 40 users claim each of them twice.
func (s *shardedStore) wantSale(t *testing.T, coupons [][]string) {
	t.Helper()
	const amount, users = 7, 40
	all := slices.Concat(coupons...)
	for _, coupon := range all {
		s.wantCreate(t, coupon, amount, Created)
		s.wantCreate(t, coupon, amount, CouponExists)
	}
	var mu sync.Mutex
	counts := make(map[string]map[ClaimStatus]int) // by coupon
	for _, coupon := range all {
		counts[coupon] = make(map[ClaimStatus]int)
	}
	var clients sync.WaitGroup
	for user := range users {
		clients.Go(func() {
			for n := range 2 * len(all) {
				coupon := all[(n+user)%len(all)]
				status, err := s.Claim(t.Context(), fmt.Sprint("u", user), coupon)
				if err != nil {
					t.Errorf("user %d, %s: %v", user, coupon, err)
				}
				mu.Lock()
				counts[coupon][status]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	for shard := range coupons {
		for _, coupon := range coupons[shard] {
			if got := counts[coupon]; got[Claimed] != amount || got[AlreadyClaimed] != amount || got[OutOfStock] != 2*(users-amount) {
				t.Errorf("%s: %v", coupon, got)
			}
			if n := s.claims(t, shard, coupon); n != amount {
				t.Errorf("%s: %d claims on shard %d", coupon, n, shard)
			}
			if users := s.claimers(t, coupon); len(users) != amount {
				t.Errorf("%s: %d claimers", coupon, len(users))
			}
		}
	}
}
