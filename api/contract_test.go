package api_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/pgstore"
)

// The request id in all examples of openapi.yaml.
const exampleRequestID = "4bf92f3577b34da6"

// responseCase produces a response that openapi.yaml documents.
type responseCase struct {
	operation string // empty if the path or the method has none
	status    int
	example   string // the name of the example that the response must equal; empty if it has no body

	given   func(*service) // prepares the Store
	request string         // method and path; if empty, those of the operation
	body    string
	header  []string
}

const (
	sale      = `{"name":"summer sale","amount":5}`
	adaClaims = `{"user_id":"ada","coupon_name":"summer sale"}`
	typeJSON  = "application/json"
	textPlain = "text/plain"
)

// fails makes the Store fail with err.
func fails(err error) func(*service) {
	return func(s *service) { s.store.SetError(fmt.Errorf("query the database: %w", err)) }
}

// holds makes the Store hold a coupon that these users have claimed.
func holds(amount int, users ...string) func(*service) {
	return func(s *service) { s.store.Set("summer sale", amount, users...) }
}

var (
	errFault = errors.New("boom")
	tooLarge = `"` + strings.Repeat("x", 8<<10) + `"`
)

var responseCases = []responseCase{
	{operation: "createCoupon", status: 201, body: sale},
	{operation: "createCoupon", status: 400, example: "amount", body: `{"name":"summer sale","amount":0}`},
	{operation: "createCoupon", status: 400, example: "unknown", body: `{"Name":"summer sale","amount":5}`},
	{operation: "createCoupon", status: 409, example: "exists", body: sale, given: holds(7)},
	{operation: "createCoupon", status: 413, example: "large", body: tooLarge},
	{operation: "createCoupon", status: 415, example: "type", body: sale, header: []string{"Content-Type", textPlain}},
	{operation: "createCoupon", status: 500, example: "fault", body: sale, given: fails(errFault)},
	{operation: "createCoupon", status: 503, example: "unavailable", body: sale, given: fails(pgstore.ErrUnavailable)},
	{operation: "createCoupon", status: 503, example: "overloaded", body: sale, given: fails(pgstore.ErrOverloaded)},
	{operation: "createCoupon", status: 503, example: "unknown", body: sale, given: fails(pgstore.ErrOutcomeUnknown)},

	{operation: "claimCoupon", status: 201, body: adaClaims, given: holds(5)},
	{operation: "claimCoupon", status: 400, example: "soldOut", body: adaClaims, given: holds(1, "grace")},
	{operation: "claimCoupon", status: 400, example: "missing", body: `{"coupon_name":"summer sale"}`},
	{operation: "claimCoupon", status: 400, example: "malformed", body: `{"user_id":ada}`},
	{operation: "claimCoupon", status: 404, example: "coupon", body: adaClaims},
	{operation: "claimCoupon", status: 409, example: "already", body: adaClaims, given: holds(1, "ada")},
	{operation: "claimCoupon", status: 413, example: "large", body: tooLarge},
	{operation: "claimCoupon", status: 415, example: "type", body: adaClaims, header: []string{"Content-Type", textPlain}},
	{operation: "claimCoupon", status: 500, example: "fault", body: adaClaims, given: fails(errFault)},
	{operation: "claimCoupon", status: 503, example: "unavailable", body: adaClaims, given: fails(pgstore.ErrUnavailable)},
	{operation: "claimCoupon", status: 503, example: "overloaded", body: adaClaims, given: fails(pgstore.ErrOverloaded)},
	{operation: "claimCoupon", status: 503, example: "unknown", body: adaClaims, given: fails(pgstore.ErrOutcomeUnknown)},

	{operation: "getCoupon", status: 200, example: "claimed", given: holds(5, "ada", "grace")},
	{operation: "getCoupon", status: 400, example: "blank", request: "GET /api/coupons/%20"},
	{operation: "getCoupon", status: 404, example: "coupon"},
	{operation: "getCoupon", status: 500, example: "fault", given: fails(errFault)},
	{operation: "getCoupon", status: 503, example: "unavailable", given: fails(pgstore.ErrUnavailable)},
	{operation: "getCoupon", status: 503, example: "overloaded", given: fails(pgstore.ErrOverloaded)},

	{operation: "getCouponNamedClaim", status: 200, example: "untouched", given: func(s *service) { s.store.Set("claim", 5) }},
	{operation: "getCouponNamedClaim", status: 404, example: "coupon"},
	{operation: "getCouponNamedClaim", status: 500, example: "fault", given: fails(errFault)},
	{operation: "getCouponNamedClaim", status: 503, example: "unavailable", given: fails(pgstore.ErrUnavailable)},
	{operation: "getCouponNamedClaim", status: 503, example: "overloaded", given: fails(pgstore.ErrOverloaded)},

	{operation: "health", status: 200, example: "healthy"},
	{operation: "health", status: 200, example: "shards", given: func(s *service) {
		s.store.ready = func(context.Context) ([]pgstore.Shard, error) {
			return []pgstore.Shard{
				{Number: 0}, {Number: 1},
				{Number: 2, Reason: "it does not answer"}, {Number: 3, Reason: "the proxy gets no answer from it"},
			}, nil
		}
	}},
	{operation: "health", status: 500, example: "fault", given: func(s *service) {
		s.store.ready = func(context.Context) ([]pgstore.Shard, error) { panic("boom") }
	}},
	{operation: "health", status: 503, example: "database", given: func(s *service) { s.store.SetError(pgstore.ErrUnavailable) }},
	{operation: "health", status: 503, example: "shutdown", given: func(s *service) { s.handler.Drain() }},
	{operation: "live", status: 200, example: "alive", given: fails(pgstore.ErrUnavailable)},

	{operation: "docs", status: 200, example: "text/html; charset=utf-8", given: fails(errFault)},
	{operation: "docsFile", status: 200, example: "text/css; charset=utf-8", request: "GET /docs/docs.css", given: fails(errFault)},
	{operation: "docsFile", status: 200, example: "text/javascript; charset=utf-8", request: "GET /docs/docs.js"},
	{operation: "docsFile", status: 200, example: "image/png", request: "GET /docs/favicon-32x32.png"},
	{operation: "docsFile", status: 404, example: "path", request: "GET /docs/nothing"},
	{operation: "openapi", status: 200, example: "application/yaml", given: fails(errFault)},
	{operation: "metrics", status: 200, example: "text/plain; version=0.0.4; charset=utf-8", given: func(s *service) { s.do("GET", "/health/live", "") }},
	{operation: "metrics", status: 503, example: "overloaded", given: func(s *service) {
		s.handler.SetMaxScrapes(0)
		for _, path := range []string{"/health", "/health/live", "/docs", "/nothing"} { // a few kilobytes of metrics
			s.do("GET", path, "")
		}
	}},
	{operation: "metrics", status: 500, example: "fault", given: func(s *service) { s.registry.MustRegister(brokenCollector) }},

	{status: 404, example: "path", request: "GET /api/coupon"},
	{status: 405, example: "method", request: "DELETE /api/coupons/summer%20sale"},
}

