package load

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report has the answers of a run, or of a part of it.
type Report struct {
	// Elapsed is the time covered: for a whole run, from its first request to its last answer.
	Elapsed time.Duration
	Answers Answers
	// Errors has the first five different errors of requests without an answer or with a malformed
	// one.
	Errors []string

	// latency is in nanoseconds, with three significant digits, without requests that were not sent.
	// It may be nil, see init.
	latency *hdrhistogram.Histogram
}

// maxLatency is the longest latency that is recorded. Longer ones count as maxLatency.
const maxLatency = 10 * time.Minute

// Answers is how often each answer came.
type Answers map[Answer]int

// Sorted returns the answers that came, the most frequent first.
func (a Answers) Sorted() []Answer {
	return slices.SortedFunc(maps.Keys(a), func(x, y Answer) int {
		return cmp.Or(a[y]-a[x], strings.Compare(x.String(), y.String()))
	})
}

// String returns the answers for display: "45 × 400 OUT_OF_STOCK, 5 × 201", or "none".
func (a Answers) String() string {
	var list []string
	for _, answer := range a.Sorted() {
		list = append(list, fmt.Sprintf("%d × %v", a[answer], answer))
	}
	return cmp.Or(strings.Join(list, ", "), "none")
}

func (a Answers) sum(counts func(Answer) bool) (n int) {
	for answer, times := range a {
		if counts(answer) {
			n += times
		}
	}
	return n
}

// Total returns the number of requests.
func (r Report) Total() int { return r.Answers.sum(func(Answer) bool { return true }) }

// Answered returns the number of requests that got an answer.
func (r Report) Answered() int { return r.Answers.sum(func(a Answer) bool { return a.Status != 0 }) }

// Ambiguous returns the number of requests with an ambiguous answer.
func (r Report) Ambiguous() int { return r.Answers.sum(Answer.Ambiguous) }

// Quantile returns the latency that percent of the requests did not exceed (50 is the median), or 0
// if there were none.
func (r Report) Quantile(percent float64) time.Duration {
	if r.latency == nil {
		return 0
	}
	return time.Duration(r.latency.ValueAtPercentile(percent))
}

// Add adds the report of the next part of the same run.
func (r *Report) Add(other Report) {
	r.init()
	other.init()
	r.Elapsed += other.Elapsed
	for answer, times := range other.Answers {
		r.Answers[answer] += times
	}
	r.latency.Merge(other.latency)
	for _, e := range other.Errors {
		r.addError(e)
	}
}

// record adds the answer to a request.
func (r *Report) record(answer Answer, latency time.Duration, err error) {
	r.init()
	r.Answers[answer]++
	if answer != NotSent {
		_ = r.latency.RecordValue(int64(max(0, min(latency, maxLatency)))) // fails only out of range
	}
	if err != nil {
		r.addError(err.Error())
	}
}

func (r *Report) init() {
	if r.Answers == nil {
		r.Answers = Answers{}
	}
	if r.latency == nil {
		r.latency = hdrhistogram.New(1, int64(maxLatency), 3)
	}
}

func (r *Report) addError(text string) {
	if len(r.Errors) < 5 && !slices.Contains(r.Errors, text) {
		r.Errors = append(r.Errors, text)
	}
}
