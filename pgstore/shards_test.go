package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/internal/pgtest"
	"scalable-coupon-system/internal/wait"
)

func TestIsPartitionMap(t *testing.T) {
	t.Parallel()
	for _, numbers := range [][]int{{0}, {0, 0}, {0, 1}, {0, 1, 0, 1}, {0, 1, 2, 3}, {0, 0, 2, 0}} {
		if !isPartitionMap(numbers) {
			t.Errorf("%v: got false, want true", numbers)
		}
	}
	for _, numbers := range [][]int{nil, {0, 1, 2}, {1, 1}, {0, 2}, {0, -1}, {0, 0, 1, 1}} {
		if isPartitionMap(numbers) {
			t.Errorf("%v: got true, want false", numbers)
		}
	}
}

// A silent shard is found during the first attempt of a call, even if its claims were queued for a
// third of the time: the retry is then not sent.
func TestHealthCheckTimes_fitIntoTheFirstAttempt(t *testing.T) {
	t.Parallel()
	for _, claim := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		sent := time.Now()
		left, cancel := context.WithDeadline(t.Context(), sent.Add(claim-claim/3))
		attempt, cancelAttempt := firstAttempt(left)
		ends, _ := attempt.Deadline()
		cancelAttempt()
		cancel()
		if found, took := healthCheckInterval(claim)+unreachableAfter(claim), ends.Sub(sent); found >= took {
			t.Errorf("ClaimTimeout %v: a silent shard is found after %v, and the first attempt ends after %v", claim, found, took)
		}
	}
}

// wantShards waits until count shards are known, and exactly those in unhealthy are not healthy,
// for a reason that contains the given words.
func (s *shardedStore) wantShards(t testing.TB, count int, unhealthy map[int]string) {
	t.Helper()
	wait.For(t, fmt.Sprintf("%d shards, of which %v are not healthy", count, unhealthy), func() bool {
		all := s.Store.proxy.states()
		return len(all) == count && !slices.ContainsFunc(all, func(shard Shard) bool {
			words, found := unhealthy[shard.Number]
			return found == (shard.Reason == "") || !strings.Contains(shard.Reason, words)
		})
	})
}

// Shards that are dead or silent, or that move. The tests share a server.
func TestShards(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	for name, test := range map[string]func(*testing.T, *pgtest.Server){
		"deadAndSilent":              testDeadAndSilent,
		"checkedConcurrently":        testCheckedConcurrently,
		"slowConnect":                testSlowConnect,
		"fewSessionsForASilentShard": testFewSessionsForASilentShard,
		"mapChanges":                 testMapChanges,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, server)
		})
	}
}

