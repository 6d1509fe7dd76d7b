package load

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serve runs handler as the service of a test.
func serve(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"error":"as the test wants it","code":"` + code + `","request_id":"1"}`))
}

func start(t *testing.T, p Plan) *Run {
	t.Helper()
	run, err := Start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func TestRunSendsEachRequestOnceAndCounts(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 20_000} {
		t.Run(name, func(t *testing.T) {
			const n = 1000
			var mu sync.Mutex
			bodies, reads := map[string]int{}, 0
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body := make([]byte, 200)
				k, _ := r.Body.Read(body)
				mu.Lock()
				defer mu.Unlock()
				if r.Method == http.MethodGet {
					reads++
					_, _ = w.Write([]byte(strings.Repeat("x", 100_000))) // chunked
					return
				}
				bodies[string(body[:k])]++
				if len(bodies)%2 == 0 {
					fail(w, 409, "ALREADY_CLAIMED")
				} else {
					w.WriteHeader(201)
				}
			})
			users := Users(n)
			var told [n]atomic.Int32
			report := start(t, Plan{
				Address: address, Connections: 7, Requests: n, Rate: rate,
				Request: func(i int) Request { return Request{User: users[i], Coupon: "c", Read: i%10 == 0} },
				Answered: func(i int, _ Answer, r Response) (bool, time.Duration) {
					told[i].Add(1)
					if r.Answered.Before(r.Sent) {
						t.Error("answered before it was sent")
					}
					return false, 0
				},
			}).Wait()
			if report.Claims.Count(Claimed) != n*9/20 || report.Claims.Count(AlreadyClaimed) != n*9/20 || report.Claims.Total() != n*9/10 {
				t.Errorf("claims: %+v", report.Claims.Answers)
			}
			if report.Reads.Count(ReadOK) != n/10 || reads != n/10 || report.Reads.Total() != n/10 {
				t.Errorf("reads: %+v, and %d arrived", report.Reads.Answers, reads)
			}
			if len(bodies) != n*9/10 {
				t.Errorf("%d different claims arrived", len(bodies))
			}
			for i := range told {
				if k := told[i].Load(); k != 1 {
					t.Errorf("told %d times of request %d", k, i)
				}
			}
			if report.Claims.Latency.TotalCount() != n*9/10 || report.Claims.Quantile(50) <= 0 || report.Claims.Quantile(100) > report.Elapsed*2 {
				t.Errorf("latencies: %v in %v", report.Claims.Quantile(100), report.Elapsed)
			}
		})
	}
}

func TestRunTakesWhatIsNew(t *testing.T) {
	const n = 500
	run := start(t, Plan{
		Address:     serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) }),
		Connections: 4, Requests: n, Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
	})
	var taken Tally
	for over := false; !over; {
		select {
		case <-run.Done():
			over = true
		default:
		}
		taken.add(run.Take().Claims)
	}
	if taken.Total() != n || taken.Latency.TotalCount() != n {
		t.Errorf("took %d in parts", taken.Total())
	}
	if whole := run.Wait(); whole.Claims.Total() != n || whole.Claims.Latency.TotalCount() != n {
		t.Errorf("%d in the whole", whole.Claims.Total())
	}
}

// A service that stands still for a while must be seen in the latency of those who would have come meanwhile.
func TestRunAtARateOmitsNothing(t *testing.T) {
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
			Connections: 1, Requests: n, Rate: rate, Seed: 1,
			Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
		}
	}
	// All 200 were due in the first 200 ms or so, and none but the first was sent before 400 ms.
	if p50 := start(t, plan()).Wait().Claims.Quantile(50); p50 < stall/4 {
		t.Errorf("the median is %v: the wait for the connection was left out", p50)
	}
	closed := plan()
	closed.Rate = 0
	if report := start(t, closed).Wait(); report.Claims.Quantile(100) < stall || report.Claims.Quantile(90) >= stall {
		t.Errorf("in a closed loop the first request alone waits: p90 %v, longest %v", report.Claims.Quantile(90), report.Claims.Quantile(100))
	}
}

func TestRunAsksAgain(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 20_000} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) <= 100 {
					w.Header().Set("Retry-After", "1")
					fail(w, 503, "OVERLOADED")
					return
				}
				w.WriteHeader(201)
			})
			var wrong atomic.Int32
			report := start(t, Plan{
				Address: address, Connections: 5, Requests: 50, Rate: rate,
				Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
				Answered: func(_ int, a Answer, r Response) (bool, time.Duration) {
					if a == Overloaded && r.RetryAfter != time.Second {
						wrong.Add(1)
					}
					return a != Claimed, time.Millisecond
				},
			}).Wait()
			if report.Claims.Count(Overloaded) != 100 || report.Claims.Count(Claimed) != 50 || asked.Load() != 150 || wrong.Load() != 0 {
				t.Errorf("%+v of %d; %d without Retry-After", report.Claims.Answers, asked.Load(), wrong.Load())
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	for name, plan := range map[string]Plan{
		"endless":              {Request: func(int) Request { return Request{User: "u", Coupon: "c"} }},
		"waiting for the next": {Rate: 0.001, Request: func(int) Request { return Request{User: "u", Coupon: "c"} }},
		"waiting to ask again": {
			Requests: 3, Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
			Answered: func(int, Answer, Response) (bool, time.Duration) { return true, time.Hour },
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var served atomic.Int32
			plan.Address = serve(t, func(w http.ResponseWriter, _ *http.Request) { served.Add(1); w.WriteHeader(201) })
			plan.Connections = 3
			run, err := Start(ctx, plan)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(50*time.Millisecond, cancel)
			report := run.Wait()
			if got := report.Claims.Count(Claimed); got != int(served.Load()) || got != report.Claims.Total() {
				t.Errorf("served %d, counted %+v: what was under way has to be waited for", served.Load(), report.Claims.Answers)
			}
		})
	}
}

func TestRunCountsWhatHasNoAnswer(t *testing.T) {
	const n = 20
	var connections atomic.Int32
	address := scripted(t, func(_ int, conn net.Conn) {
		switch connections.Add(1) % 3 {
		case 0:
			return // cut
		case 1:
			buffer := make([]byte, 1024)
			_, _ = conn.Read(buffer)
			_, _ = conn.Write([]byte("220 ftp ready\r\n"))
		default:
			time.Sleep(300 * time.Millisecond) // longer than the time-out and its quarter
		}
	})
	report := start(t, Plan{
		Address: address, Connections: 2, Requests: n, Timeout: 100 * time.Millisecond,
		Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
	}).Wait()
	for _, a := range []Answer{Cut, Malformed, TimedOut} {
		if report.Claims.Count(a) == 0 {
			t.Errorf("no %v", a)
		}
	}
	if report.Claims.Total() != n {
		t.Errorf("%+v", report.Claims.Answers)
	}
	if len(report.Faults) == 0 || len(report.Faults) > maxFaults ||
		!slices.ContainsFunc(report.Faults, func(f string) bool { return strings.Contains(f, "220 ftp ready") }) {
		t.Errorf("faults: %q", report.Faults)
	}
}

// A service that goes away in the middle is counted as not asked, and not hammered.
func TestRunWhenTheServiceGoesAway(t *testing.T) {
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
		Request: func(int) Request { return Request{User: "u", Coupon: "c"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	report := run.Wait()
	if n := report.Claims.Count(NotSent); n == 0 || n > 10 {
		t.Errorf("tried %d times in a second to reach what is not there: %+v", n, report.Claims.Answers)
	}
	if report.Claims.Latency.TotalCount() != int64(report.Claims.Total()-report.Claims.Count(NotSent)) {
		t.Error("what was not sent has a latency")
	}
}

func TestStartRefuses(t *testing.T) {
	_, err := Start(t.Context(), Plan{Requests: -1, Rate: -1, Timeout: -1})
	if err == nil {
		t.Fatal("a plan without sense was let through")
	}
	for _, word := range []string{"connections", "requests", "rate", "time-out", "function"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %s", err, word)
		}
	}

	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	_, err = Start(t.Context(), Plan{
		Address: listener.Addr().String(), Connections: 2,
		Request: func(int) Request { return Request{} },
	})
	if !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), "connection 1 of 2") {
		t.Errorf("got %v", err)
	}
}
