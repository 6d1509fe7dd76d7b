package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/db"
)

func TestIsMap(t *testing.T) {
	t.Parallel()
	for _, numbers := range [][]int{{0}, {0, 0}, {0, 1}, {0, 1, 0, 1}, {0, 1, 2, 3}, {0, 0, 2, 0}} {
		if !isMap(numbers) {
			t.Errorf("%v is no map", numbers)
		}
	}
	for _, numbers := range [][]int{nil, {0, 1, 2}, {1, 1}, {0, 2}, {0, -1}, {0, 0, 1, 1}} {
		if isMap(numbers) {
			t.Errorf("%v is a map", numbers)
		}
	}
}

// What the shards are asked fits into the first try of a call, even if its claims queued for
// a third of the time: who waits for a silent one then knows that it is away, and does not
// ask again.
func TestQuestionsFit(t *testing.T) {
	t.Parallel()
	for _, claim := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
		sent := time.Now()
		left, cancel := context.WithDeadline(t.Context(), sent.Add(claim-claim/3))
		try, cancelTry := firstTry(left)
		ends, _ := try.Deadline()
		cancelTry()
		cancel()
		if found, took := questionPause(claim)+questionPatience(claim), ends.Sub(sent); found >= took {
			t.Errorf("of %v: a silent shard is found after %v, and the first try ends after %v", claim, found, took)
		}
	}
}

// wantShards waits until so many shards are known, and those named (and no others) are not
// healthy: their sentence has these words.
func (s *sharded) wantShards(t testing.TB, count int, unhealthy map[int]string) {
	t.Helper()
	var all []Shard
	as := func(shard Shard) bool {
		words, is := unhealthy[shard.Number]
		return is == (shard.Reason != "") && strings.Contains(shard.Reason, words)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		all = s.Shards()
		if len(all) == count && !slices.ContainsFunc(all, func(shard Shard) bool { return !as(shard) }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the shards are %v; want %d, of which %v are not healthy", all, count, unhealthy)
		}
	}
}

// silence stops a shard's processes, as a machine does that thinks of something else; the
// returned function lets them go on.
func (s *sharded) silence(t *testing.T, shard int) (resume func()) {
	t.Helper()
	pids := []int{s.shards[shard].Pid()}
	var sessions []int
	if err := connect(t, s.urls[shard]).QueryRow(t.Context(),
		`select array_agg(pid) from pg_stat_activity where usename = 'coupon_proxy_login'`).Scan(&sessions); err != nil {
		t.Fatal(err)
	}
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

// One shard is dead and one silent: that is known, their coupons are refused at once and
// surely, and the others' claims and reads go on as if nothing were. Those who were on
// their way when it happened hear that it is not known. All is well again by itself.
func TestShardsAway(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 4, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 2, 1_000_000)
	s.wantShards(t, 4, nil)
	const dead, silent = 1, 2
	if err := s.shards[dead].Kill(); err != nil {
		t.Fatal(err)
	}
	resume := s.silence(t, silent)
	before := time.Now()
	if status, err := s.Claim(t.Context(), "first", coupons[silent][0]); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("on its way to the silent shard: %q, %v", status, err)
	}
	t.Logf("on its way to the silent shard: answered after %v", time.Since(before))
	s.wantShards(t, 4, map[int]string{dead: "gets no answer", silent: "does not answer"})
	wantReady(t, s.Store)

	// Nothing is sent to the two of them, so nothing waits and nothing fails.
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
					t.Errorf("of shard %d: %q, %v", shard, status, err)
				}
				if _, _, err := s.Coupon(t.Context(), coupon); !errors.Is(err, ErrUnavailable) {
					t.Errorf("reading of shard %d: %v", shard, err)
				}
				if status, err := s.CreateCoupon(t.Context(), coupon, 1); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
					t.Errorf("creating on shard %d: %q, %v", shard, status, err)
				}
			default:
				if status != Claimed {
					t.Errorf("of shard %d: %q, %v", shard, status, err)
				}
			}
		}
	}
	t.Logf("400 claims, and 200 reads and 200 creations that were refused, took %v", time.Since(start))
	if now := failures(); !slices.Equal(now, failed) {
		t.Errorf("before: %v, after: %v; a call was made to a shard that is away", failed, now)
	}
	s.wantSamples(t, map[string]string{
		`coupond_shard_healthy{shard="0"}`: "1",
		`coupond_shard_healthy{shard="1"}`: "0",
		`coupond_shard_healthy{shard="2"}`: "0",
		`coupond_shard_healthy{shard="3"}`: "1",
	})
	if waiting, calls := s.lanes.of(coupons[silent][0]).load(); waiting+calls != 0 {
		t.Errorf("of the silent shard, %d claims wait and %d calls are in flight", waiting, calls)
	}

	resume()
	if err := s.shards[dead].Start(); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 4, nil)
	for shard := range coupons {
		if status, err := s.Claim(t.Context(), "last", coupons[shard][0]); status != Claimed {
			t.Errorf("afterwards, of shard %d: %q, %v", shard, status, err)
		}
		least, most := 51, 51
		switch shard {
		case dead:
			least, most = 1, 1 // the last
		case silent:
			least, most = 1, 2 // and perhaps the first, of which it is not known
		}
		if n := s.claims(t, shard, coupons[shard][0]); n < least || n > most {
			t.Errorf("shard %d has %d claims; want %d to %d", shard, n, least, most)
		}
	}
}