// One shard is dead and one is silent. As soon as that is known, claims of their coupons return
// ErrUnavailable at once, and the other shards are not affected. Claims in flight at the time
// return ErrOutcomeUnknown. When the shards answer again, their claims are made without a restart.
func testDeadAndSilent(t *testing.T, server *pgtest.Server) {
	s := newShardedStore(t, onOne(server, 4), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 2, 1_000_000)
	s.wantShards(t, 4, nil)
	const dead, silent = 1, 2
	s.shards[dead].proxy.SetDown(true)
	s.shards[silent].proxy.Freeze()
	before := time.Now()
	s.wantClaim(t, "first", coupons[silent][0], ErrOutcomeUnknown)
	if took := time.Since(before); took > s.timeout+time.Second {
		t.Errorf("the claim in flight on the silent shard was answered after %v, want at most %v", took, s.timeout)
	}
	wait.For(t, "the proxy to end the session of that call, while the shard is silent", func() bool {
		return queryValue[int](t, s.owner, `select count(*) from pg_stat_activity where datname = current_database() and query = $1 and state = 'active'`, claimCouponSQL) == 0
	})
	s.wantShards(t, 4, map[int]string{dead: "gets no answer", silent: "does not answer"})
	wantReady(t, s.Store)

	// If a call is split, as without a map, the part of a running shard may have been committed.
	claims := newClaims("split", coupons[0][0], "split", coupons[dead][0], "split", coupons[3][0])
	s.sendWithin(t, longTimeout, claims)
	for _, c := range claims {
		if ok := c.status == Claimed; !errors.Is(c.err, ErrOutcomeUnknown) && ok == (c.coupon == coupons[dead][0]) {
			t.Errorf("a split call: %s: %q, %v", c.coupon, c.status, c.err)
		}
	}

	// Nothing is sent to these two, so no call waits or fails.
	failures := func() (all []string) {
		for name, value := range s.scrape(t) {
			if strings.HasPrefix(name, "coupond_database_call_failures_total") {
				all = append(all, name+" "+value)
			}
		}
		slices.Sort(all)
		return all
	}
	failed := failures()
	for n := range 100 {
		for shard := range coupons {
			coupon, user := coupons[shard][n%2], fmt.Sprint("u", n)
			if shard != dead && shard != silent {
				s.wantClaim(t, user, coupon, Claimed)
				continue
			}
			s.wantClaim(t, user, coupon, ErrUnavailable)
			s.wantReadError(t, coupon, ErrUnavailable)
			s.wantCreate(t, coupon, 1, ErrUnavailable)
		}
	}
	if now := failures(); !slices.Equal(now, failed) {
		t.Errorf("failed calls are %v, want %v as before: a call was sent to an unreachable shard", now, failed)
	}
	s.wantSamples(t, map[string]string{
		`coupond_shard_healthy{shard="0"}`: "1",
		`coupond_shard_healthy{shard="1"}`: "0",
		`coupond_shard_healthy{shard="2"}`: "0",
		`coupond_shard_healthy{shard="3"}`: "1",
	})
	if b := s.serverOf(coupons[silent][0]).batcher; b.load() != (load{}) {
		t.Errorf("silent shard: %+v, want no pending claims and no calls", b.load())
	}

	s.shards[silent].proxy.Thaw()
	s.shards[dead].proxy.SetDown(false)
	s.wantShards(t, 4, nil)
	for shard := range coupons {
		s.wantClaim(t, "last", coupons[shard][0], Claimed)
		least, most := 51, 52 // perhaps with that of the split call
		switch shard {
		case dead:
			least, most = 1, 1 // the last
		case silent:
			least, most = 1, 2 // and perhaps the first, which was ambiguous
		}
		if n := s.claims(t, shard, coupons[shard][0]); n < least || n > most {
			t.Errorf("shard %d has %d claims; want %d to %d", shard, n, least, most)
		}
	}
}

// A silent shard does not delay the health checks of the others.
func testCheckedConcurrently(t *testing.T, server *pgtest.Server) {
	const count = 3
	s := newShardedStore(t, onOne(server, count))
	s.wantShards(t, count, nil)
	for _, shard := range s.shards {
		shard.proxy.Freeze()
	}
	var apart float64 // seconds
	wait.For(t, "a health check of each shard", func() bool {
		var checks int
		if err := s.owner.QueryRow(t.Context(), `
select count(*), coalesce(extract(epoch from max(query_start) - min(query_start)), 0)::float8
from pg_stat_activity
where datname = current_database() and application_name = 'coupond' and query = $1 and state = 'active'`, shardCheckSQL).Scan(&checks, &apart); err != nil {
			t.Fatal(err)
		}
		return checks == count
	})
	// The shards were stopped one after the other, so the checks may be a round apart.
	if bound := unreachableAfter(s.timeout).Seconds(); apart >= bound {
		t.Errorf("the health checks started within %v s, want less than %v s", apart, bound)
	}
}

// A slow connection to the proxy does not count against the shards.
func testSlowConnect(t *testing.T, server *pgtest.Server) {
	log := new(logBuffer)
	s := newShardedStore(t, onOne(server, 2), func(cfg *Config) {
		cfg.URL, cfg.ClaimTimeout, cfg.Log = withParam(cfg.URL, "post_auth_delay", "1"), 4*time.Second, zerolog.New(log) // unreachable after 0.8 s
	})
	s.wantShards(t, 2, nil)
	if logged := log.with(t, "the shard is not healthy"); len(logged) > 0 {
		t.Error(logged)
	}
}

