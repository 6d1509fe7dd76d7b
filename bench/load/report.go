package load

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is what came of a run, or of a part of it.
type Report struct {
	// Elapsed is the time it covers: of a whole run, from its first request to its last answer.
	Elapsed time.Duration
	// Claims and Reads count apart, since a read may be a thousand times larger than a claim.
	Claims, Reads Tally
	// Faults says in words what was wrong with the first few requests that had no answer or a malformed one.
	Faults []string
}

// Tally counts answers of one kind of request.
type Tally struct {
	// Answers has every answer that came at least once, the most frequent first.
	Answers []Count
	// Latency is in nanoseconds, to three significant digits and at most [MaxLatency]; what was never sent is not in it.
	// It is nil when there was no request of this kind.
	Latency *hdrhistogram.Histogram
}

// Count is how often an answer came.
type Count struct {
	Answer Answer
	Times  int
}

// MaxLatency is the longest latency told apart; anything longer counts as this.
const MaxLatency = 10 * time.Minute

// maxFaults: the first few tell what is wrong, the rest is counted.
const maxFaults = 5

// Total is the number of requests.
func (t Tally) Total() int {
	n := 0
	for _, c := range t.Answers {
		n += c.Times
	}
	return n
}

// Answered is how many requests had an answer, whatever it was.
func (t Tally) Answered() int {
	n := 0
	for _, c := range t.Answers {
		if c.Answer.Status != 0 {
			n += c.Times
		}
	}
	return n
}

// Count is how often answer came.
func (t Tally) Count(answer Answer) int {
	for _, c := range t.Answers {
		if c.Answer == answer {
			return c.Times
		}
	}
	return 0
}

// Quantile is the latency that percent of the requests did not exceed (50 is the median); 0 when there was none.
func (t Tally) Quantile(percent float64) time.Duration {
	if t.Latency == nil {
		return 0
	}
	return time.Duration(t.Latency.ValueAtPercentile(percent))
}

func (t *Tally) record(answer Answer, latency time.Duration) {
	t.count(answer, 1)
	if answer == NotSent {
		return
	}
	if t.Latency == nil {
		t.Latency = hdrhistogram.New(1, int64(MaxLatency), 3)
	}
	_ = t.Latency.RecordValue(int64(max(0, min(latency, MaxLatency)))) // in range by the line itself
}

// count: a run meets a handful of different answers, so a short list beats a map.
func (t *Tally) count(answer Answer, times int) {
	for i := range t.Answers {
		if t.Answers[i].Answer == answer {
			t.Answers[i].Times += times
			return
		}
	}
	t.Answers = append(t.Answers, Count{answer, times})
}

func (t *Tally) add(other Tally) {
	for _, c := range other.Answers {
		t.count(c.Answer, c.Times)
	}
	slices.SortStableFunc(t.Answers, func(a, b Count) int { return cmp.Compare(b.Times, a.Times) })
	if other.Latency == nil {
		return
	}
	if t.Latency == nil {
		t.Latency = hdrhistogram.New(1, int64(MaxLatency), 3)
	}
	t.Latency.Merge(other.Latency)
}

func (t *Tally) reset() {
	t.Answers = t.Answers[:0]
	if t.Latency != nil {
		t.Latency.Reset()
	}
}

// Add adds the part of a run that followed this one.
func (r *Report) Add(other Report) {
	r.Elapsed += other.Elapsed
	r.Claims.add(other.Claims)
	r.Reads.add(other.Reads)
	for _, f := range other.Faults {
		r.fault(f)
	}
}

func (r *Report) fault(what string) {
	if len(r.Faults) < maxFaults && !slices.Contains(r.Faults, what) {
		r.Faults = append(r.Faults, what)
	}
}

// recorder collects from many connections. A histogram takes 200 KB, so connections share a few shards instead of having
// one each; and each shard has two reports, so that taking stock holds up nobody for longer than a swap of pointers.
type recorder struct {
	shards []shard

	mu      sync.Mutex // guards what follows; locked before a shard's, never after
	began   time.Time
	taken   time.Time
	total   Report // what has been taken
	pending Report // what has not, as far as it has left the shards
}

type shard struct {
	mu    sync.Mutex
	now   *Report
	spare *Report // empty; recorder.mu guards it
}

func newRecorder(shards int) *recorder {
	now := time.Now()
	r := &recorder{shards: make([]shard, shards), began: now, taken: now}
	for i := range r.shards {
		r.shards[i].now, r.shards[i].spare = &Report{}, &Report{}
	}
	return r
}

func (s *shard) record(request Request, answer Answer, latency time.Duration, fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if request.Read {
		s.now.Reads.record(answer, latency)
	} else {
		s.now.Claims.record(answer, latency)
	}
	if fault != nil {
		s.now.fault(fault.Error())
	}
}

// take returns what came since it was last called.
func (r *recorder) take() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.drain()
	recent := r.pending
	recent.Elapsed, r.taken, r.pending = now.Sub(r.taken), now, Report{}
	r.total.Add(recent)
	return recent
}

// whole returns all there was, taken or not.
func (r *recorder) whole() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.drain()
	var all Report // a copy: what is taken later adds to the total
	all.Add(r.total)
	all.Add(r.pending)
	all.Elapsed = now.Sub(r.began)
	return all
}

// drain empties the shards and says when.
func (r *recorder) drain() time.Time {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.now, s.spare = s.spare, s.now
		s.mu.Unlock()
		r.pending.Add(*s.spare)
		s.spare.Claims.reset()
		s.spare.Reads.reset()
		s.spare.Faults = s.spare.Faults[:0]
	}
	return time.Now()
}