// The shards are asked at once: a silent one does not keep the question from another.
func TestShardsAreAskedAtOnce(t *testing.T) {
	t.Parallel()
	const count = 3
	s := newSharded(t, count)
	s.wantShards(t, count, nil)
	for shard := range count {
		s.silence(t, shard)
	}
	admin := connect(t, s.proxy)
	var apart float64 // seconds
	eventually(t, "all of them are asked", func() bool {
		var asked int
		if err := admin.QueryRow(t.Context(), `
			select count(*), coalesce(extract(epoch from max(query_start) - min(query_start)), 0)::float8
			from pg_stat_activity
			where application_name = 'coupond' and query = $1 and state = 'active'`, shardVersionSQL).Scan(&asked, &apart); err != nil {
			t.Fatal(err)
		}
		return asked == count
	})
	// They fell silent one by one, so perhaps a round apart.
	if patience := questionPatience(s.timeout).Seconds(); apart >= patience {
		t.Errorf("they were asked within %v s; the patience with one of them is %v s", apart, patience)
	}
}

// A connection to the proxy that takes longer than a shard may is no fault of the shard.
func TestShardsAreHealthyWhereConnectingTakesLong(t *testing.T) {
	t.Parallel()
	log := new(lines)
	s := newSharded(t, 2, func(cfg *Config) {
		u, err := url.Parse(cfg.URL)
		if err != nil {
			t.Fatal(err)
		}
		params := u.Query()
		params.Set("post_auth_delay", "1")
		u.RawQuery = params.Encode()
		cfg.URL, cfg.ClaimTimeout, cfg.Log = u.String(), 4*time.Second, zerolog.New(log) // patience: 0.8 s
	})
	s.wantShards(t, 2, nil)
	if told := log.with(t, "the shard is not healthy"); len(told) > 0 {
		t.Error(told)
	}
}

