package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
)

// No request may cause a 5xx, a panic, or a response that violates openapi.yaml, and no rejected
// request may reach the Store. The in-memory Store never fails.

// fuzzTarget is an API with an empty Store.
type fuzzTarget struct {
	t     *testing.T
	store *apitest.Store
	api   *api.Handler
}

func newFuzzTarget(t *testing.T) *fuzzTarget {
	t.Helper()
	store := apitest.NewStore()
	return &fuzzTarget{t, store, api.New(store, api.Options{})}
}

// do serves a request as net/http would have parsed it.
func (f *fuzzTarget) do(request *http.Request) (status int, header http.Header, body []byte) {
	f.t.Helper()
	var sent []byte
	if request.Body != nil {
		sent, _ = io.ReadAll(request.Body)
		request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(sent)), nil }
		request.Body, _ = request.GetBody()
	}
	calls := f.store.Calls()
	recorder := httptest.NewRecorder()
	f.api.ServeHTTP(recorder, request)
	response := recorder.Result()

	if response.StatusCode >= 500 {
		f.t.Fatalf("%s %q with body %q: status %d: %s", request.Method, request.URL, sent, response.StatusCode, recorder.Body)
	}
	rejected := response.StatusCode == http.StatusBadRequest && !strings.Contains(recorder.Body.String(), `"OUT_OF_STOCK"`) ||
		response.StatusCode == http.StatusMethodNotAllowed || response.StatusCode == http.StatusRequestEntityTooLarge ||
		response.StatusCode == http.StatusUnsupportedMediaType
	if rejected && f.store.Calls() != calls {
		f.t.Fatalf("%s %q with body %q is rejected, but the Store was called", request.Method, request.URL, sent)
	}
	if request.Method == http.MethodHead {
		response.Body = http.NoBody // net/http would not send it
	}
	// The contract describes paths with escapes as clients send them. net/http accepts more.
	if raw := request.URL.RawPath; raw != "" && raw != request.URL.EscapedPath() {
		return response.StatusCode, response.Header, recorder.Body.Bytes()
	}
	if err := apitest.Check(request, response); err != nil {
		f.t.Fatalf("%s %q with body %q: status %d violates the contract: %v", request.Method, request.URL, sent, response.StatusCode, err)
	}
	return response.StatusCode, response.Header, recorder.Body.Bytes()
}

func (f *fuzzTarget) post(path string, body []byte) (status int, header http.Header) {
	f.t.Helper()
	request := httptest.NewRequestWithContext(f.t.Context(), http.MethodPost, path, bytes.NewReader(body))
	request.Header.Set("Content-Type", typeJSON)
	status, header, _ = f.do(request)
	return status, header
}

// read reads the coupon at a path.
func (f *fuzzTarget) read(path string) couponBody {
	f.t.Helper()
	status, _, body := f.do(get(f.t, path))
	return result{status: status, body: string(body)}.coupon(f.t)
}

// get returns a GET as net/http parses it, or nil if net/http rejects it.
func get(t *testing.T, target string) *http.Request {
	t.Helper()
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
	if err != nil {
		return nil
	}
	return request
}

// isName is an independent implementation of checkName.
func isName(s string) bool {
	characters, visible := 0, 0
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd") || r == 0 {
			return false
		}
		characters++
		if !unicode.In(r, unicode.White_Space) {
			visible++
		}
	}
	return characters <= 255 && visible > 0
}

