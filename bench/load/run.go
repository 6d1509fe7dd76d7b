package load

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// Plan says what a run asks of whom.
type Plan struct {
	// Address is the service's "host:port".
	Address string
	// Connections is how many keep-alive connections there are, and so how many requests can be under way at once.
	// They are made before the run begins. At least 1.
	Connections int
	// Requests is how many requests there are; 0: until the context ends.
	Requests int
	// Request gives request i, from 0 on. It is called by many goroutines at once and must always give the same.
	Request func(i int) Request
	// Rate is how many requests arrive in a second on average (an open loop, with exponential gaps); 0: each connection
	// sends its next request when it has the answer to the last (a closed loop).
	Rate float64
	// Seed makes the gaps between arrivals at a Rate.
	Seed uint64
	// Timeout bounds each request, see [NewConn]; 0: 10 s.
	Timeout time.Duration
	// Answered is told what request i came to, when it is set; by many goroutines at once. If it returns true, the same
	// request is sent once more after the pause it gives. The Response's Body is good until it returns.
	Answered func(i int, answer Answer, r Response) (again bool, pause time.Duration)
}

func (p *Plan) check() error {
	var errs []error
	if p.Connections < 1 {
		errs = append(errs, fmt.Errorf("connections: %d is less than 1", p.Connections))
	}
	if p.Requests < 0 {
		errs = append(errs, fmt.Errorf("requests: %d is less than 0", p.Requests))
	}
	if !(p.Rate >= 0 && p.Rate <= 1e9) { // also false for what is not a number
		errs = append(errs, fmt.Errorf("rate: %v is not between 0 and a thousand million a second", p.Rate))
	}
	if p.Timeout < 0 {
		errs = append(errs, fmt.Errorf("time-out: %v is less than 0", p.Timeout))
	}
	if p.Request == nil {
		errs = append(errs, errors.New("no function that gives the requests"))
	}
	return errors.Join(errs...)
}

// Run is a run under way.
type Run struct {
	plan     Plan
	arrivals *arrivals
	recorder *recorder
	done     chan struct{}
	final    Report // set before done is closed
}

// Start makes the connections and lets the load loose. When ctx ends no further request is sent; those under way are
// waited for. The error says what is wrong with the plan, or that the service cannot be reached.
func Start(ctx context.Context, p Plan) (*Run, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if p.Timeout == 0 {
		p.Timeout = 10 * time.Second
	}
	conns := make([]*Conn, p.Connections)
	for i := range conns {
		conns[i] = NewConn(p.Address, p.Timeout)
		if err := conns[i].Open(ctx); err != nil {
			for _, c := range conns[:i] {
				c.Close()
			}
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, len(conns), err)
		}
	}

	r := &Run{
		plan:     p,
		arrivals: newArrivals(p.Requests, p.Rate, p.Seed),
		recorder: newRecorder(min(p.Connections, 4*runtime.GOMAXPROCS(0))),
		done:     make(chan struct{}),
	}
	var workers sync.WaitGroup
	for i, conn := range conns {
		workers.Go(func() { r.work(ctx, conn, &r.recorder.shards[i%len(r.recorder.shards)]) })
	}
	go func() {
		workers.Wait()
		r.final = r.recorder.whole()
		close(r.done)
	}()
	return r, nil
}

// Take returns what came since it was last called. [Run.Wait] still returns the whole.
func (r *Run) Take() Report { return r.recorder.take() }

// Done is closed after the last answer.
func (r *Run) Done() <-chan struct{} { return r.done }

// Wait returns what came of the whole run when it is over.
func (r *Run) Wait() Report {
	<-r.done
	return r.final
}

// timerTick is how late a sleeping connection wakes up through no fault of the service: Go's poller on Linux counts in
// milliseconds when the process has nothing else to do.
const timerTick = time.Millisecond

func (r *Run) work(ctx context.Context, conn *Conn, s *shard) {
	defer conn.Close()
	writer := newWriter(r.plan.Address)
	timer := time.NewTimer(0)
	defer timer.Stop()
	unreachable := 0 // times in a row

	for ctx.Err() == nil {
		i, due, ok := r.arrivals.take()
		if !ok {
			return
		}
		rested := false
		if !due.IsZero() {
			if rested = sleep(ctx, timer, time.Until(due)); ctx.Err() != nil {
				return
			}
		}
		request := r.plan.Request(i)
		bytes, err := writer.write(request)
		if err != nil {
			// A plan that cannot be sent is a mistake in the program that made it, not something to be counted.
			panic(fmt.Sprintf("load: request %d (%+v): %v", i, request, err))
		}
		response, err := conn.Do(ctx, bytes)
		answer, fault := judge(request, response, err)

		began := response.Sent
		if late := response.Sent.Sub(due); r.plan.Rate > 0 && (!rested || late > timerTick) {
			began = due
		}
		s.record(request, answer, response.Answered.Sub(began), fault)

		if r.plan.Answered != nil {
			if again, pause := r.plan.Answered(i, answer, response); again {
				r.arrivals.repeat(i, response.Answered.Add(pause))
			}
		}
		if answer != NotSent {
			unreachable = 0
			continue
		}
		// Without a pause a service that is away would be asked some 10,000 times a second whether it is back.
		sleep(ctx, timer, min(time.Second, 10*time.Millisecond<<min(unreachable, 10)))
		unreachable++
	}
}

// sleep returns after d or when ctx ends. It says whether there was anything to wait for.
func sleep(ctx context.Context, timer *time.Timer, d time.Duration) bool {
	if d <= 0 {
		return false
	}
	timer.Reset(d)
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return true
}
