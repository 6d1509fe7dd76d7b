package load

import (
	"context"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
)

// serve starts a service that is handler, until the test ends.
func serve(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"error":"an error of the test","code":"` + code + `","request_id":"1"}`))
}

func start(t *testing.T, p Plan) *Run {
	t.Helper()
	run, err := Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// The parts that Take returns while a run goes on add up to the whole.
func TestRun_sendsEachRequestOnce(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 20_000} {
		t.Run(name, func(t *testing.T) {
			const n = 1000
			store := apitest.NewStore()
			store.Set("c", n/2)
			users := Users(n)
			var answers [n]atomic.Int32
			run := start(t, Plan{
				Address: serve(t, api.New(store, api.Options{}).ServeHTTP), Connections: 7, Requests: n, Rate: rate,
				Request: func(i int) Request { return Request{User: users[i], Coupon: "c", Read: i%10 == 0} },
				Answered: func(i int, _ Answer, r Response) (bool, time.Duration) {
					answers[i].Add(1)
					if r.Answered.Before(r.Sent) {
						t.Errorf("answered %v, sent %v: not in order", r.Answered, r.Sent)
					}
					return false, 0
				},
			})
			var parts Report
			for done := false; !done; parts.Add(run.Take()) {
				select {
				case <-run.Done():
					done = true
				case <-time.After(time.Millisecond):
				}
			}
			want := Answers{Claimed: n / 2, OutOfStock: n*9/10 - n/2, ReadOK: n / 10} // no user claims twice
			for _, report := range []Report{parts, run.Wait()} {
				if !maps.Equal(report.Answers, want) || report.Total() != n || store.Calls() != n {
					t.Errorf("%v for %d requests received, want %v", report.Answers, store.Calls(), want)
				}
				if report.latency.TotalCount() != n || report.Quantile(50) <= 0 || report.Quantile(100) > report.Elapsed*2 {
					t.Errorf("latencies: %v in %v", report.Quantile(100), report.Elapsed)
				}
			}
			for i := range answers {
				if k := answers[i].Load(); k != 1 {
					t.Errorf("Answered was called %d times for request %d, want once", k, i)
				}
			}
		})
	}
}

// When the service stalls, the requests that were due meanwhile have its stall in their latency.
func TestRun_coordinatedOmission(t *testing.T) {
	t.Parallel()
	const stall, n, rate = 400 * time.Millisecond, 200, 1000
	plan := func() Plan {
		var first atomic.Bool
		return Plan{
			Address: serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if first.CompareAndSwap(false, true) {
					time.Sleep(stall)
				}
				w.WriteHeader(201)
			}),
			Connections: 1, Requests: n, Rate: rate,
			Request: func(int) Request { return claim },
		}
	}
	// All 200 are due in the first 200 ms or so, and only the first is sent before 400 ms.
	if p50 := start(t, plan()).Wait().Quantile(50); p50 < stall/4 {
		t.Errorf("the median is %v: it does not include the wait for a connection", p50)
	}
	closed := plan()
	closed.Rate = 0
	if report := start(t, closed).Wait(); report.Quantile(100) < stall || report.Quantile(90) >= stall {
		t.Errorf("closed loop: p90 %v, longest %v; want the stall in the first request only",
			report.Quantile(90), report.Quantile(100))
	}
}

func TestRun_retries(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 20_000} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if requests.Add(1) <= 100 {
					w.Header().Set("Retry-After", "1")
					fail(w, 503, "OVERLOADED")
					return
				}
				w.WriteHeader(201)
			})
			var noRetryAfter atomic.Int32
			report := start(t, Plan{
				Address: address, Connections: 5, Requests: 50, Rate: rate,
				Request: func(int) Request { return claim },
				Answered: func(_ int, a Answer, r Response) (bool, time.Duration) {
					if a == Overloaded && r.RetryAfter != time.Second {
						noRetryAfter.Add(1)
					}
					return a != Claimed, time.Millisecond
				},
			}).Wait()
			if report.Answers[Overloaded] != 100 || report.Answers[Claimed] != 50 || requests.Load() != 150 || noRetryAfter.Load() != 0 {
				t.Errorf("%+v for %d requests; %d without Retry-After", report.Answers, requests.Load(), noRetryAfter.Load())
			}
		})
	}
}

func TestRun_contextEnds(t *testing.T) {
	t.Parallel()
	for name, plan := range map[string]Plan{
		"no end":               {},
		"waiting for the next": {Rate: 0.001},
		"waiting to retry":     {Requests: 3, Answered: func(int, Answer, Response) (bool, time.Duration) { return true, time.Hour }},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var served atomic.Int32
			plan.Address = serve(t, func(w http.ResponseWriter, _ *http.Request) { served.Add(1); w.WriteHeader(201) })
			plan.Connections, plan.Request = 3, func(int) Request { return claim }
			run, err := Start(ctx, plan)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(50*time.Millisecond, cancel)
			report := run.Wait()
			if got := report.Answers[Claimed]; got != int(served.Load()) || got != report.Total() {
				t.Errorf("served %d, counted %+v: want all answers to requests in flight", served.Load(), report.Answers)
			}
		})
	}
}

// Each reason for no answer is counted apart, and the first few different errors are kept.
func TestRun_noAnswer(t *testing.T) {
	t.Parallel()
	address := serveConns(t, func(number int, conn *net.TCPConn) {
		readRequest(conn)
		switch number % 3 {
		case 0: // cut
		case 1:
			_, _ = conn.Write([]byte("220 ftp ready\r\n"))
		default:
			readRequest(conn) // until the client closes the connection
		}
	})
	report := start(t, Plan{
		Address: address, Connections: 3, Requests: 9, Timeout: 100 * time.Millisecond,
		Request: func(int) Request { return claim },
	}).Wait()
	if want := (Answers{Cut: 3, Malformed: 3, TimedOut: 3}); !maps.Equal(report.Answers, want) || report.Answered() != 0 {
		t.Errorf("%v, want %v", report.Answers, want)
	}
	if len(report.Errors) != 3 || !slices.ContainsFunc(report.Errors, func(e string) bool { return strings.Contains(e, "220 ftp ready") }) {
		t.Errorf("errors: %q", report.Errors)
	}
}

// When the service stops during a run, further requests count as not sent, with pauses between
// them.
func TestRun_serviceStops(t *testing.T) {
	t.Parallel()
	var server *httptest.Server
	var once sync.Once
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		once.Do(func() { _ = server.Listener.Close(); go server.CloseClientConnections() })
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	run, err := Start(ctx, Plan{
		Address: server.Listener.Addr().String(), Connections: 1,
		Request: func(int) Request { return claim },
	})
	if err != nil {
		t.Fatal(err)
	}
	report := run.Wait()
	if n := report.Answers[NotSent]; n == 0 || n > 10 {
		t.Errorf("%d requests not sent in a second, want 1 to 10: %+v", n, report.Answers)
	}
	if report.latency.TotalCount() != int64(report.Total()-report.Answers[NotSent]) {
		t.Error("the latencies include requests that were not sent")
	}
}

func TestStart_fails(t *testing.T) {
	for want, plan := range map[string]Plan{
		"connections: 0 is less than 1":     {},
		"connection 1 of 2: not sent: dial": {Address: noService, Connections: 2},
	} {
		if _, err := Start(t.Context(), plan); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestRun_take(t *testing.T) {
	for _, rate := range []float64{0, 1} {
		r, now := newRun(Plan{Requests: 2, Rate: rate}), time.Now()
		later, earlier := arrival{7, 2, now.Add(time.Hour)}, arrival{8, 3, now.Add(-time.Second)}
		r.retry(later)
		r.retry(earlier)
		var got []arrival
		for next, ok := r.take(); ok; next, ok = r.take() {
			got = append(got, next)
		}
		// First a retry that is due, then new requests, last a retry that is not due yet.
		if len(got) != 4 || got[0] != earlier || got[1].request != 0 || got[2].request != 1 || got[2].attempt != 1 || got[3] != later {
			t.Errorf("rate %v: %+v", rate, got)
		}
	}
}

func TestRun_takeAtRate(t *testing.T) {
	const n, rate = 100_000, 5000
	r := newRun(Plan{Requests: n, Rate: rate})
	previous, taken, sum, squares := r.taken, 0, 0., 0.
	for next, ok := r.take(); ok; next, ok = r.take() {
		gap := next.due.Sub(previous).Seconds()
		if gap < 0 {
			t.Fatalf("request %d is due %v s before the last one", next.request, -gap)
		}
		previous, taken, sum, squares = next.due, taken+1, sum+gap, squares+gap*gap
	}
	if taken != n || math.Abs(sum*rate/n-1) > 0.02 {
		t.Errorf("%d gaps of %v s on average, want %d of %v s", taken, sum/n, n, 1./rate)
	}
	// Of exponential gaps the mean square is twice the square of the mean; of equal gaps it is
	// once.
	if m := squares * n / (sum * sum); math.Abs(m-2) > 0.1 {
		t.Errorf("mean square of the gaps is %v times the square of the mean, want 2", m)
	}
}

func TestRetry(t *testing.T) {
	for attempt := range 100 {
		again, pause := Retry(OutcomeUnknown, Response{Attempt: attempt, RetryAfter: time.Second})
		if backOff := pause - time.Second; !again || backOff < 12*time.Millisecond || backOff > 600*time.Millisecond || attempt > 5 && backOff < 200*time.Millisecond {
			t.Errorf("attempt %d: %v, a back-off of %v", attempt, again, backOff)
		}
	}
	if again, _ := Retry(OutOfStock, Response{Attempt: 1}); again {
		t.Error("a retry after a definite answer")
	}
}

func TestUntilDefinite(t *testing.T) {
	answers := []Answer{Overloaded, Cut, Claimed, AlreadyClaimed}
	next := 0
	answer, r := UntilDefinite(t.Context(), func() (Answer, Response) {
		next++
		return answers[next-1], Response{Status: next}
	})
	if answer != Claimed || r.Status != 3 || r.Attempt != 3 {
		t.Errorf("%v, %+v, want the third answer", answer, r)
	}

	ctx, cancel := context.WithCancel(t.Context())
	answer, r = UntilDefinite(ctx, func() (Answer, Response) { cancel(); return Unavailable, Response{RetryAfter: time.Hour} })
	if answer != Unavailable || r.Attempt != 1 {
		t.Errorf("%v, %+v, want the first answer", answer, r)
	}
}
