package api_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/api"
	"scalable-coupon-system/pgstore"
)

// A valid X-Request-ID is kept, any other is replaced. The id is in the response header, in the
// body of an error and in the log.
func TestRequestID(t *testing.T) {
	s := serve(t)
	valid := []string{
		"a", "4bf92f3577b34da6", "0b4f6c1e-6f0e-4a56-9c3e-2f4f0f0e6d1a", "1-67891233-abcdef012345678912345678",
		"AZaz09._:/+=@-", strings.Repeat("a", 128),
	}
	invalid := [][]string{
		nil, {""}, {"a b"}, {`a"b`}, {`a\b`}, {"Root=1-a;Self=b"}, {"<script>"}, {"é"}, {strings.Repeat("a", 129)}, {"a", "b"}, {"a", "a"},
	}
	seen := make(map[string]bool)
	// send returns the id of a request that has these ids.
	send := func(given ...string) string {
		var header []string
		for _, id := range given {
			header = append(header, "X-Request-ID", id)
		}
		got := s.do("GET", "/nothing", "", header...)
		ids := got.header.Values("X-Request-ID")
		if len(ids) != 1 {
			t.Fatalf("the response has the request ids %q, want one", ids)
		}
		if body, logged := got.error(t).RequestID, s.log.line(t)["request_id"]; body != ids[0] || logged != ids[0] {
			t.Errorf("the header says %q, the body %q, the log %v", ids[0], body, logged)
		}
		return ids[0]
	}
	for _, given := range valid {
		if id := send(given); id != given {
			t.Errorf("X-Request-ID %q became %q", given, id)
		}
	}
	for _, given := range invalid {
		id := send(given...)
		if !regexp.MustCompile(`^[A-Z2-7]{26}$`).MatchString(id) || seen[id] {
			t.Errorf("X-Request-ID %q became %q, want a new one", given, id)
		}
		seen[id] = true
	}
}

// Each request is logged in one line, and counted under its route, method and status. No label has
// a path, a name or a method that a client made up, so the number of series stays bounded.
func TestExchange_loggedAndCounted(t *testing.T) {
	s := serve(t)
	s.store.ready = func(context.Context) ([]pgstore.Shard, error) { return nil, errors.New("no database") }
	counts := map[string]string{}
	for _, c := range []struct {
		request, body, level, route string
		status                      int
		counted                     string // how many requests have these labels
	}{
		{"POST /api/coupons", `{"name":"sale","amount":2}`, "info", "/api/coupons", 201, "1"},
		{"POST /api/coupons/claim", `{"user_id":"ada","coupon_name":"sale"}`, "info", "/api/coupons/claim", 201, "1"},
		{"POST /api/coupons/claim", `{"user_id":"bob","coupon_name":"sale"}`, "info", "/api/coupons/claim", 201, "2"},
		{"POST /api/coupons/claim", `{`, "info", "/api/coupons/claim", 400, "1"},
		{"POST /api/coupons/claim", `{"user_id":"ada","coupon_name":"sale"}`, "info", "/api/coupons/claim", 409, "1"},
		{"GET /api/coupons/sale", "", "info", "/api/coupons/{name}", 200, "1"},
		{"GET /api/coupons/claim", "", "info", "/api/coupons/{name}", 404, "1"},
		{"HEAD /api/coupons/sale", "", "info", "/api/coupons/{name}", 200, "1"},
		{"HEAD /api/coupons/none", "", "info", "/api/coupons/{name}", 404, "1"},
		{"GET /nothing", "", "info", "none", 404, "1"},
		{"GET /api/coupons/a/b", "", "info", "none", 404, "2"},
		{"DELETE /api/coupons", "", "info", "none", 405, "1"},
		{"BREW /api/coupons/sale", "", "info", "none", 405, "1"},
		{"TEAPOT /nothing", "", "info", "none", 404, "1"},
		{"GET /health", "", "debug", "/health", 503, "1"},
		{"GET /health/live", "", "debug", "/health/live", 200, "1"},
		{"GET /metrics", "", "debug", "/metrics", 200, "1"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		got := s.do(method, path, c.body)
		if got.status != c.status {
			t.Fatalf("%s: status %d, want %d", c.request, got.status, c.status)
		}
		line := s.log.line(t)
		for field, value := range map[string]any{
			"level": c.level, "message": "request", "method": method, "route": c.route,
			"status": float64(c.status), "bytes": float64(len(got.body)),
			"request_id": got.header.Get("X-Request-ID"),
		} {
			if line[field] != value {
				t.Errorf("%s: logged %s=%v, want %v", c.request, field, line[field], value)
			}
		}
		if duration, ok := line["duration_ms"].(float64); !ok || duration < 0 || duration > 10_000 {
			t.Errorf("%s: logged duration_ms=%v", c.request, line["duration_ms"])
		}
		if method == "BREW" || method == "TEAPOT" {
			method = "other"
		}
		counts[fmt.Sprintf("method=%q,route=%q,status=\"%d\"", method, c.route, c.status)] = c.counted
	}
	if got := s.requestCounts(); !maps.Equal(got, counts) {
		t.Errorf("counted %v, want %v", got, counts)
	}
}

// An error of the Store is logged.
func TestExchange_storeErrors(t *testing.T) {
	s := serve(t)
	for err, level := range map[error]string{
		pgstore.ErrUnavailable:    "warn",
		pgstore.ErrOverloaded:     "warn",
		pgstore.ErrOutcomeUnknown: "warn",
		errors.New("boom"):        "error",
	} {
		s.store.SetError(fmt.Errorf("why: %w", err))
		s.claim("bob", "sale")
		if line := s.log.line(t); line["level"] != level || line["error"] != "why: "+err.Error() {
			t.Errorf("%v: logged %v", err, line)
		}
	}
}

// A panic is answered with 500. Its value and its stack are only logged.
func TestPanic(t *testing.T) {
	s := serve(t)
	s.store.claim = func(context.Context, string, string) (pgstore.ClaimStatus, error) { panic("secret of the panic") }
	got := s.claim("ada", "sale")
	got.want(t, 500, api.CodeInternal)
	if strings.Contains(got.body, "secret") {
		t.Errorf("the response contains the panic's value: %s", got.body)
	}
	line := s.log.line(t)
	stack, _ := line["stack"].(string)
	if line["error"] != "panic: secret of the panic" || line["level"] != "error" || line["status"] != 500.0 ||
		!strings.Contains(stack, "TestPanic") {
		t.Errorf("logged %v", line)
	}
	// The service continues.
	s.store.claim = s.store.Store.Claim
	s.claim("ada", "sale").want(t, 404, api.CodeCouponNotFound)
}

// Errors that net/http logs become warnings.
func TestNewServer_errorLog(t *testing.T) {
	log := new(logBuffer)
	server := api.NewServer(http.NotFoundHandler(), zerolog.New(log))
	server.ErrorLog.Printf("http: Accept error: %v", "too many open files")
	line := log.line(t)
	if line["level"] != "warn" || line["message"] != "http: Accept error: too many open files" {
		t.Errorf("logged %v", line)
	}
}

// These limits are documented in openapi.yaml.
func TestNewServer_limits(t *testing.T) {
	s := api.NewServer(http.NotFoundHandler(), zerolog.Nop())
	if s.ReadHeaderTimeout != 5*time.Second || s.IdleTimeout != 2*time.Minute || s.MaxHeaderBytes != 16<<10 ||
		s.WriteTimeout != 30*time.Second || s.ReadTimeout != 0 || !s.DisableGeneralOptionsHandler {
		t.Errorf("%+v", s)
	}
}

// /health waits at most 2 s for the Store.
func TestHealth_timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newStub()
		store.ready = func(ctx context.Context) ([]pgstore.Shard, error) {
			<-ctx.Done()
			return nil, errors.New("the database does not answer")
		}
		response := httptest.NewRecorder()
		began := time.Now()
		api.New(store, api.Options{}).ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/health", nil))
		if took := time.Since(began); took > 2*time.Second || response.Code != 503 ||
			!strings.Contains(response.Body.String(), `"status":"unhealthy","error":"the database does not answer"`) {
			t.Errorf("status %d after %v: %s", response.Code, took, response.Body)
		}
	})
}

