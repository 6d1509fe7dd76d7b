package load

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report has the answers of a run, or of a part of it.
type Report struct {
	// Elapsed is the time covered: for a whole run, from its first request to its last answer.
	Elapsed time.Duration
	// Claims and Reads are counted apart, because a read may be a thousand times larger than a
	// claim.
	Claims, Reads Tally
	// Errors has the first few different errors of requests without an answer or with a malformed
	// one.
	Errors []string
}

// Tally counts the answers to one kind of request.
type Tally struct {
	// Answers has every answer that came at least once, the most frequent first.
	Answers []Count
	// Latency is in nanoseconds, with three significant digits, at most [MaxLatency]. Requests that
	// were not sent are not in it. It is nil if there were none of this kind.
	Latency *hdrhistogram.Histogram
}

// Count is how often an answer came.
type Count struct {
	Answer Answer
	Times  int
}

// MaxLatency is the longest latency that is recorded. Longer ones count as MaxLatency.
const MaxLatency = 10 * time.Minute

// maxErrors bounds Report.Errors.
const maxErrors = 5

// Total returns the number of requests.
func (t Tally) Total() int {
	n := 0
	for _, c := range t.Answers {
		n += c.Times
	}
	return n
}

// Answered returns the number of requests that got an answer.
func (t Tally) Answered() int {
	n := 0
	for _, c := range t.Answers {
		if c.Answer.Status != 0 {
			n += c.Times
		}
	}
	return n
}

// Count returns how often answer came.
func (t Tally) Count(answer Answer) int {
	for _, c := range t.Answers {
		if c.Answer == answer {
			return c.Times
		}
	}
	return 0
}

// Quantile returns the latency that percent of the requests did not exceed (50 is the median), or 0
// if there were none.
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
	_ = t.Latency.RecordValue(int64(max(0, min(latency, MaxLatency)))) // fails only out of range
}

// count adds to Answers. A run has few different answers, so a list is faster than a map.
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

// Add adds the report of the next part of the same run.
func (r *Report) Add(other Report) {
	r.Elapsed += other.Elapsed
	r.Claims.add(other.Claims)
	r.Reads.add(other.Reads)
	for _, e := range other.Errors {
		r.addError(e)
	}
}

func (r *Report) addError(text string) {
	if len(r.Errors) < maxErrors && !slices.Contains(r.Errors, text) {
		r.Errors = append(r.Errors, text)
	}
}

// recorder collects the answers of all connections. A histogram takes 200 KB, so connections share
// a few stripes. Each stripe has two reports, so that reading one blocks its connections only while
// the two are swapped.
type recorder struct {
	stripes []stripe

	mu      sync.Mutex // guards the fields below; locked before a stripe's mu, never after it
	began   time.Time
	taken   time.Time // the last call of take
	total   Report    // all that take has returned
	pending Report    // what was drained from the stripes since
}

type stripe struct {
	mu    sync.Mutex
	now   *Report
	spare *Report // empty; guarded by recorder.mu
}

func newRecorder(stripes int) *recorder {
	now := time.Now()
	r := &recorder{stripes: make([]stripe, stripes), began: now, taken: now}
	for i := range r.stripes {
		r.stripes[i].now, r.stripes[i].spare = &Report{}, &Report{}
	}
	return r
}

func (s *stripe) record(request Request, answer Answer, latency time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if request.Read {
		s.now.Reads.record(answer, latency)
	} else {
		s.now.Claims.record(answer, latency)
	}
	if err != nil {
		s.now.addError(err.Error())
	}
}

// take returns what was recorded since the last call.
func (r *recorder) take() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.drain()
	recent := r.pending
	recent.Elapsed, r.taken, r.pending = now.Sub(r.taken), now, Report{}
	r.total.Add(recent)
	return recent
}

// whole returns everything that was recorded, taken or not.
func (r *recorder) whole() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.drain()
	var all Report // a copy, because later calls of take change total
	all.Add(r.total)
	all.Add(r.pending)
	all.Elapsed = now.Sub(r.began)
	return all
}

// drain moves what is in the stripes to pending and returns the time after that.
func (r *recorder) drain() time.Time {
	for i := range r.stripes {
		s := &r.stripes[i]
		s.mu.Lock()
		s.now, s.spare = s.spare, s.now
		s.mu.Unlock()
		r.pending.Add(*s.spare)
		s.spare.Claims.reset()
		s.spare.Reads.reset()
		s.spare.Errors = s.spare.Errors[:0]
	}
	return time.Now()
}