// The service gives every response that openapi.yaml documents, and it equals the example.
func TestContract_everyResponse(t *testing.T) {
	t.Parallel()
	doc := apitest.Contract(t)
	untested := documentedResponses(doc)
	for _, c := range responseCases {
		key := fmt.Sprintf("%s %d %s", c.operation, c.status, c.example)
		example, known := untested[key]
		if !known {
			t.Errorf("openapi.yaml has no response %q, or it has two cases", key)
			continue
		}
		delete(untested, key)
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			if c.given != nil {
				c.given(s)
			}
			request := c.request
			if request == "" {
				request = exampleRequest(t, doc, c.operation)
			}
			method, path, _ := strings.Cut(request, " ")
			got := s.do(method, path, c.body, append(c.header, "X-Request-ID", exampleRequestID)...)
			if got.status != c.status {
				t.Fatalf("status %d, want %d: %s", got.status, c.status, got.body)
			}
			if c.example == "" {
				if got.body != "" {
					t.Errorf("the body is %q, want none", got.body)
				}
				return
			}
			if example == notJSONBody {
				if got.header.Get("Content-Type") != c.example || got.body == "" {
					t.Errorf("Content-Type %q: %q", got.header.Get("Content-Type"), got.body)
				}
				return
			}
			if !reflect.DeepEqual(decoded[any](t, got), example) {
				t.Errorf("body %s, want the example %v", got.body, example)
			}
		})
	}
	for _, key := range slices.Sorted(maps.Keys(untested)) {
		t.Errorf("openapi.yaml documents %q, which has no case", key)
	}
}

