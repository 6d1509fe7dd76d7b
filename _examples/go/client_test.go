package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// responses are what a server sends: the first one for the first request, and so on. The last one
// is repeated.
//
//	"409 ALREADY_CLAIMED"  an error response of the service
//	"201", "200 {…}"       a successful response
//	"502"                  an error response of a proxy, which is not JSON
//	"cut off"              an incomplete response
//	"lost"                 no response
type responses []string

// serve starts the server. requests counts the requests that it gets.
func (s responses) serve(t *testing.T) (client *Client, requests *atomic.Int32) {
	t.Helper()
	requests = &atomic.Int32{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		line := s[min(int(requests.Add(1))-1, len(s)-1)]
		status, rest, _ := strings.Cut(line, " ")
		switch {
		case line == "cut off":
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
	client.MinDelay, client.MaxDelay = time.Millisecond, 4*time.Millisecond
	t.Cleanup(client.http.CloseIdleConnections)
	return client, requests
}

func TestClient_Claim(t *testing.T) {
	for _, c := range []struct {
		responses responses
		want      Outcome
		attempts  int32
	}{
		{responses{"201"}, Claimed, 1},
		{responses{"409 ALREADY_CLAIMED"}, AlreadyClaimed, 1},
		{responses{"400 OUT_OF_STOCK"}, SoldOut, 1},
		{responses{"404 COUPON_NOT_FOUND"}, NoSuchCoupon, 1},

		// "The connection broke, did I get it?"
		{responses{"lost", "201"}, Claimed, 2},
		{responses{"lost", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{responses{"cut off", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{responses{"503 OUTCOME_UNKNOWN", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{responses{"503 OUTCOME_UNKNOWN", "201"}, Claimed, 2},
		{responses{"500 INTERNAL", "409 ALREADY_CLAIMED"}, Claimed, 2},
		{responses{"502", "504", "409 ALREADY_CLAIMED"}, Claimed, 3},
		{responses{"lost", "400 OUT_OF_STOCK"}, SoldOut, 2},

		// The failed attempt was not executed, so ALREADY_CLAIMED is from an earlier call.
		{responses{"503 UNAVAILABLE", "409 ALREADY_CLAIMED"}, AlreadyClaimed, 2},
		{responses{"503 OVERLOADED", "503 UNAVAILABLE", "503 OVERLOADED", "201"}, Claimed, 4},
		// An ambiguous attempt stays ambiguous.
		{responses{"503 OUTCOME_UNKNOWN", "503 UNAVAILABLE", "409 ALREADY_CLAIMED"}, Claimed, 3},
	} {
		client, requests := c.responses.serve(t)
		got, err := client.Claim(t.Context(), "ada", "sale")
		if err != nil || got != c.want || requests.Load() != c.attempts {
			t.Errorf("%q: %q after %d attempts (%v), want %q after %d", c.responses, got, requests.Load(), err, c.want, c.attempts)
		}
	}
}

func TestClient_Create(t *testing.T) {
	for _, c := range []struct {
		responses responses
		want      Outcome
	}{
		{responses{"201"}, Created},
		{responses{"409 COUPON_EXISTS"}, Exists},
		{responses{"503 UNAVAILABLE", "409 COUPON_EXISTS"}, Exists},
		{responses{"lost", "409 COUPON_EXISTS"}, MaybeCreated},
	} {
		client, _ := c.responses.serve(t)
		if got, err := client.Create(t.Context(), "sale", 5); err != nil || got != c.want {
			t.Errorf("%q: %q (%v), want %q", c.responses, got, err, c.want)
		}
	}
}

func TestClient_Read(t *testing.T) {
	client, _ := responses{"503 UNAVAILABLE", "cut off", `200 {"name":"sale","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`}.serve(t)
	coupon, found, err := client.Read(t.Context(), "sale")
	if err != nil || !found || coupon.RemainingAmount != 1 || len(coupon.ClaimedBy) != 1 {
		t.Errorf("read %v, %v, %v", coupon, found, err)
	}
	client, _ = responses{"404 COUPON_NOT_FOUND"}.serve(t)
	if _, found, err := client.Read(t.Context(), "sale"); found || err != nil {
		t.Errorf("read of an unknown coupon: found %v, %v", found, err)
	}
}

// Errors of the request are not retried, internal errors only a few times.
func TestClient_errorsWithFewRetries(t *testing.T) {
	for line, attempts := range map[string]int32{
		"400 INVALID_REQUEST": 1, "413 BODY_TOO_LARGE": 1, "404 NOT_FOUND": 1, "405 METHOD_NOT_ALLOWED": 1, "500 INTERNAL": 1 + maxInternalErrors,
	} {
		client, requests := responses{line}.serve(t)
		outcome, err := client.Claim(t.Context(), "ada", "sale")
		r, ok := errors.AsType[*response](err)
		if outcome != "" || !ok || r.code != strings.Fields(line)[1] || requests.Load() != attempts {
			t.Errorf("%s: %q, %v after %d attempts, want %d", line, outcome, err, requests.Load(), attempts)
		}
	}
}

// Timeout and the context limit a call. The error contains the last response, and not the error of
// the attempt that was interrupted.
func TestClient_timeouts(t *testing.T) {
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
		for _, timeout := range []time.Duration{1500 * time.Millisecond, 5 * time.Second, time.Minute} {
			client.Timeout = timeout
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			began := time.Now()
			_, err := client.Claim(ctx, "ada", "sale")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "UNAVAILABLE") {
				t.Errorf("timeout %s: error %v", timeout, err)
			}
			if took := time.Since(began); took != min(timeout, 30*time.Second) {
				t.Errorf("timeout %s: the call took %s", timeout, took)
			}
		}
	})
}

// The delay doubles each time, is randomized, and is added to Retry-After.
func TestClient_delays(t *testing.T) {
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
			delay := time.Duration(milliseconds) * time.Millisecond
			shortest, longest := delay/2, delay*3/2
			if i == 5 {
				shortest, longest = shortest+7*time.Second, longest+7*time.Second
			}
			if waited := at[i+1] - at[i]; waited < shortest || waited > longest {
				t.Errorf("delay %d was %s, want %s to %s", i, waited, shortest, longest)
			}
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// All attempts use one connection.
func TestClient_reusesConnection(t *testing.T) {
	connections := atomic.Int32{}
	requests := atomic.Int32{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) < 5 {
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
	client.MinDelay = time.Millisecond
	if outcome, err := client.Claim(t.Context(), "ada", "sale"); outcome != Claimed || err != nil || connections.Load() != 1 {
		t.Errorf("%q, %v, with %d connections", outcome, err, connections.Load())
	}
}

// recorder is a server that records requests and redirects each of them, as a gateway does that
// adds a slash or insists on https.
func recorder(t *testing.T, status int) (url string, requests func() []string) {
	t.Helper()
	var mu sync.Mutex
	var lines []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		lines = append(lines, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+r.Header.Get("Content-Type")))
		mu.Unlock()
		if strings.HasPrefix(r.RequestURI, "/moved") {
			http.Error(w, `{"error":"no coupon has this name","code":"COUPON_NOT_FOUND","request_id":"id"}`, http.StatusNotFound)
			return
		}
		http.Redirect(w, r, "/moved"+r.RequestURI, status)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(lines)
	}
}

// A redirect is an error that names its target, never an answer about a coupon.
func TestClient_followsNoRedirect(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		url, requests := recorder(t, status)
		client := New(url + "//")
		_, claimErr := client.Claim(t.Context(), "ada", "sale")
		_, createErr := client.Create(t.Context(), "sale", 5)
		_, _, readErr := client.Read(t.Context(), "..")
		for _, err := range []error{claimErr, createErr, readErr} {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprint(status)) || !strings.Contains(err.Error(), "redirected to /moved/api/coupons") {
				t.Errorf("%d: %v", status, err)
			}
		}
		want := []string{"POST /api/coupons/claim application/json", "POST /api/coupons application/json", "GET /api/coupons/%2E%2E"}
		if got := requests(); !slices.Equal(got, want) {
			t.Errorf("%d: requests %q, want %q", status, got, want)
		}
	}
}

// The same for the example with curl, also if the user's own configuration of curl follows
// redirects.
func TestCurl_followsNoRedirect(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".curlrc"), []byte("location\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		url, requests := recorder(t, status)
		for _, arguments := range [][]string{{"claim", "ada", "sale"}, {"create", "sale", "5"}, {"read", "."}, {"read", ".."}, {"read", "a/.."}} {
			cmd := exec.CommandContext(t.Context(), "../curl/coupons.sh", arguments...)
			cmd.Env = append(os.Environ(), "COUPOND_URL="+url+"//", "HOME="+home)
			output, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 2 || !strings.HasPrefix(string(output), fmt.Sprint(status, ": redirected")) {
				t.Errorf("%s: %v, %s", arguments, err, output)
			}
		}
		want := []string{
			"POST /api/coupons/claim application/json", "POST /api/coupons application/json",
			"GET /api/coupons/%2E", "GET /api/coupons/%2E%2E", "GET /api/coupons/a%2F..",
		}
		if got := requests(); !slices.Equal(got, want) {
			t.Errorf("%d: requests %q, want %q", status, got, want)
		}
	}
}
