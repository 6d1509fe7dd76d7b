package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How a store behind a proxy sees the servers there.
//
// PL/Proxy waits for a shard as long as the shard lets it. So one that is silent, and not
// dead, costs each call that needs it half of ClaimTimeout. Claims are not the ones to find
// that out: the store asks each shard something small, again and again, on connections kept for
// that. A shard that has no answer is away: until it has one, its coupons are refused at
// once and nothing is sent for them (lanes.setAway), so surely nothing was done.
//
// One that owes an answer is not asked again beside that; only after ClaimTimeout is the
// question given up for a new one, as another server may have taken its place.
//
// A shard that answers questions may still not get its commits done: its synchronous
// standbys are gone, or its disk hangs. What commits.go does for a single server is done for
// each shard: once a call did not come back, something is committed there, and nothing else
// that commits is sent to it meanwhile. If that takes longer than a question may, or does not
// end well, the shard is away for whatever commits, until a commit has come back.
//
// Which partitions are a shard's the proxy tells, in numbers: a shard goes by the lowest of
// its partitions. The store groups claims by that and refuses some, no more: a call that
// goes by an old map is as exact as any other, by the proxy's own map and the shards' guard.
const (
	shardsSQL       = `select public.coupon_shards()`
	shardVersionSQL = `select public.coupon_shard_version($1)`
	shardCommitSQL  = `select public.coupon_shard_commit($1)`
)

// mostSilent is how many shards may owe an answer at once. Asking takes as many connections,
// and one more. Those beyond it are not asked until one of these answers.
const mostSilent = 8

// questionPause is between two rounds of questions; after questionPatience a shard is
// away. Together that is 0.3 T, and the first try of a call whose claims queued for a third
// of T takes longer still (firstTry): when it fails, it is known that the shard is away, and
// the second is not sent.
func questionPause(claim time.Duration) time.Duration    { return max(claim/10, 50*time.Millisecond) }
func questionPatience(claim time.Duration) time.Duration { return claim / 5 }

// Shard is a server behind a proxy, as it was found last.
type Shard struct {
	Number int    // the lowest of its partitions
	Reason string // what is wrong: a sentence that may be shown to anybody; "": nothing
}

// shards is what is known of the servers behind a proxy.
type shards struct {
	config *pgxpool.Config // of the connections for questions
	ended  sync.WaitGroup  // the goroutine that asks, each question and each inquiry

	mu      sync.Mutex
	pool    *pgxpool.Pool    // the connections for questions; not before there is a proxy
	numbers []int            // by partition; nil: there is no proxy, or no map yet
	found   map[int]*finding // by number
}

// finding is what was found of a shard.
type finding struct {
	Shard
	asked  bool               // only then is it known how the shard is
	away   error              // why it is away: errNotSent, for whatever commits; else for everything
	giveUp context.CancelFunc // ends the question under way; nil: it owes no answer

	doubt   bool               // a call did not come back: perhaps its commits do not
	behind  bool               // its commits were found not to come back, and none has since
	inquiry *inquiry           // under way, to find that out; nil: there is none
	cancel  context.CancelFunc // ends its waiting
}

// Shards are the servers behind the proxy as they were found last, by number; none where
// there is no proxy. It asks nobody.
func (s *Store) Shards() []Shard {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	var all []Shard
	for _, f := range s.shards.found {
		if f.asked {
			all = append(all, f.Shard)
		}
	}
	slices.SortFunc(all, func(a, b Shard) int { return a.Number - b.Number })
	return all
}

// watchShards asks until Close. Where there is no proxy it ends as soon as it knows.
func (s *Store) watchShards() {
	if !s.awaitProxy() {
		return
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), s.shards.config)
	if err != nil {
		s.log.Error().Err(err).Msg("connections for questions to the shards")
		return
	}
	defer pool.Close() // waits for the questions and inquiries, which end with s.closing
	s.shards.mu.Lock()
	s.shards.pool = pool
	s.shards.mu.Unlock()
	places := make(chan struct{}, mostSilent)
	var said error
	for {
		err := s.askShards(pool, places)
		if err != nil && said == nil && s.closing.Err() == nil {
			s.log.Warn().Err(err).Msg("the proxy does not tell which shards it has")
		}
		said = err
		if !s.pause() {
			return
		}
	}
}

// awaitProxy waits until it is known whom the store speaks to; false: to no proxy, or the
// store is closed.
func (s *Store) awaitProxy() bool {
	for {
		ctx, cancel := context.WithTimeout(s.closing, readyTimeout)
		is, err := s.askProxied(ctx, s.watch)
		cancel()
		if err == nil {
			return is
		}
		if !s.pause() {
			return false
		}
	}
}

// pause waits for the next round; false: the store is closed.
func (s *Store) pause() bool {
	select {
	case <-s.closing.Done():
		return false
	case <-time.After(questionPause(s.timeout)):
		return true
	}
}