// Questions to a silent shard hold one session of the proxy after the other, and the proxy
// gets them back while the silence lasts. Close ends them, here and there.
func TestQuestionsToASilentShardAreFew(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2, func(cfg *Config) { cfg.ClaimTimeout = time.Second })
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
			where application_name = 'coupond' and query = $1 and `+condition, shardVersionSQL).Scan(&pids); err != nil {
			t.Fatal(err)
		}
		return pids
	}
	var waiting []int
	eventually(t, "a question waits", func() bool {
		waiting = sessions(`state = 'active' and clock_timestamp() - query_start > interval '0.2 s'`)
		return len(waiting) > 0
	})
	// Whenever the proxy notices that a question was given up, no more of them can have been
	// asked than one for each ClaimTimeout. The other shard's need a session as well.
	asked, most := make(map[int]bool), 0
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		pids := sessions(`true`)
		for _, pid := range pids {
			asked[pid] = true
		}
		most = max(most, len(pids))
	}
	took := time.Since(start)
	t.Logf("%d sessions in %v, %d at once", len(asked), took, most)
	if may := int(took/s.timeout) + 1; len(asked) > may+2 {
		t.Errorf("%d sessions in %v; %d questions may have been asked", len(asked), took, may)
	}
	eventually(t, "the proxy gets the first session back", func() bool { return !slices.Contains(sessions(`true`), waiting[0]) })
	s.Close()
	eventually(t, "the sessions end", func() bool { return len(sessions(`true`)) == 0 })
}

// A shard whose synchronous standbys are gone reads and does not commit: nothing more that
// commits is sent there. However many come for its coupons, they leave few sessions waiting,
// there and on the proxy, and the other shard's are claimed as if nothing were. Whatever was
// surely not done was not done, and all is well again by itself.
func TestShardWhoseCommitsDoNotComeBack(t *testing.T) {
	t.Parallel()
	const maxConns, clients, alone = 8, 40, 1
	s := newSharded(t, 2, func(cfg *Config) { cfg.ClaimTimeout, cfg.MaxConns = 4*time.Second, maxConns })
	coupons := s.sell(t, 20, 1_000_000)
	fresh := s.couponsOf(t, 1500)[alone][20:]
	s.wantShards(t, 2, nil)
	shard := &stand{url: s.urls[alone], owner: connect(t, s.urls[alone])}
	admin := connect(t, s.proxy)

	var mu sync.Mutex
	told := map[string]int{} // how often
	var refused []string     // users who were told that they surely have nothing
	var next atomic.Int64
	stop := make(chan struct{})
	var crowd sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); crowd.Wait() })
	defer end()
	for client := range clients {
		crowd.Go(func() {
			at := client % 2
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				user, word := fmt.Sprint("u", client, "-", n), "claim"
				var err error
				if at == alone && n%3 == 0 && int(next.Load()) < len(fresh)-clients { // which needs no lane
					word = "creation"
					_, err = s.CreateCoupon(t.Context(), fresh[next.Add(1)], 1)
				} else {
					_, err = s.Claim(t.Context(), user, coupons[at][n%len(coupons[at])])
				}
				said := "done"
				switch {
				case errors.Is(err, ErrOutcomeUnknown):
					said = "unknown"
				case errors.Is(err, ErrUnavailable), errors.Is(err, ErrOverloaded):
					said = "surely not done"
				case err != nil:
					t.Errorf("of shard %d: %v", at, err)
				}
				mu.Lock()
				told[fmt.Sprintf("shard %d: %s", at, said)]++
				if at == alone && word == "claim" && said == "surely not done" {
					refused = append(refused, user)
				}
				mu.Unlock()
			}
		})
	}
	shard.loseStandby(t)
	mu.Lock()
	clear(told)
	mu.Unlock()

	// An administrator ends the waiting of the first: their claims are there, and on no standby.
	eventually(t, "a claim waits for the standby", func() bool { return shard.waitForStandby(t) > 0 })
	shard.exec(t, cancelWaiting)
	time.Sleep(3 * s.timeout)
	waiting, found := shard.waitForStandby(t), s.Shards()
	var busy int
	if err := admin.QueryRow(t.Context(),
		`select count(*) from pg_stat_activity where application_name = 'coupond' and state = 'active'`).Scan(&busy); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Coupon(t.Context(), coupons[alone][0]); err != nil {
		t.Errorf("reading: %v", err)
	}
	wantReady(t, s.Store)
	end()
	t.Logf("%v; %d sessions wait for the standby, %d of the proxy are busy", told, waiting, busy)
	if waiting > maxConns || busy > maxConns {
		t.Errorf("%d sessions wait for the standby and %d of the proxy are busy; want no more than %d", waiting, busy, maxConns)
	}
	if told["shard 1: surely not done"] < 5*told["shard 1: unknown"] {
		t.Errorf("%v; want nearly all of the second shard's not to be sent", told)
	}
	if told["shard 0: done"] < 10*(told["shard 0: unknown"]+told["shard 0: surely not done"]) {
		t.Errorf("%v; want the first shard's claims to be made", told)
	}
	if len(found) != 2 || found[0].Reason != "" || !strings.Contains(found[alone].Reason, noCommits) {
		t.Errorf("the shards are %v; want the commits of the second not to come back", found)
	}

	shard.wantStandby(t, "")
	s.wantShards(t, 2, nil)
	if status, err := s.Claim(t.Context(), "after", coupons[alone][0]); status != Claimed {
		t.Errorf("afterwards: %q, %v", status, err)
	}
	eventually(t, "nothing waits any more", func() bool { return shard.waitForStandby(t) == 0 })
	var done int
	if err := shard.owner.QueryRow(t.Context(), `select count(*) from public.claims where user_id = any ($1)`, refused).Scan(&done); err != nil || done > 0 {
		t.Errorf("%d claims were made that were told surely not to be: %v", done, err)
	}
	for _, coupon := range coupons[alone] {
		s.claims(t, alone, coupon)
	}
}

// What the standby of a shard lacks, nobody is told of: neither by the claim, nor by asking
// again.
func TestClaimThatAShardsStandbyLacks(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 1, func(cfg *Config) { cfg.ClaimTimeout = 4 * time.Second })
	coupons := s.sell(t, 1, 100)
	s.wantShards(t, 1, nil)
	shard := &stand{url: s.urls[0], owner: connect(t, s.urls[0])}
	shard.loseStandby(t)
	for n := range 3 {
		if status, err := s.Claim(t.Context(), "u", coupons[0][0]); err == nil {
			t.Errorf("asked for the %d. time: %q", n+1, status)
		}
	}
}

// When partitions move, claims are grouped by the new map, and what was found of a shard
// is forgotten where its number may be another server's.
func TestShardsAreRenumbered(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2)
	s.wantShards(t, 2, nil)
	if err := s.shards[0].Kill(); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 2, map[int]string{0: "gets no answer"})
	admin := connect(t, s.proxy)
	// Partition 0 to the living shard, which is known as 0 from now on; the dead one is 2.
	if _, err := admin.Exec(t.Context(), `alter server coupons options (set p0 '`+libpq(t, s.urls[1])+`')`); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 2, map[int]string{2: "gets no answer"})
	// The last of them is replaced, under its number.
	for p := 2; p < partitions; p += 2 {
		if _, err := admin.Exec(t.Context(), fmt.Sprintf(`alter server coupons options (set p%d '%s')`, p, libpq(t, s.urls[1]))); err != nil {
			t.Fatal(err)
		}
	}
	s.wantShards(t, 1, nil)
	if err := s.lanes.whyAway("coupon"); err != nil {
		t.Error(err)
	}
}

// A shard whose schema is too old is told, and not refused: its claims can tell for themselves.
func TestShardWithAnOlderSchema(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2, func(cfg *Config) { cfg.SchemaVersion = db.Version() })
	s.wantShards(t, 2, nil)
	shard := connect(t, s.urls[1])
	if _, err := shard.Exec(t.Context(), `update public.schema_version set version = version - 1`); err != nil {
		t.Fatal(err)
	}
	s.wantShards(t, 2, map[int]string{1: "run coupond migrate"})
	coupon := s.couponsOf(t, 1)[1][0]
	if status, err := s.CreateCoupon(t.Context(), coupon, 1); status != Created {
		t.Error(status, err)
	}
	if status, err := s.Claim(t.Context(), "u", coupon); status != Claimed {
		t.Error(status, err)
	}
}

// A proxy that an older program has made tells no map: then the claims of all shards travel
// together, and as exactly.
func TestSaleThroughAnOlderProxy(t *testing.T) {
	t.Parallel()
	log := new(lines)
	s := newSharded(t, 2, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.New(log) })
	s.wantShards(t, 2, nil)
	s.Close()
	admin := connect(t, s.proxy)
	if _, err := admin.Exec(t.Context(), `drop function public.coupon_shards()`); err != nil {
		t.Fatal(err)
	}
	s.Store = openStore(t, s.proxy, func(cfg *Config) { cfg.ClaimQueue, cfg.Log = 4096, zerolog.New(log) })
	const message = "the proxy does not tell which shards it has"
	eventually(t, "that is logged", func() bool { return len(log.with(t, message)) > 0 })

	const amount, users = 5, 40
	coupons := s.sell(t, 3, amount)
	var crowd sync.WaitGroup
	for user := range users {
		crowd.Go(func() {
			for _, coupon := range slices.Concat(coupons...) {
				if _, err := s.Claim(t.Context(), fmt.Sprint("u", user), coupon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	crowd.Wait()
	for shard := range coupons {
		for _, coupon := range coupons[shard] {
			if n := s.claims(t, shard, coupon); n != amount {
				t.Errorf("%s: %d claims", coupon, n)
			}
		}
	}
	if shards := s.Shards(); shards != nil {
		t.Errorf("shards %v", shards)
	}
	if n := len(log.with(t, message)); n != 1 {
		t.Errorf("it is logged %d times", n)
	}
}

// A label that a shard answers and the proxy lacks is a fault of ours, for its coupon alone,
// and never told as another outcome; nor is one that only this program lacks.
func TestLabelThatTheProxyLacks(t *testing.T) {
	t.Parallel()
	s := newSharded(t, 2)
	coupons := s.sell(t, 1, 100)
	shard := connect(t, s.urls[1])
	for _, sql := range []string{
		`alter type public.claim_status add value 'not_yet'`,
		`create or replace function public.claim_coupons(p_users text[], p_coupon text)
			returns public.claim_status[] language sql as $$ select array['not_yet']::public.claim_status[] $$`,
	} {
		if _, err := shard.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	wantFault := func(who string) {
		t.Helper()
		status, err := s.Claim(t.Context(), who, coupons[1][0])
		if status != "" || err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%s: %q, %v; want a fault", who, status, err)
		}
		if status, err := s.Claim(t.Context(), who, coupons[0][0]); status != Claimed {
			t.Errorf("%s, of the other shard: %q, %v", who, status, err)
		}
	}
	wantFault("before")
	if _, err := connect(t, s.proxy).Exec(t.Context(), `alter type public.claim_status add value 'not_yet'`); err != nil {
		t.Fatal(err)
	}
	wantFault("after")
}
