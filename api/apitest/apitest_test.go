package apitest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/pgstore"
)

// reports is a testing.TB that remembers what fails it.
type reports struct {
	testing.TB

	mu     sync.Mutex
	errors []string
}

func (r *reports) Helper() {}

func (r *reports) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// answers is a RoundTripper that answers everything with the same.
type answers struct {
	status int
	header http.Header
	body   string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: a.status, Header: a.header.Clone(), Body: io.NopCloser(strings.NewReader(a.body)), Request: r,
		Close: a.header.Get("Connection") == "close",
	}, nil
}

// header makes an answer's header: the usual one, changed by pairs of name and
// value, where the value "" deletes.
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

func failure(code string) string {
	return `{"error":"why","code":"` + code + `","request_id":"id"}`
}

const (
	goodClaim  = `{"user_id":"ada","coupon_name":"sale"}`
	goodCoupon = `{"name":"sale","amount":2,"remaining_amount":1,"claimed_by":["ada"]}`
)

// Checked finds fault with what breaks the contract, and with nothing else.
func TestChecked(t *testing.T) {
	for _, c := range []struct {
		name          string
		method, path  string
		body          string
		answer        answers
		wrong         bool
		withoutCopies bool // of the request's body
	}{
		{name: "claimed", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{201, header(), ""}},
		{name: "sold out", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{400, header(), failure("OUT_OF_STOCK")}},
		{name: "away", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{503, header("Retry-After", "1"), failure("OUTCOME_UNKNOWN")}},
		{name: "created", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":1}`, answer: answers{201, header("Location", "/api/coupons/sale"), ""}},
		{name: "found", method: "GET", path: "/api/coupons/sale", answer: answers{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "found claim", method: "GET", path: "/api/coupons/claim", answer: answers{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "slash in the name", method: "GET", path: "/api/coupons/a%2Fb", answer: answers{200, header("Cache-Control", "no-store"), goodCoupon}},
		{name: "head", method: "HEAD", path: "/api/coupons/sale", answer: answers{200, header("Cache-Control", "no-store"), ""}},
		{name: "unknown path", method: "GET", path: "/api/coupons/a/b", answer: answers{404, header(), failure("NOT_FOUND")}},
		{name: "unknown method", method: "DELETE", path: "/api/coupons/a", answer: answers{405, header("Allow", "GET, HEAD"), failure("METHOD_NOT_ALLOWED")}},
		{name: "refused", method: "POST", path: "/api/coupons/claim", body: `{`, answer: answers{400, header(), failure("INVALID_REQUEST")}},
		{name: "net/http", method: "GET", path: "/health", answer: answers{400, http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Connection": {"close"}}, "400 Bad Request"}},
		{name: "net/http, no body", method: "POST", path: "/api/coupons/claim", answer: answers{417, http.Header{}, ""}},
		{name: "body sent once", method: "POST", path: "/api/coupons/claim", body: `{`, answer: answers{201, header(), ""}, withoutCopies: true},
		{name: "large answer", method: "GET", path: "/api/coupons/sale", answer: answers{200, header("Cache-Control", "no-store"), strings.Repeat("x", 1<<20+1)}},
		{name: "page", method: "GET", path: "/docs/docs.css", answer: answers{200, header("Cache-Control", "no-store", "Content-Type", "text/css; charset=utf-8"), "body {}"}},

		{wrong: true, name: "another page", method: "GET", path: "/docs/docs.css", answer: answers{200, header("Cache-Control", "no-store", "Content-Type", "text/html; charset=utf-8"), "<p>"}},
		{wrong: true, name: "page of no charset", method: "GET", path: "/docs/docs.css", answer: answers{200, header("Cache-Control", "no-store", "Content-Type", "text/css"), "body {}"}},
		{wrong: true, name: "page where JSON is due", method: "GET", path: "/docs/none", answer: answers{404, header("Content-Type", "text/css; charset=utf-8"), "404"}},
		{wrong: true, name: "undocumented status", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{200, header(), ""}},
		{wrong: true, name: "body where none is", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{201, header(), "{}"}},
		{wrong: true, name: "no request id", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{201, header("X-Request-ID", ""), ""}},
		{wrong: true, name: "insane request id", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{201, header("X-Request-ID", "a b"), ""}},
		{wrong: true, name: "no content type", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{201, header("Content-Type", ""), ""}},
		{wrong: true, name: "no location", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":1}`, answer: answers{201, header(), ""}},
		{wrong: true, name: "no retry-after", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{503, header(), failure("UNAVAILABLE")}},
		{wrong: true, name: "no allow", method: "DELETE", path: "/api/coupons/a", answer: answers{405, header(), failure("METHOD_NOT_ALLOWED")}},
		{wrong: true, name: "code of another status", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{409, header(), failure("OUT_OF_STOCK")}},
		{wrong: true, name: "code of another operation", method: "GET", path: "/api/coupons/a", answer: answers{503, header("Retry-After", "1"), failure("OUTCOME_UNKNOWN")}},
		{wrong: true, name: "unknown code", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{400, header(), failure("WHATEVER")}},
		{wrong: true, name: "no code", method: "POST", path: "/api/coupons/claim", body: goodClaim, answer: answers{400, header(), `{"error":"why","request_id":"id"}`}},
		{wrong: true, name: "no JSON", method: "GET", path: "/api/coupons/a", answer: answers{200, header("Cache-Control", "no-store"), "coupon"}},
		{wrong: true, name: "claimed twice", method: "GET", path: "/api/coupons/a", answer: answers{200, header("Cache-Control", "no-store"), strings.Replace(goodCoupon, `"ada"`, `"ada","ada"`, 1)}},
		{wrong: true, name: "null for none", method: "GET", path: "/api/coupons/a", answer: answers{200, header("Cache-Control", "no-store"), strings.Replace(goodCoupon, `["ada"]`, `null`, 1)}},
		{wrong: true, name: "text/plain of a handler", method: "GET", path: "/health", answer: answers{400, header("Content-Type", "text/plain; charset=utf-8"), "400 Bad Request"}},
		{wrong: true, name: "200 at an unknown path", method: "GET", path: "/api/coupons/a/b", answer: answers{200, header(), goodCoupon}},
		{wrong: true, name: "404 at an unknown method", method: "DELETE", path: "/api/coupons/a", answer: answers{404, header(), failure("NOT_FOUND")}},
		{wrong: true, name: "head with a body", method: "HEAD", path: "/health", answer: answers{200, header("Cache-Control", "no-store"), `{"status":"healthy"}`}},
		{wrong: true, name: "head without headers", method: "HEAD", path: "/health", answer: answers{200, header(), ""}},
		{wrong: true, name: "unknown field accepted", method: "POST", path: "/api/coupons/claim", body: `{"user_id":"ada","coupon_name":"sale","x":1}`, answer: answers{201, header(), ""}},
		{wrong: true, name: "256 characters accepted", method: "POST", path: "/api/coupons/claim", body: `{"user_id":"` + strings.Repeat("é", 256) + `","coupon_name":"sale"}`, answer: answers{201, header(), ""}},
		{wrong: true, name: "NUL accepted", method: "POST", path: "/api/coupons/claim", body: `{"user_id":"a\u0000b","coupon_name":"sale"}`, answer: answers{201, header(), ""}},
		{wrong: true, name: "blanks accepted", method: "POST", path: "/api/coupons/claim", body: `{"user_id":" \u3000\u0085","coupon_name":"sale"}`, answer: answers{201, header(), ""}},
		{wrong: true, name: "bad request answered 503", method: "POST", path: "/api/coupons", body: `{"name":"sale","amount":0}`, answer: answers{503, header("Retry-After", "1"), failure("UNAVAILABLE")}},
		{wrong: true, name: "bad name in the path accepted", method: "GET", path: "/api/coupons/%00", answer: answers{200, header("Cache-Control", "no-store"), goodCoupon}},
	} {
		t.Run(c.name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), c.method, "http://test"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.withoutCopies {
				request.GetBody = nil
			}
			found := &reports{TB: t}
			response, err := apitest.Checked(found, c.answer).RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			if c.wrong != (len(found.errors) > 0) {
				t.Errorf("found %q", found.errors)
			}
			if body, err := io.ReadAll(response.Body); err != nil || string(body) != c.answer.body {
				t.Errorf("passed on %d bytes, %v, of %d", len(body), err, len(c.answer.body))
			}
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// No answer at all is for the test to judge.
func TestCheckedPassesErrorsOn(t *testing.T) {
	broken := errors.New("broken pipe")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://test/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	silent := roundTripper(func(*http.Request) (*http.Response, error) { return nil, broken })
	if _, err := apitest.Checked(t, silent).RoundTrip(request); !errors.Is(err, broken) {
		t.Error(err)
	}
	// So is an answer that is cut off.
	cut := roundTripper(func(*http.Request) (*http.Response, error) {
		body := io.MultiReader(strings.NewReader(`{"name":`), failing{broken})
		return &http.Response{StatusCode: http.StatusOK, Header: header("Cache-Control", "no-store"), Body: io.NopCloser(body)}, nil
	})
	response, err := apitest.Checked(t, cut).RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if body, err := io.ReadAll(response.Body); string(body) != `{"name":` || !errors.Is(err, broken) {
		t.Errorf("passed on %q, %v", body, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The fake keeps the rules of the real Store.
func TestStore(t *testing.T) {
	ctx := context.Background()
	s := apitest.NewStore()
	claim := func(user, coupon string, want pgstore.ClaimStatus) {
		t.Helper()
		if got, err := s.Claim(ctx, user, coupon); got != want || err != nil {
			t.Errorf("%s claims %s: %s, %v; want %s", user, coupon, got, err, want)
		}
	}
	claim("ada", "sale", pgstore.CouponNotFound)
	if status, err := s.CreateCoupon(ctx, "sale", 2); status != pgstore.Created || err != nil {
		t.Error(status, err)
	}
	if status, err := s.CreateCoupon(ctx, "sale", 3); status != pgstore.CouponExists || err != nil {
		t.Error(status, err)
	}
	claim("ada", "sale", pgstore.Claimed)
	claim("ada", "sale", pgstore.AlreadyClaimed)
	before, _, _ := s.Coupon(ctx, "sale")
	claim("grace", "sale", pgstore.Claimed)
	claim("alan", "sale", pgstore.OutOfStock)
	claim("ada", "sale", pgstore.AlreadyClaimed) // also when it is sold out
	claim("ada", "none", pgstore.CouponNotFound)

	after, found, err := s.Coupon(ctx, "sale")
	if !found || err != nil {
		t.Fatal(found, err)
	}
	for c, want := range map[*pgstore.Coupon][]string{before: {"ada"}, after: {"ada", "grace"}} {
		var users []string
		for page, err := range c.Claimers(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			users = append(users, page...)
		}
		if !slices.Equal(users, want) || c.Amount != 2 || c.RemainingAmount != 2-len(want) {
			t.Errorf("%+v has %q, want %q", c, users, want)
		}
	}
	if _, found, err := s.Coupon(ctx, "none"); found || err != nil {
		t.Error(found, err)
	}
	calls := s.Calls()
	s.Fail(pgstore.ErrUnavailable)
	if _, err := s.Claim(ctx, "alan", "sale"); !errors.Is(err, pgstore.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := s.CreateCoupon(ctx, "other", 1); !errors.Is(err, pgstore.ErrUnavailable) {
		t.Error(err)
	}
	if _, _, err := s.Coupon(ctx, "sale"); !errors.Is(err, pgstore.ErrUnavailable) {
		t.Error(err)
	}
	if err := s.Ready(ctx); !errors.Is(err, pgstore.ErrUnavailable) {
		t.Error(err)
	}
	s.Fail(nil)
	if err := s.Ready(ctx); err != nil {
		t.Error(err)
	}
	if got := s.Calls() - calls; got != 3 {
		t.Errorf("%d calls were counted", got)
	}
}

// Pages are as large as the real Store's, and a reader may stop in between.
func TestStorePages(t *testing.T) {
	ctx := context.Background()
	s := apitest.NewStore()
	const claims = apitest.PageSize + 1
	_, _ = s.CreateCoupon(ctx, "sale", claims)
	for i := range claims {
		_, _ = s.Claim(ctx, strconv.Itoa(i), "sale")
	}
	coupon, _, _ := s.Coupon(ctx, "sale")
	var sizes []int
	for page, err := range coupon.Claimers(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(page))
	}
	if !slices.Equal(sizes, []int{apitest.PageSize, 1}) {
		t.Errorf("pages of %v", sizes)
	}
	for _, err := range coupon.Claimers(ctx) {
		if err != nil {
			t.Error(err)
		}
		break
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for page, err := range coupon.Claimers(gone) {
		if page != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("%d claimers for a reader who has gone, %v", len(page), err)
		}
	}
}

func BenchmarkChecked(b *testing.B) {
	client := apitest.Checked(b, answers{409, header(), failure("ALREADY_CLAIMED")})
	for b.Loop() {
		request, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://test/api/coupons/claim", strings.NewReader(goodClaim))
		if err != nil {
			b.Fatal(err)
		}
		response, err := client.RoundTrip(request)
		if err != nil {
			b.Fatal(err)
		}
		_ = response.Body.Close()
	}
}
