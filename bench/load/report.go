package load

import (
	"cmp"
	"slices"
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
func (t Tally) Total() int { return t.sum(func(Answer) bool { return true }) }

// Answered returns the number of requests that got an answer.
func (t Tally) Answered() int { return t.sum(func(a Answer) bool { return a.Status != 0 }) }

// Ambiguous returns the number of requests with an ambiguous answer.
func (t Tally) Ambiguous() int { return t.sum(Answer.Ambiguous) }

// Count returns how often answer came.
func (t Tally) Count(answer Answer) int { return t.sum(func(a Answer) bool { return a == answer }) }

func (t Tally) sum(counts func(Answer) bool) (n int) {
	for _, c := range t.Answers {
		if counts(c.Answer) {
			n += c.Times
		}
	}
	return n
}

// Quantile returns the latency that percent of the requests did not exceed (50 is the median), or 0
// if there were none.
func (t Tally) Quantile(percent float64) time.Duration {
	if t.Latency == nil {
		return 0
	}
	return time.Duration(t.Latency.ValueAtPercentile(percent))
}

// count counts an answer. A run has few different ones, so a list is faster than a map.
func (t *Tally) count(answer Answer, times int) {
	i := slices.IndexFunc(t.Answers, func(c Count) bool { return c.Answer == answer })
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

func (t *Tally) sort() {
	slices.SortStableFunc(t.Answers, func(a, b Count) int { return cmp.Compare(b.Times, a.Times) })
}

func (t *Tally) add(other Tally) {
	for _, c := range other.Answers {
		t.count(c.Answer, c.Times)
	}
	t.sort()
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

// record adds the answer to a request. Afterwards the answers are not sorted.
func (r *Report) record(request Request, answer Answer, latency time.Duration, err error) {
	t := &r.Claims
	if request.Read {
		t = &r.Reads
	}
	t.count(answer, 1)
	if answer != NotSent {
		_ = t.histogram().RecordValue(int64(max(0, min(latency, MaxLatency)))) // fails only out of range
	}
	if err != nil {
		r.addError(err.Error())
	}
}

func (r *Report) sort() {
	r.Claims.sort()
	r.Reads.sort()
}