// Health checks of a silent shard use one session on the proxy after the other, and the proxy ends
// each of them while the shard is still silent. Close ends the last one.
func testFewSessionsForASilentShard(t *testing.T, server *pgtest.Server) {
	s := newShardedStore(t, onOne(server, 2), func(cfg *Config) { cfg.ClaimTimeout = 2 * time.Second })
	s.wantShards(t, 2, nil)
	start := time.Now()
	s.shards[1].proxy.Freeze()
	s.wantShards(t, 2, map[int]string{1: "does not answer"})
	sessions := func(condition string) []int {
		t.Helper()
		return queryValue[[]int](t, s.owner, `
select coalesce(array_agg(pid), '{}')
from pg_stat_activity
where datname = current_database() and application_name = 'coupond' and query = $1 and `+condition, shardCheckSQL)
	}
	var waiting []int
	wait.For(t, "a health check without an answer", func() bool {
		waiting = sessions(`state = 'active' and clock_timestamp() - query_start > interval '0.2 s'`)
		return len(waiting) > 0
	})
	// Whenever the proxy notices that a health check was given up, there was at most one for each
	// ClaimTimeout. Those of the other shard need a session as well.
	used, maxAtOnce := make(map[int]bool), 0
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		pids := sessions(`true`)
		for _, pid := range pids {
			used[pid] = true
		}
		maxAtOnce = max(maxAtOnce, len(pids))
	}
	took := time.Since(start)
	t.Logf("%d sessions in %v, %d at once", len(used), took, maxAtOnce)
	if checks := int(took/s.timeout) + 1; len(used) > checks+2 {
		t.Errorf("%d sessions in %v, want at most %d", len(used), took, checks+2)
	}
	wait.For(t, "the proxy to end the first session", func() bool { return !slices.Contains(sessions(`true`), waiting[0]) })
	s.Close()
	wait.For(t, "the sessions to end", func() bool { return len(sessions(`true`)) == 0 })
}

