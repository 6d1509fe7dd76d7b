package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/db"
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
	var all []Shard
	asWanted := func(shard Shard) bool {
		words, want := unhealthy[shard.Number]
		return want == (shard.Reason != "") && strings.Contains(shard.Reason, words)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		all = s.Store.proxy.states()
		if len(all) == count && !slices.ContainsFunc(all, func(shard Shard) bool { return !asWanted(shard) }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("shards are %v; want %d, of which %v are not healthy", all, count, unhealthy)
		}
	}
}

// silence stops the processes of a shard, so that it neither answers nor closes its connections;
// resume continues them.
func (s *shardedStore) silence(t *testing.T, shard int) (resume func()) {
	t.Helper()
	pids := []int{s.shards[shard].Pid()}
	sessions := queryValue[[]int](t, connect(t, s.urls[shard]), `select array_agg(pid) from pg_stat_activity where usename = 'coupon_proxy_login'`)
	pids = append(pids, sessions...)
	signal := func(sig syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil && sig == syscall.SIGSTOP {
				t.Error(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	resume = sync.OnceFunc(func() { signal(syscall.SIGCONT) })
	t.Cleanup(resume)
	return resume
}

// One shard is dead and one is silent. As soon as that is known, claims of their coupons return
// ErrUnavailable at once, and the other shards are not affected. Claims in flight at the time
// return ErrOutcomeUnknown. When the shards answer again, their claims are made without a restart.
func TestShards_deadAndSilent(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 4, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 2, 1_000_000)
	s.wantShards(t, 4, nil)
	const dead, silent = 1, 2
	if err := s.shards[dead].Kill(); err != nil {
		t.Fatal(err)
	}
	resume := s.silence(t, silent)
	before := time.Now()
	s.wantClaim(t, "first", coupons[silent][0], ErrOutcomeUnknown)
	t.Logf("the claim in flight on the silent shard was answered after %v", time.Since(before))
	s.wantShards(t, 4, map[int]string{dead: "gets no answer", silent: "does not answer"})
	wantReady(t, s.Store)

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
	start := time.Now()
	for n := range 100 {
		for shard := range coupons {
			coupon, user := coupons[shard][n%2], fmt.Sprint("u", n)
			status, err := s.Claim(t.Context(), user, coupon)
			switch shard {
			case dead, silent:
				if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
					t.Errorf("claim on shard %d: %q, %v; want ErrUnavailable", shard, status, err)
				}
				s.wantReadError(t, coupon, ErrUnavailable)
				s.wantCreate(t, coupon, 1, ErrUnavailable)
			default:
				if status != Claimed {
					t.Errorf("claim on shard %d: %q, %v", shard, status, err)
				}
			}
		}
	}
	t.Logf("400 claims, and 200 refused reads and 200 refused creations, took %v", time.Since(start))
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

	resume()
	if err := s.shards[dead].Start(); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 4, nil)
	for shard := range coupons {
		s.wantClaim(t, "last", coupons[shard][0], Claimed)
		least, most := 51, 51
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
func TestShards_checkedConcurrently(t *testing.T) {
	t.Parallel()
	const count = 3
	s := newShardedStore(t, count)
	s.wantShards(t, count, nil)
	for shard := range count {
		s.silence(t, shard)
	}
	admin := connect(t, s.proxy)
	var apart float64 // seconds
	wait.For(t, "a health check of each shard", func() bool {
		var checks int
		if err := admin.QueryRow(t.Context(), `
select count(*), coalesce(extract(epoch from max(query_start) - min(query_start)), 0)::float8
from pg_stat_activity
where application_name = 'coupond' and query = $1 and state = 'active'`, shardCheckSQL).Scan(&checks, &apart); err != nil {
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
func TestShards_slowConnect(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newShardedStore(t, 2, func(cfg *Config) {
		u, err := url.Parse(cfg.URL)
		if err != nil {
			t.Fatal(err)
		}
		params := u.Query()
		params.Set("post_auth_delay", "1")
		u.RawQuery = params.Encode()
		cfg.URL, cfg.ClaimTimeout, cfg.Log = u.String(), 4*time.Second, zerolog.New(log) // unreachable after 0.8 s
	})
	s.wantShards(t, 2, nil)
	if logged := log.with(t, "the shard is not healthy"); len(logged) > 0 {
		t.Error(logged)
	}
}

// Health checks of a silent shard use one session on the proxy after the other, and the proxy ends
// each of them while the shard is still silent. Close ends the last one.
func TestShards_fewSessionsForASilentShard(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.ClaimTimeout = time.Second })
	s.wantShards(t, 2, nil)
	start := time.Now()
	s.silence(t, 1)
	s.wantShards(t, 2, map[int]string{1: "does not answer"})
	admin := connect(t, s.proxy)
	sessions := func(condition string) (pids []int) {
		t.Helper()
		if err := admin.QueryRow(t.Context(), `
select coalesce(array_agg(pid), '{}')
from pg_stat_activity
where application_name = 'coupond' and query = $1 and `+condition, shardCheckSQL).Scan(&pids); err != nil {
			t.Fatal(err)
		}
		return pids
	}
	var waiting []int
	wait.For(t, "a health check without an answer", func() bool {
		waiting = sessions(`state = 'active' and clock_timestamp() - query_start > interval '0.2 s'`)
		return len(waiting) > 0
	})
	// Whenever the proxy notices that a health check was given up, there was at most one for each
	// ClaimTimeout. Those of the other shard need a session as well.
	used, maxAtOnce := make(map[int]bool), 0
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
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
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.ClaimTimeout, cfg.MaxConns = 4*time.Second, maxConns })
	coupons := s.sell(t, 20, 1_000_000)
	unsold := s.couponsOf(t, 1500)[stuck][20:]
	s.wantShards(t, 2, nil)
	shard := &testStore{url: s.urls[stuck], owner: connect(t, s.urls[stuck])}
	admin := connect(t, s.proxy)

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
	time.Sleep(3 * s.timeout)
	waiting, found := shard.sessionsWaiting(t), s.Store.proxy.states()
	active := queryValue[int](t, admin, `select count(*) from pg_stat_activity where application_name = 'coupond' and state = 'active'`)
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
	s := newShardedStore(t, 1, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 1, 100)
	s.wantShards(t, 1, nil)
	shard := &testStore{url: s.urls[0], owner: connect(t, s.urls[0])}
	shard.loseStandby(t)
	for n := range 3 {
		if status, err := s.Claim(t.Context(), "u", coupons[0][0]); err == nil {
			t.Errorf("claim %d: %q, want an error", n+1, status)
		}
	}
}

// When partitions move, claims are grouped by the new map, and the state of a shard is reset,
// because its number may mean another server.
func TestShards_mapChanges(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	s.wantShards(t, 2, nil)
	if err := s.shards[0].Kill(); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 2, map[int]string{0: "gets no answer"})
	admin := connect(t, s.proxy)
	// Move partition 0 to the running shard, which becomes number 0; the dead one becomes number 2.
	execSQL(t, admin, `alter server coupond options (set p0 '`+libpq(t, s.urls[1])+`')`)
	s.wantShards(t, 2, map[int]string{2: "gets no answer"})
	// Move the other partitions as well, so that only one shard is left.
	for p := 2; p < partitions; p += 2 {
		execSQL(t, admin, fmt.Sprintf(`alter server coupond options (set p%d '%s')`, p, libpq(t, s.urls[1])))
	}
	s.wantShards(t, 1, nil)
	if reason := s.serverOf("coupon").refusalReason(); reason != "" {
		t.Error(reason)
	}
}

// A shard with an older schema is reported as unhealthy, but its claims are sent.
func TestShards_olderSchema(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	s.wantShards(t, 2, nil)
	shard := connect(t, s.urls[1])
	execSQL(t, shard, `update coupond.schema_version set version = version - 1`)
	s.wantShards(t, 2, map[int]string{1: "run coupond migrate"})
	coupon := s.couponsOf(t, 1)[1][0]
	s.wantCreate(t, coupon, 1, Created)
	s.wantClaim(t, "u", coupon, Claimed)
}

// A shard on which the proxy's sessions have a setting that breaks a promise is reported as
// unhealthy, but its claims are sent.
func TestShards_sessionProblem(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	s.wantShards(t, 2, nil)
	shard := connect(t, s.urls[1])
	set := func(value string) {
		t.Helper()
		for _, sql := range []string{
			`alter role coupon_proxy_login set synchronous_commit = ` + value,
			`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'coupon_proxy_login'`,
		} {
			execSQL(t, shard, sql)
		}
	}
	set("off")
	s.wantShards(t, 2, map[int]string{1: "synchronous_commit is off"})
	coupon := s.couponsOf(t, 1)[1][0]
	s.wantCreate(t, coupon, 1, Created)
	set("on")
	s.wantShards(t, 2, nil)
}

// A proxy of an older program has no map: one batcher then sends the claims of all shards, and all
// outcomes are exact.
func TestProxy_olderProxy(t *testing.T) {
	t.Parallel()
	log := new(logBuffer)
	s := newShardedStore(t, 2, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.New(log) })
	s.wantShards(t, 2, nil)
	s.Close()
	admin := connect(t, s.proxy)
	execSQL(t, admin, `drop function coupond.coupon_shards()`)
	s.Store = openStore(t, s.proxy, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.New(log) })
	if _, err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	const message = "the map of shards cannot be read from the proxy"
	wait.For(t, "the log message", func() bool { return len(log.with(t, message)) > 0 })

	const amount, users = 5, 40
	coupons := s.sell(t, 3, amount)
	var clients sync.WaitGroup
	for user := range users {
		clients.Go(func() {
			for _, coupon := range slices.Concat(coupons...) {
				if _, err := s.Claim(t.Context(), fmt.Sprint("u", user), coupon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	for shard := range coupons {
		for _, coupon := range coupons[shard] {
			if n := s.claims(t, shard, coupon); n != amount {
				t.Errorf("%s: %d claims, want %d", coupon, n, amount)
			}
		}
	}
	if shards := s.Store.proxy.states(); shards != nil {
		t.Errorf("shards are %v, want none", shards)
	}
	if n := len(log.with(t, message)); n != 1 {
		t.Errorf("logged %d times, want 1", n)
	}
}

// Warnings of triggers and of auto_explain on a shard do not make an outcome unknown.
func TestProxy_otherWarnings(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	shard := connect(t, s.urls[1])
	for _, sql := range []string{
		`create function coupond.audit() returns trigger language plpgsql as $$
		begin
			raise warning 'audited' using detail = 'with a detail';
			return null;
		end $$`,
		`create trigger audit after insert on coupond.claims for each statement execute function coupond.audit()`,
		`alter role coupon_proxy_login set session_preload_libraries = 'auto_explain'`,
		`load 'auto_explain'`,
		`alter role coupon_proxy_login set auto_explain.log_min_duration = 0`,
		`alter role coupon_proxy_login set auto_explain.log_nested_statements = on`,
		`alter role coupon_proxy_login set auto_explain.log_level = warning`,
		`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'coupon_proxy_login'`,
	} {
		execSQL(t, shard, sql)
	}
	s.wantShards(t, 2, nil)
	coupon := s.sell(t, 1, 10)[1][0]
	for _, claims := range [][]*claim{newClaims("u1", coupon), newClaims("u2", coupon, "u3", coupon)} {
		s.sendWithin(t, longTimeout, claims)
		if claims[0].status != Claimed {
			t.Errorf("%d claims: %q, %v; want claimed", len(claims), claims[0].status, claims[0].err)
		}
	}
}

// A status that the proxy or this program does not know is an internal error, for the claims of
// that shard only.
func TestProxy_unknownStatus(t *testing.T) {
	t.Parallel()
	s := newShardedStore(t, 2)
	coupons := s.sell(t, 1, 100)
	shard := connect(t, s.urls[1])
	for _, sql := range []string{
		`alter type coupond.claim_status add value 'not_yet'`,
		`
create or replace function coupond.claim_coupon(p_user text, p_coupon text)
returns coupond.claim_status
language sql
as $$ select 'not_yet'::coupond.claim_status $$`,
	} {
		execSQL(t, shard, sql)
	}
	wantInternalError := func(user string) {
		t.Helper()
		status, err := s.Claim(t.Context(), user, coupons[1][0])
		if status != "" || err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("user %s: %q, %v; want an internal error", user, status, err)
		}
		s.wantClaim(t, user, coupons[0][0], Claimed)
	}
	wantInternalError("before")
	execSQL(t, connect(t, s.proxy), `alter type coupond.claim_status add value 'not_yet'`)
	wantInternalError("after")
}