// notJSONBody replaces the example of a response that is not JSON.
const notJSONBody = "(not JSON)"

// documentedResponses returns the examples of all responses in the document, by operation, status
// and name of the example. The name is empty for a response without a body, and the Content-Type
// for one that is not JSON.
func documentedResponses(doc *openapi3.T) map[string]any {
	examples := make(map[string]any)
	add := func(operation, status string, response *openapi3.Response) {
		if len(response.Content) == 0 {
			examples[fmt.Sprintf("%s %s ", operation, status)] = nil
		}
		for name, media := range response.Content {
			if name != "application/json" {
				examples[fmt.Sprintf("%s %s %s", operation, status, name)] = notJSONBody
				continue
			}
			if len(media.Examples) == 0 { // no case has this name, so the test fails
				examples[fmt.Sprintf("%s %s (no example)", operation, status)] = nil
			}
			for name, example := range media.Examples {
				examples[fmt.Sprintf("%s %s %s", operation, status, name)] = example.Value.Value
			}
		}
	}
	for _, item := range doc.Paths.Map() {
		for _, operation := range item.Operations() {
			for status, response := range operation.Responses.Map() {
				add(operation.OperationID, status, response.Value)
			}
		}
	}
	add("", "404", doc.Components.Responses["NotFound"].Value)
	add("", "405", doc.Components.Responses["MethodNotAllowed"].Value)
	return examples
}

// exampleRequest returns the method and the path of an operation, with the example of its
// parameter.
func exampleRequest(t *testing.T, doc *openapi3.T, id string) string {
	t.Helper()
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			if operation.OperationID != id {
				continue
			}
			if p := operation.Parameters.GetByInAndName("path", "name"); p != nil {
				for _, example := range p.Examples {
					path = strings.ReplaceAll(path, "{name}", url.PathEscape(fmt.Sprint(example.Value.Value)))
				}
			}
			return method + " " + path
		}
	}
	t.Fatalf("openapi.yaml has no operation %q", id)
	return ""
}

// Go, the schema and the description of openapi.yaml have the same codes.
func TestContract_codes(t *testing.T) {
	doc := apitest.Contract(t)
	var inGo, inSchema, explained []string
	for _, code := range api.Codes() {
		inGo = append(inGo, string(code))
	}
	for _, code := range doc.Components.Schemas["Code"].Value.Enum {
		inSchema = append(inSchema, fmt.Sprint(code))
	}
	for _, heading := range regexp.MustCompile(`(?m)^### ([A-Z_]+)$`).FindAllStringSubmatch(doc.Info.Description, -1) {
		explained = append(explained, heading[1])
	}
	slices.Sort(inGo)
	slices.Sort(inSchema)
	slices.Sort(explained)
	if !slices.Equal(inGo, inSchema) || !slices.Equal(inGo, explained) {
		t.Errorf("codes in Go %v, in openapi.yaml %v, explained there %v", inGo, inSchema, explained)
	}
}

// Each outcome of the Store has a response of its own. An unknown outcome is an internal error.
func TestContract_everyOutcome(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, outcome := range append(pgstore.ClaimStatuses(), "no such outcome", "") {
		s.store.claim = func(context.Context, string, string) (pgstore.ClaimStatus, error) { return outcome, nil }
		got := s.claim("ada", "summer sale")
		if known := slices.Contains(pgstore.ClaimStatuses(), outcome); known != (got.status < 500) {
			t.Errorf("claim_status %q: %d %s", outcome, got.status, got.body)
		}
	}
	for _, outcome := range append(pgstore.CreateStatuses(), "no such outcome", "") {
		s.store.create = func(context.Context, string, int32) (pgstore.CreateStatus, error) { return outcome, nil }
		got := s.create("summer sale", 5)
		if known := slices.Contains(pgstore.CreateStatuses(), outcome); known != (got.status < 500) {
			t.Errorf("create_status %q: %d %s", outcome, got.status, got.body)
		}
	}
}

