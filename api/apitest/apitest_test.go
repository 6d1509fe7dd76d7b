package apitest_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"scalable-coupon-system/api/apitest"
)

// recorder is a testing.TB that records errors.
type recorder struct {
	testing.TB

	errors []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// fixedResponse is a RoundTripper that returns the same response to every request.
type fixedResponse struct {
	status int
	header http.Header
	body   string
}

func (f fixedResponse) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: f.status, Header: f.header.Clone(), Body: io.NopCloser(strings.NewReader(f.body)), Request: r,
		Close: f.header.Get("Connection") == "close",
	}, nil
}

// header returns the header of a JSON response, changed by pairs of name and value; an empty value
// deletes the name.
func header(pairs ...string) http.Header {
	h := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"id"}}
	for pair := range slices.Chunk(pairs, 2) {
		h.Set(pair[0], pair[1])
		if pair[1] == "" {
			h.Del(pair[0])
		}
	}
	return h
}

func errorBody(code string) string {
	return `{"error":"why","code":"` + code + `","request_id":"id"}`
}

const (
	goodClaim  = `{"user_id":"ada","coupon_name":"sale"}`
	goodCoupon = `{"name":"sale","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`
)

// Checked reports responses and requests that violate the contract, and no others.
func TestChecked(t *testing.T) {
	for _, c := range []struct {
		name          string
		method, path  string
		body          string
		response      fixedResponse
		violation     bool
		withoutCopies bool // of the request's body
		untyped       bool // the request has no Content-Type
	}{
		{name: "claimed", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{201, header(), ""}},
		{name: "sold out", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{400, header(), errorBody("OUT_OF_STOCK")}},
		{name: "created", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":1}`, response: fixedResponse{201, header("Location", "coupons/sale"), ""}},
		{name: "found", method: "GET", path: "/api/coupons/sale", response: fixedResponse{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "coupon named claim", method: "GET", path: "/api/coupons/claim", response: fixedResponse{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "slash in the name", method: "GET", path: "/api/coupons/a%2Fb", response: fixedResponse{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "head", method: "HEAD", path: "/api/coupons/sale", response: fixedResponse{200, header("Cache-Control", "no-store"), ""}},
		{name: "unknown path", method: "GET", path: "/api/coupons/a/b", response: fixedResponse{404, header(), errorBody("NOT_FOUND")}},
		{name: "unknown method", method: "DELETE", path: "/api/coupons/a", response: fixedResponse{405, header("Allow", "GET, HEAD"), errorBody("METHOD_NOT_ALLOWED")}},
		{name: "invalid request", method: "POST", path: "/api/coupons/claim", body: `{`, response: fixedResponse{400, header(), errorBody("INVALID_REQUEST")}},
		{name: "large response", method: "GET", path: "/api/coupons/sale", response: fixedResponse{200, header("Cache-Control", "no-store"), strings.Repeat("x", 64<<10+1)}},
		{name: "not JSON", method: "GET", path: "/docs/docs.css", response: fixedResponse{200, header("Cache-Control", "no-store", "Content-Type", "text/css; charset=utf-8"), "body {}"}},

		{violation: true, name: "another Content-Type", method: "GET", path: "/docs/docs.css", response: fixedResponse{200, header("Cache-Control", "no-store", "Content-Type", "text/html; charset=utf-8"), "<p>"}},
		{violation: true, name: "Content-Type without charset", method: "GET", path: "/docs/docs.css", response: fixedResponse{200, header("Cache-Control", "no-store", "Content-Type", "text/css"), "body {}"}},
		{violation: true, name: "undocumented status", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{200, header(), ""}},
		{violation: true, name: "body with 201", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{201, header(), "{}"}},
		{violation: true, name: "no request id", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{201, header("X-Request-ID", ""), ""}},
		{name: "a body that is not known", method: "POST", path: "/api/coupons/claim", body: `{`, response: fixedResponse{201, header(), ""}, withoutCopies: true},
		{name: "the root", method: "GET", path: "/", response: fixedResponse{302, header("Location", "docs"), ""}},

		{violation: true, name: "no Content-Type", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{201, header("Content-Type", ""), ""}},
		{violation: true, name: "no Location", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":1}`, response: fixedResponse{201, header(), ""}},
		{violation: true, name: "no Retry-After", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{503, header(), errorBody("UNAVAILABLE")}},
		{violation: true, name: "no Allow", method: "DELETE", path: "/api/coupons/a", response: fixedResponse{405, header(), errorBody("METHOD_NOT_ALLOWED")}},
		{violation: true, name: "code of another status", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{409, header(), errorBody("OUT_OF_STOCK")}},
		{violation: true, name: "unknown code", method: "POST", path: "/api/coupons/claim", body: goodClaim, response: fixedResponse{400, header(), errorBody("WHATEVER")}},
		{violation: true, name: "not JSON", method: "GET", path: "/api/coupons/a", response: fixedResponse{200, header("Cache-Control", "no-store"), "coupon"}},
		{violation: true, name: "text/plain from a handler", method: "GET", path: "/health", response: fixedResponse{400, header("Content-Type", "text/plain; charset=utf-8"), "400 Bad Request"}},
		{violation: true, name: "404 for an unknown method", method: "DELETE", path: "/api/coupons/a", response: fixedResponse{404, header(), errorBody("NOT_FOUND")}},
		{violation: true, name: "head with a body", method: "HEAD", path: "/health", response: fixedResponse{200, header("Cache-Control", "no-store"), `{"status":"healthy"}`}},
		{violation: true, name: "head without headers", method: "HEAD", path: "/health", response: fixedResponse{200, header(), ""}},
		{violation: true, name: "unknown field accepted", method: "POST", path: "/api/coupons/claim", body: `{"user_id":"ada","coupon_name":"sale","x":1}`, response: fixedResponse{201, header(), ""}},
		{violation: true, name: "no Content-Type accepted", method: "POST", path: "/api/coupons/claim", body: goodClaim, untyped: true, response: fixedResponse{201, header(), ""}},
		{violation: true, name: "503 for an invalid request", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":0}`, response: fixedResponse{503, header("Retry-After", "1"), errorBody("UNAVAILABLE")}},
		{violation: true, name: "invalid name in the path accepted", method: "GET", path: "/api/coupons/%00", response: fixedResponse{200, header("Cache-Control", "no-store"), goodCoupon}},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), c.method, "http://test"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.body != "" && !c.untyped {
				request.Header.Set("Content-Type", "application/json")
			}
			if c.withoutCopies {
				request.GetBody = nil
			}
			reported := &recorder{TB: t}
			response, err := apitest.Checked(reported, c.response).RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			if c.violation != (len(reported.errors) > 0) {
				t.Errorf("reported %q, want a violation: %v", reported.errors, c.violation)
			}
			if body, err := io.ReadAll(response.Body); err != nil || string(body) != c.response.body {
				t.Errorf("returned %d of %d bytes, %v", len(body), len(c.response.body), err)
			}
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Checked returns errors of the connection and does not report them.
func TestChecked_connectionErrors(t *testing.T) {
	broken := errors.New("broken pipe")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://test/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	noResponse := roundTripper(func(*http.Request) (*http.Response, error) { return nil, broken })
	if _, err := apitest.Checked(t, noResponse).RoundTrip(request); !errors.Is(err, broken) {
		t.Error(err)
	}
	// A response that is cut off.
	cutOff := roundTripper(func(*http.Request) (*http.Response, error) {
		body := io.MultiReader(strings.NewReader(`{"name":`), iotest.ErrReader(broken))
		return &http.Response{StatusCode: http.StatusOK, Header: header("Cache-Control", "no-store"), Body: io.NopCloser(body)}, nil
	})
	response, err := apitest.Checked(t, cutOff).RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if body, err := io.ReadAll(response.Body); string(body) != `{"name":` || !errors.Is(err, broken) {
		t.Errorf("returned %q, %v", body, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