// A shard that has lost its synchronous standbys answers reads and does not commit: no more writes
// are sent to it. Whatever the number of clients, few sessions are left waiting, on the shard and
// on the proxy, and the other shard is not affected. Claims that returned ErrUnavailable were not
// made. When the standby answers, claims are made without a restart.
func TestShards_commitsHang(t *testing.T) {
	t.Parallel()
	const maxConns, clientCount, stuck = 8, 40, 1
	servers := []*pgtest.Server{startServer(t), startServer(t)}
	s := newShardedStore(t, servers, func(cfg *Config) { cfg.ClaimTimeout, cfg.MaxConns = 4*time.Second, maxConns })
	coupons := s.sell(t, 20, 1_000_000)
	unsold := s.couponsOf(t, 1500)[stuck][20:]
	s.wantShards(t, 2, nil)
	shard := s.shards[stuck]

	var claims [2]recorder // by shard
	var creations recorder
	stop := concurrently(t, clientCount, func(client, n int) {
		time.Sleep(20 * time.Millisecond)
		at, user := client%2, fmt.Sprint("u", client, "-", n)
		if fresh := client/2 + clientCount/2*(n/3); at == stuck && n%3 == 0 && fresh < len(unsold) { // does not go through a batcher
			status, err := s.CreateCoupon(t.Context(), unsold[fresh], 1)
			record(&creations, user, status, err)
			return
		}
		status, err := s.Claim(t.Context(), user, coupons[at][n%len(coupons[at])])
		record(&claims[at], user, status, err)
	})
	shard.loseStandby(t)
	for _, r := range []*recorder{&claims[0], &claims[1], &creations} {
		r.mu.Lock()
		clear(r.outcomes)
		r.mu.Unlock()
	}

	// An administrator ends the wait of the first claims: they are committed, but not on a standby.
	wait.For(t, "a claim that waits for the standby", func() bool { return shard.sessionsWaiting(t) > 0 })
	shard.exec(t, cancelWaiting)
	time.Sleep(2 * s.timeout)
	waiting, found := shard.sessionsWaiting(t), s.Store.proxy.states()
	active := queryValue[int](t, s.owner, `select count(*) from pg_stat_activity where application_name = 'coupond' and state = 'active'`)
	if _, _, err := s.Coupon(t.Context(), coupons[stuck][0]); err != nil {
		t.Errorf("read: %v", err)
	}
	wantReady(t, s.Store)
	stop()
	ambiguous, not := claims[stuck].count(unknown)+creations.count(unknown), claims[stuck].count(refused)+creations.count(refused)
	t.Logf("%d ambiguous and %d not committed; %d sessions wait for the standby, %d sessions of the proxy are active", ambiguous, not, waiting, active)
	if waiting > maxConns || active > maxConns {
		t.Errorf("%d sessions wait for the standby and %d of the proxy are active, want at most %d", waiting, active, maxConns)
	}
	if not < 5*ambiguous {
		t.Errorf("%d calls of the shard were not committed and %d are ambiguous; want at least 5 times as many", not, ambiguous)
	}
	if made := claims[0].count(string(Claimed)); made < 10*(claims[0].count(unknown)+claims[0].count(refused)) || made == 0 {
		t.Errorf("%d claims of the other shard were made, %d not; want at least 10 times as many", made, claims[0].count(unknown)+claims[0].count(refused))
	}
	for at := range claims {
		if n := len(claims[at].outcomes) - claims[at].count(string(Claimed)) - claims[at].count(unknown) - claims[at].count(refused); n > 0 {
			t.Errorf("%d claims of shard %d had another outcome", n, at)
		}
	}
	if len(found) != 2 || found[0].Reason != "" || !strings.Contains(found[stuck].Reason, commitsHang) {
		t.Errorf("shards are %v; want shard 1 not to complete commits", found)
	}

	shard.setStandbyName(t, "")
	s.wantShards(t, 2, nil)
	s.wantClaim(t, "after", coupons[stuck][0], Claimed)
	wait.For(t, "all sessions to end their wait", func() bool { return shard.sessionsWaiting(t) == 0 })
	if done := queryValue[int](t, shard.owner, `select count(*) from coupond.claims where user_id = any ($1)`, claims[stuck].callers(refused)); done > 0 {
		t.Errorf("%d claims that returned ErrUnavailable were made", done)
	}
	for _, coupon := range coupons[stuck] {
		s.claims(t, stuck, coupon)
	}
}

// A claim that the standby does not have is never reported as made, neither by the claim itself nor
// by a later one.
func TestShards_claimMissingOnTheStandby(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, onOne(startServer(t), 1), func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 1, 100)
	s.wantShards(t, 1, nil)
	s.shards[0].loseStandby(t)
	for n := range 3 {
		if status, err := s.Claim(t.Context(), "u", coupons[0][0]); err == nil {
			t.Errorf("claim %d: %q, want an error", n+1, status)
		}
	}
}

// When partitions move, claims are grouped by the new map, and the state of a shard is reset,
// because its number may mean another server.
func testMapChanges(t *testing.T, server *pgtest.Server) {
	s := newShardedStore(t, onOne(server, 2))
	s.wantShards(t, 2, nil)
	s.shards[0].proxy.SetDown(true)
	s.wantShards(t, 2, map[int]string{0: "gets no answer"})
	// Move partition 0 to the running shard, which becomes number 0; the dead one becomes number 2.
	execSQL(t, s.owner, `alter server coupond options (set p0 '`+s.shards[1].address+`')`)
	s.wantShards(t, 2, map[int]string{2: "gets no answer"})
	// Move the other partitions as well, so that only one shard is left.
	for p := 2; p < partitions; p += 2 {
		execSQL(t, s.owner, fmt.Sprintf(`alter server coupond options (set p%d '%s')`, p, s.shards[1].address))
	}
	s.wantShards(t, 1, nil)
	if reason := s.serverOf("coupon").refusalReason(); reason != "" {
		t.Error(reason)
	}
}
