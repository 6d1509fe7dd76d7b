// Package load sends claims and reads to a running service and counts every answer.
//
// It knows only the HTTP contract of the service (openapi.yaml), so anything that implements the
// contract is measured in the same way. A [Plan] describes a run. In a closed loop each connection
// sends its next request when it has the answer to the last one, and latency runs from the moment
// the request was sent: a slow answer delays the requests behind it. In an open loop requests
// arrive at a rate, however fast the service answers, and latency runs from the moment the request
// was due, so the figures have no coordinated omission. The same Plan gives the same requests at
// the same times.
package load

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Plan describes a run.
type Plan struct {
	// Address is the service's "host:port".
	Address string
	// Connections is the number of keep-alive connections, and so of requests in flight at most.
	// They are opened before the run begins. At least 1.
	Connections int
	// Requests is the number of requests; 0: no end but that of the context.
	Requests int
	// Request returns request i, counted from 0. It is called concurrently and must return the same
	// request for the same i.
	Request func(i int) Request
	// Rate is the average number of requests that arrive per second (an open loop, with exponential
	// gaps); 0: a closed loop.
	Rate float64
	// Timeout bounds each request; 0: 10 s.
	Timeout time.Duration
	// Answered, if set, is called concurrently with the answer to request i. If it returns true,
	// the request is sent once more after pause; see [Retry]. The Response's Body is valid until
	// Answered returns.
	Answered func(i int, answer Answer, r Response) (again bool, pause time.Duration)
}

// Run is a run in progress. All connections share it, so a request goes to the connection that is
// free first.
type Run struct {
	plan Plan
	done chan struct{}

	mu      sync.Mutex
	next    int        // number of the next new request
	due     time.Time  // when it is due; zero in a closed loop: as soon as a connection is free
	gaps    *rand.Rand // between new requests at a rate: exponential, as for independent users
	retries []arrival  // by due
	all     Report     // of the run; complete when done is closed
	recent  Report     // since the last call of Take
	taken   time.Time  // the last call of Take
}

// arrival is an attempt to send a request.
type arrival struct {
	request int
	attempt int       // counted from 1
	due     time.Time // zero: now
}

// Start opens the connections and begins the run. When ctx ends, no more requests begin, and the
// run ends after the answers to those that have begun. One that dials first may take the Timeout to
// dial, and then the Timeout again. The error says that the service cannot be reached.
func Start(ctx context.Context, p Plan) (*Run, error) {
	if p.Connections < 1 {
		return nil, fmt.Errorf("connections: %d is less than 1", p.Connections)
	}
	clients := make([]*Client, p.Connections)
	for i := range clients {
		clients[i] = NewClient(p.Address, cmp.Or(p.Timeout, 10*time.Second))
		if err := clients[i].open(ctx); err != nil {
			for _, c := range clients[:i] {
				c.Close()
			}
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, len(clients), err)
		}
	}

	r := newRun(p)
	began := r.taken
	var workers sync.WaitGroup
	for _, client := range clients {
		workers.Go(func() { r.work(ctx, client) })
	}
	go func() {
		workers.Wait()
		r.all.Elapsed = time.Since(began)
		close(r.done)
	}()
	return r, nil
}

func newRun(p Plan) *Run {
	r := &Run{plan: p, done: make(chan struct{}), gaps: rand.New(rand.NewPCG(0, 0)), taken: time.Now()}
	if p.Rate > 0 {
		r.due = r.taken.Add(r.gap())
	}
	return r
}

func (r *Run) gap() time.Duration {
	return time.Duration(r.gaps.ExpFloat64() / r.plan.Rate * float64(time.Second))
}

// Take returns the report since the last call. It does not change what [Run.Wait] returns.
func (r *Run) Take() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	recent, now := r.recent, time.Now()
	recent.Elapsed = now.Sub(r.taken)
	r.recent, r.taken = Report{}, now
	return recent
}

// Done returns a channel that is closed after the last answer.
func (r *Run) Done() <-chan struct{} { return r.done }

// Wait waits until the run is over and returns the report of all of it.
func (r *Run) Wait() Report {
	<-r.done
	return r.all
}

// take returns the next arrival. It returns false when all remaining requests are in flight on
// other connections, which take their own retries.
func (r *Run) take() (next arrival, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	due := r.due
	if r.plan.Rate == 0 {
		due = time.Now()
	}
	hasNew := r.plan.Requests == 0 || r.next < r.plan.Requests
	if len(r.retries) > 0 && (!hasNew || !r.retries[0].due.After(due)) {
		next, r.retries = r.retries[0], r.retries[1:]
		return next, true
	}
	if !hasNew {
		return arrival{}, false
	}
	next = arrival{request: r.next, attempt: 1, due: r.due}
	r.next++
	if r.plan.Rate > 0 {
		r.due = r.due.Add(r.gap())
	}
	return next, true
}

// retry makes a request due once more.
func (r *Run) retry(again arrival) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, _ := slices.BinarySearchFunc(r.retries, again, func(a, b arrival) int { return a.due.Compare(b.due) })
	r.retries = slices.Insert(r.retries, at, again)
}

// timerTick is how late a sleeping goroutine may wake up without a fault of the service: Go's
// poller on Linux counts milliseconds when the process is otherwise idle.
const timerTick = time.Millisecond

// work sends requests over one connection until none is left or ctx ends.
func (r *Run) work(ctx context.Context, client *Client) {
	defer client.Close()
	for ctx.Err() == nil {
		next, ok := r.take()
		if !ok {
			return
		}
		slept := sleep(ctx, time.Until(next.due))
		if ctx.Err() != nil {
			return
		}
		answer, response, err := client.Send(context.WithoutCancel(ctx), r.plan.Request(next.request))
		response.Attempt = next.attempt

		began := response.Sent
		if late := began.Sub(next.due); r.plan.Rate > 0 && (!slept || late > timerTick) {
			began = next.due
		}
		latency := response.Answered.Sub(began)
		r.mu.Lock()
		r.all.record(answer, latency, err)
		r.recent.record(answer, latency, err)
		r.mu.Unlock()

		if r.plan.Answered != nil {
			if again, pause := r.plan.Answered(next.request, answer, response); again {
				r.retry(arrival{next.request, next.attempt + 1, response.Answered.Add(pause)})
			}
		}
		if answer == NotSent {
			// Without a pause each connection would dial a stopped service some 10,000 times a second.
			sleep(ctx, 200*time.Millisecond)
		}
	}
}

// sleep returns after d or when ctx ends. It reports whether d was more than 0.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return false
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return true
}

// Retry decides about a retry as a well-behaved client does: it repeats a request until its answer
// is definite, not before Retry-After, and with back-off and jitter. It is the usual result of
// [Plan].Answered.
func Retry(answer Answer, r Response) (again bool, pause time.Duration) {
	backOff := 25 * time.Millisecond << min(max(r.Attempt-1, 0), 4)
	return !answer.Definite(), r.RetryAfter + backOff/2 + rand.N(backOff)
}

// UntilDefinite calls send until the answer is definite or ctx ends, with pauses as in [Retry]. It
// returns the last answer.
func UntilDefinite(ctx context.Context, send func() (Answer, Response)) (Answer, Response) {
	for attempt := 1; ; attempt++ {
		answer, response := send()
		response.Attempt = attempt
		again, pause := Retry(answer, response)
		if again {
			sleep(ctx, pause)
		}
		if !again || ctx.Err() != nil {
			return answer, response
		}
	}
}
