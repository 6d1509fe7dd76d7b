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
func (t Tally) Total() (n int) {
	for _, c := range t.Answers {
		n += c.Times
	}
	return n
}

// Answered returns the number of requests that got an answer.
func (t Tally) Answered() (n int) {
	for _, c := range t.Answers {
		if c.Answer.Status != 0 {
			n += c.Times
		}
	}
	return n
}

// Count returns how often answer came.
func (t Tally) Count(answer Answer) int {
	if i := t.index(answer); i >= 0 {
		return t.Answers[i].Times
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

// index returns the index of an answer, or -1. A run has few different answers, so a list is faster
// than a map.
func (t Tally) index(answer Answer) int {
	return slices.IndexFunc(t.Answers, func(c Count) bool { return c.Answer == answer })
}

func (t *Tally) count(answer Answer, times int) {
	i := t.index(answer)
	if i < 0 {
		i, t.Answers = len(t.Answers), append(t.Answers, Count{Answer: answer})
	}
	t.Answers[i].Times += times
}

func (t *Tally) histogram() *hdrhistogram.Histogram {
	if t.Latency == nil {
		t.Latency = hdrhistogram.New(1, int64(MaxLatency), 3)
	}
	return t.Latency
}

func (t *Tally) record(answer Answer, latency time.Duration) {
	t.count(answer, 1)
	if answer != NotSent {
		_ = t.histogram().RecordValue(int64(max(0, min(latency, MaxLatency)))) // fails only out of range
	}
}

func (t *Tally) add(other Tally) {
	for _, c := range other.Answers {
		t.count(c.Answer, c.Times)
	}
	slices.SortStableFunc(t.Answers, func(a, b Count) int { return cmp.Compare(b.Times, a.Times) })
	if other.Latency != nil {
		t.histogram().Merge(other.Latency)
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

// recorder collects the answers of all connections.
type recorder struct {
	mu     sync.Mutex
	began  time.Time
	taken  time.Time // the last call of take
	total  Report    // all that take has returned
	recent Report    // since then
}

func (r *recorder) record(request Request, answer Answer, latency time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if request.Read {
		r.recent.Reads.record(answer, latency)
	} else {
		r.recent.Claims.record(answer, latency)
	}
	if err != nil {
		r.recent.addError(err.Error())
	}
}

// take returns what was recorded since the last call.
func (r *recorder) take() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var recent Report // sorted
	recent.Add(r.recent)
	recent.Elapsed, r.taken, r.recent = now.Sub(r.taken), now, Report{}
	r.total.Add(recent)
	return recent
}

// whole returns everything that was recorded, taken or not.
func (r *recorder) whole() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all Report // a copy, because later calls of take change total
	all.Add(r.total)
	all.Add(r.recent)
	all.Elapsed = time.Since(r.began)
	return all
}