// After Drain, /health returns 503, other requests are served as before, and each response closes
// its connection.
func TestHandler_Drain(t *testing.T) {
	s := serve(t)
	holds(5)(s)
	before := s.do("GET", "/health", "")
	before.want(t, 200, "")
	conn := s.dial()
	conn.sendLines("GET /health/live HTTP/1.1", "Host: x", "", "")
	if got := conn.response("GET", "/health/live"); got.closes {
		t.Error("closed before Drain")
	}

	s.handler.Drain()
	conn.send(postClaim + withContentLength(object("user_id", "ada", "coupon_name", "summer sale")))
	got := conn.response("POST", "/api/coupons/claim")
	got.want(t, 201, "")
	if !got.closes {
		t.Error("a connection from before Drain stays open")
	}
	conn.waitClosed()

	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /health", 503}, {"HEAD /health", 503}, {"GET /health/live", 200}, {"GET /api/coupons/summer%20sale", 200},
		{"HEAD /api/coupons/summer%20sale", 200}, {"GET /api/coupons/none", 404}, {"GET /nothing", 404}, {"PUT /api/coupons", 405},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		if got := s.do(method, path, ""); got.status != c.status || !got.closes {
			t.Errorf("%s: status %d, close %v; want %d and close", c.request, got.status, got.closes, c.status)
		}
	}
}

// Concurrent requests do not mix up their responses.
func TestHandler_concurrentRequests(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.create("sale", 100).want(t, 201, "")
	var claimed atomic.Int32
	var workers sync.WaitGroup
	for worker := range 4 {
		workers.Go(func() {
			for i := range 40 {
				id := fmt.Sprintf("%d/%d", worker, i)
				body := object("user_id", id+strings.Repeat("x", 5*i), "coupon_name", "sale")
				got, err := s.try("POST", "/api/coupons/claim", body, "X-Request-ID", id)
				if err != nil || got.header.Get("X-Request-ID") != id || got.status != 201 && got.status != 400 {
					t.Errorf("request %s: response %v, %v", id, got, err)
				}
				if got.status == 201 {
					claimed.Add(1)
				}
			}
		})
	}
	workers.Wait()
	if claimed.Load() != 100 {
		t.Errorf("%d of 160 claims succeeded, want 100", claimed.Load())
	}
}