// If an error wraps several, the least certain one decides.
func TestErrors_wrapped(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		err  error
		code api.Code
	}{
		{errors.Join(pgstore.ErrUnavailable, pgstore.ErrOutcomeUnknown), api.CodeOutcomeUnknown},
		{errors.Join(pgstore.ErrOverloaded, pgstore.ErrOutcomeUnknown), api.CodeOutcomeUnknown},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", pgstore.ErrOverloaded)), api.CodeOverloaded},
		// The client is still connected, so these are internal errors.
		{context.Canceled, api.CodeInternal},
		{context.DeadlineExceeded, api.CodeInternal},
	} {
		s.store.SetError(c.err)
		got := s.claim("ada", "summer sale")
		if code := got.error(t).Code; code != string(c.code) {
			t.Errorf("%v: code %s, want %s", c.err, code, c.code)
		}
		if strings.Contains(got.body, c.err.Error()) {
			t.Errorf("the response contains the error of the Store: %s", got.body)
		}
	}
}

// resolve resolves a reference relative to a path, as clients do (RFC 3986).
func resolve(t *testing.T, path, reference string) string {
	t.Helper()
	base, err := url.Parse("http://test" + path)
	if err != nil {
		t.Fatal(err)
	}
	target, err := base.Parse(reference)
	if err != nil {
		t.Fatal(err)
	}
	return target.RequestURI()
}

func TestAllow(t *testing.T) {
	s := serve(t)
	for path, allow := range map[string]string{
		"/api/coupons":        "POST",
		"/api/coupons/claim":  "GET, HEAD, POST",
		"/api/coupons/sale":   "GET, HEAD",
		"/api/coupons/a%2Fb":  "GET, HEAD",
		"/api/coupons/%2E%2E": "GET, HEAD",
		"/health":             "GET, HEAD",
		"/health/live":        "GET, HEAD",
		"/docs":               "GET, HEAD",
		"/openapi.yaml":       "GET, HEAD",
		"/metrics":            "GET, HEAD",
		"/":                   "GET, HEAD",
		"/api":                "",
		"/api/coupons/":       "",
		"/api/coupons/a/b":    "",
		"//api/coupons":       "",
		"/api/../api/coupons": "",
		"/API/coupons":        "",
		"/health/":            "",
		"/metrics/":           "",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "BREW", "get"} {
			got := s.do(method, path, "")
			switch {
			case allow == "":
				if got.status != 404 || got.header.Get("Allow") != "" {
					t.Errorf("%s %s: status %d, Allow %q, want 404", method, path, got.status, got.header.Get("Allow"))
				}
			case slices.Contains(strings.Split(allow, ", "), method):
				if got.status == 404 && method != "HEAD" && got.error(t).Code == string(api.CodeNotFound) || got.status == 405 {
					t.Errorf("%s %s: status %d", method, path, got.status)
				}
			default:
				if got.status != 405 || got.header.Get("Allow") != allow {
					t.Errorf("%s %s: status %d, Allow %q, want 405 and %q", method, path, got.status, got.header.Get("Allow"), allow)
				}
			}
		}
	}
	if s.store.Calls() == 0 {
		t.Error("no request reached the Store")
	}
}

// HEAD returns the status and headers of GET, and no body.
func TestHead_matchesGet(t *testing.T) {
	s := serve(t)
	holds(5, "ada", "grace")(s)
	for _, path := range []string{"/api/coupons/summer%20sale", "/api/coupons/none", "/api/coupons/%00", "/api/coupons/claim", "/health", "/health/live", "/docs", "/docs/swagger-ui.css", "/docs/nothing", "/openapi.yaml", "/nothing"} {
		get := s.do("GET", path, "", "X-Request-ID", "same")
		head := s.do("HEAD", path, "", "X-Request-ID", "same")
		if head.status != get.status || head.body != "" {
			t.Errorf("HEAD %s: status %d, body %q; GET: status %d", path, head.status, head.body, get.status)
		}
		for _, header := range []http.Header{get.header, head.header} {
			header.Del("Date")
		}
		if get.status == 200 && strings.HasPrefix(path, "/api/") {
			get.header.Del("Content-Length")
		}
		if !reflect.DeepEqual(get.header, head.header) {
			t.Errorf("HEAD %s has the headers %v, GET %v", path, head.header, get.header)
		}
	}
}