func FuzzBody(f *testing.F) {
	for _, seed := range []string{
		sale, `{}`, `[]`, `null`, ` { "amount" : 1 , "name" : "\ud83c\udf9f" } `, `{"name":"a","amount":1,"name":"b"}`,
		`{"name":"a","amount":1e3}`, `{"name":"a","amount":2147483647}`, `{"name":"a","amount":2147483648}`, `{"name":"\u0000","amount":1}`,
		`{"name":"\ud800","amount":1}`, "{\"name\":\"\xff\",\"amount\":1}", `{"Name":"a","amount":1}`, `{"name":"a","amount":1}}`,
		`{"name":{"name":{}},"amount":[[[]]]}`, `{"n\u0061me":"a\/b","amount":7}`, `{"name":"a","amount":-0}`, "\ufeff{}", `{"name":"\u2028","amount":1}`,

		adaClaims, `{"coupon_name":"sale","user_id":"\"\\\/\b\f\n\r\t\u00e9"}`, `{"user_id":"ada","coupon_name":"sale","x":0}`,
		`{"user_id":"ada"}`, `{"user_id":null,"coupon_name":"sale"}`, `{"user_id":"ada","coupon_name":["sale"]}`, `{"user_id":"ada","coupon_name":"sale"} x`,
		`{"user_id":"ada","coupon_name":"sale"`, `{"user_id":"","coupon_name":"sale"}`, `{"user_id":" ","coupon_name":"sale"}`, `{"user\u005fid":"ada","coupon_name":"sale"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s := newFuzzTarget(t)
		created, header := s.post("/api/coupons", body)
		claimed, _ := s.post("/api/coupons/claim", body)
		if created != 201 && claimed != 404 {
			return
		}
		var sent struct {
			Name   string `json:"name"`
			Amount int    `json:"amount"`
			User   string `json:"user_id"`
			Coupon string `json:"coupon_name"`
		}
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("%q is accepted, but encoding/json returns %v", body, err)
		}
		want := couponBody{sent.Name, sent.Amount, sent.Amount, []string{}}
		if claimed == 404 { // the claim is valid, but the coupon does not exist: create it
			if created, header = s.post("/api/coupons", []byte(object("name", sent.Coupon, "amount", 1))); created != 201 {
				t.Fatalf("coupon %q can be claimed, but creating it returns %d", sent.Coupon, created)
			}
			for _, want := range []int{201, 409} {
				if status, _ := s.post("/api/coupons/claim", body); status != want {
					t.Fatalf("%q: status %d, want %d", body, status, want)
				}
			}
			want = couponBody{sent.Coupon, 1, 0, []string{sent.User}}
		}
		got := s.read(resolve(t, "/api/coupons", header.Get("Location")))
		if !reflect.DeepEqual(got, want) || !isName(got.Name) || claimed == 404 && !isName(sent.User) {
			t.Fatalf("%q is read as %+v", body, got)
		}
	})
}

func FuzzName(f *testing.F) {
	for _, name := range keptNames {
		f.Add(name)
	}
	for _, name := range []string{"", " ", whiteSpace, "\x00", "\xff", "\xed\xa0\x80", strings.Repeat("é", 256)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s := newFuzzTarget(t)
		if utf8.ValidString(name) { // otherwise it cannot be sent as JSON
			status, _ := s.post("/api/coupons", []byte(object("name", name, "amount", 1)))
			if (status == 201) != isName(name) {
				t.Fatalf("creating %q: status %d", name, status)
			}
		}
		if name == "" { // another route
			return
		}
		for _, path := range []string{couponPath(name), "/api/coupons/" + percentEncoded(name)} {
			if isName(name) {
				if read := s.read(path).Name; read != name {
					t.Fatalf("%q is read as %q", name, read)
				}
				continue
			}
			if status, _, body := s.do(get(t, path)); status != 400 {
				t.Fatalf("GET %s: status %d: %s", path, status, body)
			}
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, path := range []string{
		"/", "*", "/api/coupons", "/api/coupons/", "/api/coupons/a", "/api/coupons/claim", "/api/coupons/a/b", "/api/coupons/a%2Fb",
		"/api/coupons/%2E%2E", "/api/coupons/..", "//api/coupons/a", "/api/coupons/%00", "/api/coupons/%zz", "/api/coupons/%FF", "/api/coupons/{name}",
		"/health", "/health/live", "/health/live/", "http://x/api/coupons/a", "http://x", "/api/coupons/a?b#c", "/api/coupons/%E3%80%80", "/api/coupons/a%252Fb",
		"/api/coupons/;a=b", "/api%2Fcoupons/a", "/api/coupons%2Fa", "/%61pi/coupons/a",
		"/api/coupons/%2E", "/api/coupons/.", "/api/coupons/a%2fb?x=/y", "/api/coupons/%63laim", "/api/coupons/a;b", "/api/coupons/a+b", "/api/coupons/claim?",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
			f.Add(method, path)
		}
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		request := get(t, target)
		if request == nil || strings.ContainsFunc(method, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return
		}
		request.Method = method
		status, _, _ := newFuzzTarget(t).do(request)
		// A path with a valid name reads the coupon of this name.
		path := request.URL.RawPath
		if path == "" {
			path = request.URL.EscapedPath()
		}
		last, ok := strings.CutPrefix(path, "/api/coupons/")
		if !ok || method != "GET" || strings.Contains(last, "/") {
			return
		}
		name, err := url.PathUnescape(last)
		if err != nil {
			t.Fatalf("net/http accepted %q, which cannot be decoded: %v", target, err)
		}
		s := newFuzzTarget(t)
		if isName(name) {
			s.post("/api/coupons", []byte(object("name", name, "amount", 1)))
			if read := s.read(target).Name; read != name {
				t.Fatalf("GET %q reads %q, want %q", target, read, name)
			}
		} else if want := map[bool]int{true: 404, false: 400}[name == ""]; status != want {
			t.Fatalf("GET %q: status %d, want %d", target, status, want)
		}
	})
}

func FuzzHeaders(f *testing.F) {
	for _, seed := range []struct {
		contentType, requestID string
		length                 int64
	}{
		{"application/json", "4bf92f3577b34da6", 44}, {"application/json; charset=utf-8", "", 44}, {"APPLICATION/JSON", "a b", -1}, {"", "a\nb", 0},
		{"text/plain", strings.Repeat("x", 129), 8193}, {"application/json;;;", "\x00", 1 << 40}, {"application/json; a=\"", "é", 10}, {";", "a", 8192},
	} {
		f.Add(seed.contentType, seed.requestID, seed.length)
	}
	f.Fuzz(func(t *testing.T, contentType, requestID string, length int64) {
		s := newFuzzTarget(t)
		request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/coupons/claim", strings.NewReader(adaClaims))
		request.Header["Content-Type"] = []string{contentType}
		request.Header["X-Request-Id"] = []string{requestID}
		request.ContentLength = max(length, -1)
		_, header, _ := s.do(request)
		got := header.Get("X-Request-ID")
		if got != requestID && len(got) != 26 {
			t.Fatalf("X-Request-ID %q became %q, want it unchanged or a new one", requestID, got)
		}
	})
}