// askShards is one round: it reads the proxy's map and puts the question to each shard that
// owes no answer. It does not wait for the answers, only for a place where all are taken.
func (s *Store) askShards(pool *pgxpool.Pool, places chan struct{}) error {
	conn, err := pool.Acquire(s.closing)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.closing, questionPatience(s.timeout))
	defer cancel()
	var numbers []int
	err = conn.QueryRow(ctx, shardsSQL).Scan(&numbers)
	conn.Release()
	switch {
	case isNotInstalled(sqlState(err)):
		return fmt.Errorf("run coupond migrate --proxy: %w", err)
	case err != nil:
		s.forgoInquiries() // it may be another proxy that answers next
		return err
	case !isMap(numbers):
		return fmt.Errorf("the options of its server coupons are no p0 to p(2^n - 1): %v", numbers)
	}
	s.takeMap(numbers)

	for partition, number := range numbers {
		if partition != number || s.owes(number) {
			continue // each shard is asked once
		}
		select {
		case places <- struct{}{}:
			s.askShard(pool, places, number)
		case <-ctx.Done():
			return nil // so many are silent
		}
	}
	return nil
}

// isMap: there are 2^n partitions, each with the lowest of its shard's.
func isMap(numbers []int) bool {
	for partition, number := range numbers {
		if number < 0 || number > partition || numbers[number] != number {
			return false
		}
	}
	n := len(numbers)
	return n > 0 && n&(n-1) == 0
}

// takeMap gives the shards their lanes. By another map, the same number may be another
// server: what was found is forgotten, and who owes an answer is asked anew.
func (s *Store) takeMap(numbers []int) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	if slices.Equal(numbers, s.shards.numbers) {
		return
	}
	doubt := false
	for number, f := range s.shards.found {
		doubt = doubt || f.doubt
		if f.giveUp != nil {
			f.giveUp()
		}
		f.detach()
		s.lanes.setAway(number, nil)
	}
	s.shards.numbers, s.shards.found = numbers, make(map[int]*finding)
	for partition, number := range numbers {
		if partition == number {
			s.shards.found[number] = &finding{Shard: Shard{Number: number}, doubt: doubt}
		}
	}
	s.lanes.regroup(numbers)
	s.askers.Store(askers(cap(s.readers), s.lanes.count*len(s.shards.found)))
	s.log.Info().Int("partitions", len(numbers)).Int("shards", len(s.shards.found)).Msg("behind the proxy")
}

// owes: the question to a shard is under way.
func (s *Store) owes(number int) bool {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	return s.shards.found[number].giveUp != nil
}

// askShard puts the question to a shard. When it has ended, one way or another, its place
// is free again.
func (s *Store) askShard(pool *pgxpool.Pool, places chan struct{}, number int) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	f := s.shards.found[number]
	ctx, cancel := context.WithCancel(s.closing)
	f.giveUp = cancel
	s.shards.ended.Go(func() {
		defer func() { <-places }()
		defer s.owesNoMore(f)
		defer cancel()
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return // that tells of the proxy, and the map cannot be read either
		}
		defer conn.Release()
		s.question(ctx, conn, f)
	})
}

func (s *Store) owesNoMore(f *finding) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	f.giveUp = nil
}

// question asks a shard, and notes how it is. The time that it has begins here: however long
// a connection to the proxy took, that is not the shard's doing.
func (s *Store) question(ctx context.Context, conn *pgxpool.Conn, f *finding) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var version int32
	ended := make(chan error, 1)
	go func() {
		err := conn.QueryRow(ctx, shardVersionSQL, f.Number).Scan(&version)
		if sqlState(err) != "" { // PL/Proxy may have met the connection that a restart had broken
			s.lostTouch(f)
			err = conn.QueryRow(ctx, shardVersionSQL, f.Number).Scan(&version)
		}
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-time.After(questionPatience(s.timeout)):
		s.unanswered(f)
		err = <-ended
	}
	s.answered(f, version, err)
}

// answered notes how the question to a shard ended.
func (s *Store) answered(f *finding, version int32, err error) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	pgErr, refused := errors.AsType[*pgconn.PgError](err)
	switch {
	case err != nil:
		s.forgo(f)
	case f.doubt:
		s.inquireAt(f) // before claims are let in
	}
	switch {
	case err == nil && f.behind:
		s.find(f, "it "+commitsDoNotComeBack, errNotSent)
	case err == nil && version < s.schemaVersion:
		s.find(f, fmt.Sprintf("its schema has version %d, and this program needs %d: run coupond migrate there", version, s.schemaVersion), nil)
	case err == nil:
		s.find(f, "", nil)
	case refused && pgErr.SeverityUnlocalized == "ERROR":
		s.find(f, "the proxy gets no answer from it", err)
	}
	// All else, a FATAL too, tells of the proxy; and who gave up has been told so before.
}

// unanswered notes that a shard owes an answer for longer than it may.
func (s *Store) unanswered(f *finding) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	s.find(f, "it does not answer", context.DeadlineExceeded)
}

