package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// script answers the first request with its first line, and so on; the last one for ever after.
//
//	"409 ALREADY_CLAIMED"  a refusal in the service's words
//	"201", "200 {…}"       a success
//	"502"                  of a proxy: no JSON
//	"broken"               the connection ends in the middle of the answer
//	"lost"                 the connection ends without an answer
type script []string

func (s script) serve(t *testing.T) (client *Client, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		line := s[min(int(asked.Add(1))-1, len(s)-1)]
		status, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "broken":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "{")
			panic(http.ErrAbortHandler)
		case line == "lost":
			panic(http.ErrAbortHandler)
		case rest != "" && rest[0] != '{':
			rest = fmt.Sprintf(`{"error":"a sentence","code":%q,"request_id":"id"}`, rest)
		}
		number := 0
		if _, err := fmt.Sscan(status, &number); err != nil {
			t.Error(err)
		}
		w.WriteHeader(number)
		_, _ = io.WriteString(w, rest)
	}))
	t.Cleanup(server.Close)
	client = New(server.URL)
	client.FirstPause, client.LongestPause = time.Millisecond, 4*time.Millisecond
	t.Cleanup(client.http.CloseIdleConnections)
	return client, asked
}

func TestClaim(t *testing.T) {
	for _, c := range []struct {
		script script
		want   Outcome
		tries  int32
	}{
		{script{"201"}, Claimed, 1},
		{script{"409 ALREADY_CLAIMED"}, HadIt, 1},
		{script{"400 OUT_OF_STOCK"}, SoldOut, 1},
		{script{"404 COUPON_NOT_FOUND"}, NoSuchCoupon, 1},

		// "The connection broke, did I get it?"
		{script{"lost", "201"}, Claimed, 2},
		{script{"lost", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{script{"broken", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{script{"503 OUTCOME_UNKNOWN", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{script{"503 OUTCOME_UNKNOWN", "201"}, Claimed, 2},
		{script{"500 INTERNAL", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{script{"502", "504", "409 ALREADY_CLAIMED"}, Claimed, 3},
		{script{"lost", "400 OUT_OF_STOCK"}, SoldOut, 2},

		// Surely not done: a 409 is then what it says.
		{script{"503 UNAVAILABLE", "409 ALREADY_CLAIMED"}, HadIt, 2},
		{script{"503 OVERLOADED", "503 UNAVAILABLE", "503 OVERLOADED", "201"}, Claimed, 4},
		// But doubt stays.
		{script{"503 OUTCOME_UNKNOWN", "503 UNAVAILABLE", "409 ALREADY_CLAIMED"}, Claimed, 3},
	} {
		client, asked := c.script.serve(t)
		got, err := client.Claim(t.Context(), "ada", "sale")
		if err != nil || got != c.want || asked.Load() != c.tries {
			t.Errorf("%q is %q after %d tries (%v), want %q after %d", c.script, got, asked.Load(), err, c.want, c.tries)
		}
	}
}

func TestCreate(t *testing.T) {
	for _, c := range []struct {
		script script
		want   Outcome
	}{
		{script{"201"}, Created},
		{script{"409 COUPON_EXISTS"}, Exists},
		{script{"503 UNAVAILABLE", "409 COUPON_EXISTS"}, Exists},
		{script{"lost", "409 COUPON_EXISTS"}, MaybeOurs},
	} {
		client, _ := c.script.serve(t)
		if got, err := client.Create(t.Context(), "sale", 5); err != nil || got != c.want {
			t.Errorf("%q is %q (%v), want %q", c.script, got, err, c.want)
		}
	}
}

func TestRead(t *testing.T) {
	client, _ := script{"503 UNAVAILABLE", "broken", `200 {"name":"sale","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`}.serve(t)
	coupon, found, err := client.Read(t.Context(), "sale")
	if err != nil || !found || coupon.RemainingAmount != 1 || len(coupon.ClaimedBy) != 1 {
		t.Errorf("read %v, %v, %v", coupon, found, err)
	}
	client, _ = script{"404 COUPON_NOT_FOUND"}.serve(t)
	if _, found, err := client.Read(t.Context(), "sale"); found || err != nil {
		t.Errorf("no coupon is read as %v, %v", found, err)
	}
}

// What cannot become right by asking again is asked once, and a fault of the service a few times.
func TestMistakesAreNotRetried(t *testing.T) {
	for line, tries := range map[string]int32{
		"400 INVALID_REQUEST": 1, "413 BODY_TOO_LARGE": 1, "404 NOT_FOUND": 1, "405 METHOD_NOT_ALLOWED": 1, "500 INTERNAL": 1 + mostFaults,
	} {
		client, asked := script{line}.serve(t)
		outcome, err := client.Claim(t.Context(), "ada", "sale")
		var refusal *answer
		if outcome != "" || !errors.As(err, &refusal) || refusal.code != strings.Fields(line)[1] || asked.Load() != tries {
			t.Errorf("%s: %q, %v after %d tries, want %d", line, outcome, err, asked.Load(), tries)
		}
	}
}

// Whichever ends first, and the error tells the last answer, not that a try was cut short.
func TestTheContextAndPatienceBoundACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := New("http://service")
		client.http.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
			recorder := httptest.NewRecorder()
			recorder.WriteHeader(http.StatusServiceUnavailable)
			_, _ = recorder.WriteString(`{"code":"UNAVAILABLE"}`)
			return recorder.Result(), nil
		})
		for _, bound := range []time.Duration{1500 * time.Millisecond, 5 * time.Second, time.Minute} {
			client.Patience = bound
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			began := time.Now()
			_, err := client.Claim(ctx, "ada", "sale")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "UNAVAILABLE") {
				t.Errorf("within %s it fails with %v", bound, err)
			}
			if took := time.Since(began); took != min(bound, 30*time.Second) {
				t.Errorf("it took %s, and was to take %s at most", took, bound)
			}
		}
	})
}

// On a clock of the test's own: Retry-After is waited for, pauses grow, and no two clients wait the same time.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		client := New("http://service")
		client.http.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
			at = append(at, time.Since(began))
			if len(at) < 6 {
				return nil, net.ErrClosed
			}
			recorder := httptest.NewRecorder()
			if len(at) == 6 {
				recorder.Header().Set("Retry-After", "7")
				recorder.WriteHeader(http.StatusServiceUnavailable)
			} else {
				recorder.WriteHeader(http.StatusCreated)
			}
			return recorder.Result(), nil
		})
		if outcome, err := client.Claim(t.Context(), "ada", "sale"); outcome != Claimed || err != nil {
			t.Fatal(outcome, err)
		}
		for i, milliseconds := range []int{100, 200, 400, 800, 1600, 3200} {
			pause := time.Duration(milliseconds) * time.Millisecond
			least, most := pause/2, pause*3/2
			if i == 5 {
				least, most = least+7*time.Second, most+7*time.Second
			}
			if waited := at[i+1] - at[i]; waited < least || waited > most {
				t.Errorf("pause %d was %s, want %s to %s", i, waited, least, most)
			}
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Refusals are read to their end: one connection serves all tries.
func TestConnectionsAreReused(t *testing.T) {
	connections := atomic.Int32{}
	asked := atomic.Int32{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 5 {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, `{"code":"OVERLOADED","error":%q}`, strings.Repeat("x", 10_000))
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	client := New(server.URL)
	client.FirstPause = time.Millisecond
	if outcome, err := client.Claim(t.Context(), "ada", "sale"); outcome != Claimed || err != nil || connections.Load() != 1 {
		t.Errorf("%q, %v, with %d connections", outcome, err, connections.Load())
	}
}