// lostTouch notes that the proxy's connection to a shard was of no use any more.
func (s *Store) lostTouch(f *finding) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	s.forgo(f)
}

// forgoInquiries ends all inquiries.
func (s *Store) forgoInquiries() {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	for _, f := range s.shards.found {
		s.forgo(f)
	}
}

// forgo ends the inquiry on a shard, if there is one: whom it asked may be no more. The
// caller holds the mutex.
func (s *Store) forgo(f *finding) {
	if f.inquiry != nil {
		s.fallBehind(f)
		f.detach()
	}
}

// detach ends the inquiry, if there is one, for those who wait for it. The caller holds the
// mutex.
func (f *finding) detach() {
	if f.inquiry != nil {
		f.cancel()
		close(f.inquiry.ended)
		f.inquiry, f.cancel = nil, nil
	}
}

// fallBehind notes that commits do not come back from a shard, as far as is known. The
// caller holds the mutex.
func (s *Store) fallBehind(f *finding) {
	f.behind = true
	if f.away == nil {
		s.find(f, "it "+commitsDoNotComeBack, errNotSent)
	}
}

// of is what was found of the coupon's shard; nil: there is no map. The caller holds the
// mutex.
func (ss *shards) of(coupon string) *finding {
	if ss.numbers == nil {
		return nil
	}
	partition := hashText(coupon) & uint32(len(ss.numbers)-1)
	return ss.found[ss.numbers[partition]]
}

// underWay is the inquiry under way on the coupon's shard; nil: there is none.
func (ss *shards) underWay(coupon string) *inquiry {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if f := ss.of(coupon); f != nil {
		return f.inquiry
	}
	return nil
}

// shardDoubted is doubted behind a proxy; false: it is not known which shard the coupon is
// on. One that is away is looked into when it answers.
func (s *Store) shardDoubted(coupon string) bool {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	f := s.shards.of(coupon)
	if f == nil {
		return false
	}
	f.doubt = true
	if f.away == nil {
		s.inquireAt(f)
	}
	return true
}

// inquireAt begins an inquiry on a shard, unless one is under way. The caller holds the
// mutex.
func (s *Store) inquireAt(f *finding) {
	if f.inquiry != nil || s.shards.found[f.Number] != f || s.closing.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.closing)
	i := &inquiry{began: time.Now(), ended: make(chan struct{})}
	f.inquiry, f.cancel = i, cancel
	s.shards.ended.Go(func() {
		defer cancel()
		s.inquired(f, i, s.commitAt(ctx, f, i))
	})
}

// commitAt commits something on a shard that harms nobody. It waits until ctx ends, and
// notes when that takes longer than it may.
func (s *Store) commitAt(ctx context.Context, f *finding, i *inquiry) error {
	conn, err := s.shards.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	late := time.AfterFunc(questionPatience(s.timeout), func() {
		s.shards.mu.Lock()
		defer s.shards.mu.Unlock()
		if f.inquiry == i {
			s.fallBehind(f)
		}
	})
	defer late.Stop()
	return commitOn(ctx, conn, shardCommitSQL, f.Number)
}

// inquired notes what an inquiry on a shard came to, unless it was forgone. One that failed
// is repeated when the shard has answered a question.
func (s *Store) inquired(f *finding, i *inquiry, err error) {
	s.shards.mu.Lock()
	defer s.shards.mu.Unlock()
	if f.inquiry != i {
		return
	}
	missing := isNotInstalled(sqlState(err))
	switch {
	case missing:
		s.failures.Warn().Err(err).Msg("whether the commits of shards come back cannot be asked: run coupond migrate --proxy")
	case err != nil:
		s.failures.Warn().Err(err).Int("shard", f.Number).Msg("a commit on the shard failed; it is tried again")
	}
	if err == nil || missing {
		f.doubt, f.behind = false, false
		if errors.Is(f.away, errNotSent) {
			s.find(f, "", nil)
		}
	} else {
		s.fallBehind(f)
	}
	f.detach()
}

// find notes how a shard is, and what is wrong; when it is away, as the cause says, its
// coupons are refused. The caller holds the mutex.
func (s *Store) find(f *finding, why string, cause error) {
	if s.shards.found[f.Number] != f {
		return // by an old map
	}
	before := f.Reason
	f.asked, f.Reason, f.away = true, why, cause
	var away error
	switch {
	case errors.Is(cause, errNotSent):
		away = fmt.Errorf("%w: shard %d: %w", ErrUnavailable, f.Number, errNotSent)
	case cause != nil:
		away = fmt.Errorf("%w: shard %d is away: %s", ErrUnavailable, f.Number, why)
	}
	s.lanes.setAway(f.Number, away)
	switch why {
	case before:
	case "":
		s.log.Info().Int("shard", f.Number).Msg("the shard is healthy again")
	default:
		s.log.Warn().Err(cause).Int("shard", f.Number).Str("why", why).Bool("refused", away != nil).Msg("the shard is not healthy")
	}
}
