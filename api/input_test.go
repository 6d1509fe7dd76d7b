package api_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
)

const (
	nameRule   = " must be a string of 1 to 255 characters, not only white space and without NUL; "
	amountRule = "amount must be a whole number from 1 to 2147483647, written in digits only; "
	claimRule  = "the body must be a JSON object with exactly the fields user_id and coupon_name; "
	createRule = "the body must be a JSON object with exactly the fields name and amount; "
	jsonRule   = "the body must be valid JSON; "
	notJSON    = jsonRule + "it has a syntax error near byte "
)

// whiteSpace has all characters of Unicode's White_Space, as in the functions in PostgreSQL.
const whiteSpace = "\t\n\v\f\r \u0085\u00a0\u1680" +
	"\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a" +
	"\u2028\u2029\u202f\u205f\u3000"

// Go and the functions in PostgreSQL agree for every code point.
func TestNames_whiteSpace(t *testing.T) {
	for r := rune(0); r <= utf8.MaxRune; r++ {
		if inGo, inSQL := api.IsWhiteSpace(r), strings.ContainsRune(whiteSpace, r); inGo != inSQL {
			t.Errorf("%U: white space is %v in Go, %v in SQL", r, inGo, inSQL)
		}
	}
}

// Every invalid body is rejected with exactly this message, and the Store is not called.
func TestBody_invalid(t *testing.T) {
	claim := []struct{ name, body, message string }{
		{"nothing", "", claimRule + "it is empty"},
		{"null", "null", claimRule + "it is null"},
		{"boolean", "true", claimRule + "it is a boolean"},
		{"number", "5", claimRule + "it is a number"},
		{"string", `"user_id"`, claimRule + "it is a string"},
		{"array", `[{"user_id":"ada","coupon_name":"sale"}]`, claimRule + "it is an array"},
		{"not JSON", "user_id=ada&coupon_name=sale", notJSON + "0"},
		{"byte order mark", "\ufeff{}", notJSON + "0"},
		{"incomplete", `{"user_id":"ada","coupon_name":"sale"`, notJSON + "37"},
		{"incomplete string", `{"user_id":"ada","coupon_name":"sa`, notJSON + "34"},
		{"single quotes", `{'user_id':'ada'}`, notJSON + "1"},
		{"trailing comma", `{"user_id":"ada","coupon_name":"sale",}`, notJSON + "38"},
		{"control character", "{\"user_id\":\"a\nb\",\"coupon_name\":\"sale\"}", notJSON + "13"},
		{"unknown escape", `{"user_id":"a\x41","coupon_name":"sale"}`, notJSON + "13"},
		{"array as a name", `{["user_id"]:"ada"}`, notJSON + "1"},
		{"object as a name", `{{"user_id":"ada"}:1}`, notJSON + "1"},
		{"deep arrays", strings.Repeat("[", 8_000), claimRule + "it has more than 511 [ and {"},
		{"deep objects", strings.Repeat(`{"a":`, 1_600), claimRule + "it has more than 511 [ and {"},
		{"deep value of a field", `{"user_id":` + strings.Repeat("[", 511) + strings.Repeat("]", 511) + `,"coupon_name":"sale"}`, claimRule + "it has more than 511 [ and {"},
		{"deepest value that is decoded", `{"user_id":` + strings.Repeat("[", 510) + strings.Repeat("]", 510) + `,"coupon_name":"sale"}`, "user_id" + nameRule + "it is an array"},
		{"text after", `{"user_id":"ada","coupon_name":"sale"}x`, claimRule + "it is followed by more data"},
		{"brace after", `{"user_id":"ada","coupon_name":"sale"}}`, claimRule + "it is followed by more data"},
		{"invalid UTF-8", "{\"user_id\":\"a\xff\",\"coupon_name\":\"sale\"}", "the body must be valid UTF-8"},
		{"surrogates in UTF-8", "{\"user_id\":\"\xed\xa0\x80\",\"coupon_name\":\"sale\"}", "the body must be valid UTF-8"},
		{"lone high surrogate", `{"user_id":"a\ud83c","coupon_name":"sale"}`, jsonRule + "it has an unpaired surrogate at byte 13"},
		{"lone low surrogate", `{"user_id":"\uDF9F","coupon_name":"sale"}`, jsonRule + "it has an unpaired surrogate at byte 12"},
		{"lone surrogate in a name", `{"\ud83c":"ada"}`, jsonRule + "it has an unpaired surrogate at byte 2"},
		{"empty object", "{}", "user_id" + nameRule + "it is missing"},
		{"one field", `{"user_id":"ada"}`, "coupon_name" + nameRule + "it is missing"},
		{"unknown field", `{"user_id":"ada","coupon_name":"sale","amount":1}`, claimRule + `it has the unknown field "amount"`},
		{"capital letter", `{"User_id":"ada","coupon_name":"sale"}`, claimRule + `it has the unknown field "User_id"`},
		{"empty name", `{"":"ada","user_id":"ada","coupon_name":"sale"}`, claimRule + `it has the unknown field ""`},
		{"long name", `{"` + strings.Repeat("é", 41) + `":1}`, claimRule + `it has the unknown field "` + strings.Repeat("é", 40) + `…"`},
		{"quotes in a name", `{"a\"\u0007\\b":1}`, claimRule + `it has the unknown field "a\"\a\\b"`},
		{"repeated field", `{"user_id":"ada","user_id":"ada","coupon_name":"sale"}`, `each field may appear only once; "user_id" is repeated`},
		{"repeated, escaped", `{"user_id":"ada","coupon_name":"sale","user\u005fid":"bob"}`, `each field may appear only once; "user_id" is repeated`},
		{"repeated, unknown", `{"a/~b":1,"a/~b":2}`, `each field may appear only once; "a/~b" is repeated`},
		{"repeated, inside", `{"user_id":{"x":1,"x":1},"coupon_name":"sale"}`, `each field may appear only once; "x" is repeated`},
		{"null field", `{"user_id":null,"coupon_name":"sale"}`, "user_id" + nameRule + "it is null"},
		{"number for a string", `{"user_id":12345,"coupon_name":"sale"}`, "user_id" + nameRule + "it is a number"},
		{"boolean for a string", `{"user_id":"ada","coupon_name":false}`, "coupon_name" + nameRule + "it is a boolean"},
		{"array for a string", `{"user_id":["ada"],"coupon_name":"sale"}`, "user_id" + nameRule + "it is an array"},
		{"object for a string", `{"user_id":{"id":"ada"},"coupon_name":"sale"}`, "user_id" + nameRule + "it is an object"},
		{"empty user", `{"user_id":"","coupon_name":"sale"}`, "user_id" + nameRule + "it is empty"},
		{"empty coupon", `{"user_id":"ada","coupon_name":""}`, "coupon_name" + nameRule + "it is empty"},
		{"NUL", `{"user_id":"a\u0000b","coupon_name":"sale"}`, "user_id" + nameRule + "it contains NUL"},
		{"all white space characters", object("user_id", whiteSpace, "coupon_name", "sale"), "user_id" + nameRule + "it is only white space"},
		{"256 characters", object("user_id", strings.Repeat("a", 256), "coupon_name", "sale"), "user_id" + nameRule + "it has 256 characters"},
		{"8,000 characters", object("user_id", strings.Repeat("a", 8_000), "coupon_name", "sale"), "user_id" + nameRule + "it has 8000 characters"},
		// Several errors: those of the JSON first, then the first invalid field, then missing fields.
		{"syntax error after a wrong field", `{"user_id":5,"coupon_name":`, notJSON + "27"},
		{"repeated after a wrong field", `{"user_id":5,"x":1,"x":1}`, `each field may appear only once; "x" is repeated`},
		{"text after a wrong field", `{"user_id":5}{`, claimRule + "it is followed by more data"},
		{"two wrong fields", `{"coupon_name":5,"user_id":5}`, "coupon_name" + nameRule + "it is a number"},
		{"unknown before missing", `{"user":"ada"}`, claimRule + `it has the unknown field "user"`},
	}
	create := []struct{ name, body, message string }{
		{"nothing", "", createRule + "it is empty"},
		{"fields of a claim", `{"user_id":"ada","coupon_name":"sale"}`, createRule + `it has the unknown field "user_id"`},
		{"no name", `{"amount":5}`, "name" + nameRule + "it is missing"},
		{"no amount", `{"name":"sale"}`, amountRule + "it is missing"},
		{"null amount", `{"name":"sale","amount":null}`, amountRule + "it is null"},
		{"string amount", `{"name":"sale","amount":"5"}`, amountRule + "it is a string"},
		{"1.0", `{"name":"sale","amount":1.0}`, amountRule + "it has a fraction or an exponent"},
		{"1e2", `{"name":"sale","amount":1e2}`, amountRule + "it has a fraction or an exponent"},
		{"-1.5", `{"name":"sale","amount":-1.5}`, amountRule + "it has a fraction or an exponent"},
		{"-0", `{"name":"sale","amount":-0}`, amountRule + "it is out of range"},
		{"-1", `{"name":"sale","amount":-1}`, amountRule + "it is out of range"},
		{"2147483648", `{"name":"sale","amount":2147483648}`, amountRule + "it is out of range"},
		{"4294967297", `{"name":"sale","amount":4294967297}`, amountRule + "it is out of range"},
		{"6,000 digits", `{"name":"sale","amount":` + strings.Repeat("9", 6_000) + `}`, amountRule + "it is out of range"},
		{"05", `{"name":"sale","amount":05}`, notJSON + "25"},
		{"NaN", `{"name":"sale","amount":NaN}`, notJSON + "24"},
		{"blank name", `{"name":" ","amount":5}`, "name" + nameRule + "it is only white space"},
	}
	if !allowedBySchema(t, "ClaimRequest", adaClaims) || !allowedBySchema(t, "CreateRequest", sale) {
		t.Error("openapi.yaml rejects valid bodies")
	}
	s := serve(t)
	for _, list := range []struct {
		path, schema string
		cases        []struct{ name, body, message string }
	}{{"/api/coupons/claim", "ClaimRequest", claim}, {"/api/coupons", "CreateRequest", create}} {
		for _, c := range list.cases {
			t.Run(list.path+" "+c.name, func(t *testing.T) {
				got := s.do("POST", list.path, c.body, "Content-Type", typeJSON)
				got.want(t, 400, api.CodeInvalidRequest)
				if message := got.error(t).Error; message != c.message {
					t.Errorf("message\n\t%q, want\n\t%q", message, c.message)
				}
				if !notInSchema(c.message) && allowedBySchema(t, list.schema, c.body) {
					t.Error("openapi.yaml allows it")
				}
			})
		}
	}
	if n := s.store.Calls(); n != 0 {
		t.Errorf("the Store was called %d times", n)
	}
}

// notInSchema reports whether the error cannot be expressed in a schema, which applies to decoded
// JSON.
func notInSchema(message string) bool {
	return message == "the body must be valid UTF-8" ||
		strings.Contains(message, "an unpaired surrogate") ||
		strings.HasPrefix(message, "each field may appear only once") ||
		strings.HasSuffix(message, "it has a fraction or an exponent")
}

// allowedBySchema reports whether a body matches the schema with this name in openapi.yaml.
func allowedBySchema(t *testing.T, schema, body string) bool {
	t.Helper()
	var value any
	return json.Unmarshal([]byte(body), &value) == nil &&
		apitest.Contract(t).Components.Schemas[schema].Value.VisitJSON(value) == nil
}

// Names and user ids that must be kept byte for byte.
var keptNames = []string{
	"a", "/", "a/b", "%2F", "%", "%25", "%zz", "a%00b", "+", "a b", " a ", "\ta\n", "?x=1", "#x", ";", "a;b=c", "a:b", "//host/a", "&", "=", ",",
	".", "..", "...", "./a", "../..", "*", "{name}", "$1", "~", "claim", "Claim", "claim/", "health",
	"🎟️ für alle", "👩‍👩‍👧‍👦", "e\u0301", "\u00e9", "ﬀ", "İ", "ß", "\u202eabc", "\ufeffa", "\u200b", "\u200d", "\u0001", "\x7f", "\u2028a", "\ufffd", "\U0010ffff", "\uffff",
	`"`, `\`, `\u0041`, "'", "`", "<script>alert(1)</script>", "Robert'); DROP TABLE coupons;--", "null", "NULL", "0", "{}",
	strings.Repeat("a", 255), strings.Repeat("🎟", 255), strings.Repeat("\u0001", 255), strings.Repeat("/", 255),
	strings.Repeat("[", 255), // a claim with as many brackets as a valid one can have
	strings.Repeat(" ", 254) + "x", whiteSpace + "x",
}

// Valid names are kept byte for byte, as coupon names and as user ids. A coupon is read at its
// Location, and at a path with every byte percent-encoded, which is decoded exactly once. The
// Location is relative, so that it also holds behind a path prefix: a proxy removes the prefix from
// the path of the request, and knows nothing of the Location.
func TestNames_unchanged(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for i, name := range keptNames {
		created := s.create(name, 3)
		created.want(t, 201, "")
		s.create(name, 3).want(t, 409, api.CodeCouponExists)
		users := []string{name, keptNames[(i+1)%len(keptNames)]}
		for _, user := range users {
			s.claim(user, name).want(t, 201, "")
			s.claim(user, name).want(t, 409, api.CodeAlreadyClaimed)
		}
		location := created.header.Get("Location")
		path := resolve(t, "/api/coupons", location)
		for _, path := range []string{path, "/api/coupons/" + percentEncoded(name)} {
			coupon := s.do("GET", path, "").coupon(t)
			if coupon.Name != name || !slices.Equal(coupon.ClaimedBy, users) {
				t.Errorf("coupon %q and users %q are read at %s as %q and %q", name, users, path, coupon.Name, coupon.ClaimedBy)
			}
		}
		if behind := resolve(t, "/shop/eu/api/coupons?trace=1", location); behind != "/shop/eu"+path {
			t.Errorf("Location %s leads to %s behind a prefix", location, behind)
		}
	}
	// These would be the coupon a/b if the path was decoded twice.
	for _, path := range []string{"/api/coupons/a%252Fb", "/api/coupons/%25252F"} {
		s.do("GET", path, "").want(t, 404, api.CodeCouponNotFound)
	}
}

func TestPath_invalidName(t *testing.T) {
	s := serve(t)
	for path, problem := range map[string]string{
		"/api/coupons/%20":                                    "it is only white space",
		"/api/coupons/%E3%80%80%C2%A0":                        "it is only white space",
		"/api/coupons/%00":                                    "it contains NUL",
		"/api/coupons/a%00b":                                  "it contains NUL",
		"/api/coupons/%FF":                                    "it is not valid UTF-8",
		"/api/coupons/%ED%A0%80":                              "it is not valid UTF-8",
		"/api/coupons/a%2F%C0":                                "it is not valid UTF-8",
		"/api/coupons/" + strings.Repeat("a", 256):            "it has 256 characters",
		"/api/coupons/" + strings.Repeat("%F0%9F%8E%9F", 256): "it has 256 characters",
	} {
		got := s.do("GET", path, "")
		got.want(t, 400, api.CodeInvalidRequest)
		if want := "the name in the path" + nameRule + problem; got.error(t).Error != want {
			t.Errorf("%s: message %q, want %q", path, got.error(t).Error, want)
		}
	}
	if n := s.store.Calls(); n != 0 {
		t.Errorf("the Store was called %d times", n)
	}
}

func TestContentType(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.create("sale", 1000).want(t, 201, "")
	status := func(contentTypes ...string) int {
		header := "POST /api/coupons/claim HTTP/1.1\r\nHost: x\r\n"
		for _, value := range contentTypes {
			header += "Content-Type: " + value + "\r\n"
		}
		conn := s.dial()
		conn.send(header + withContentLength(object("user_id", "ada", "coupon_name", "sale")))
		return conn.response("POST", "/api/coupons/claim").status
	}
	rejected := [][]string{
		nil, {""}, {"text/plain"}, {"text/plain; application/json"}, {"application/x-www-form-urlencoded"}, {"application/json5"},
		{"application/problem+json"}, {"application/json, text/plain"}, {"application/json json"}, {"*/*"}, {"json"}, {";"},
		{"application/json", "application/json"}, {"application/json", "text/plain"},
	}
	accepted := []string{
		"application/json", "application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8", " application/json ",
		"application/json;", "application/json; charset",
	}
	calls := s.store.Calls()
	for _, values := range rejected {
		if got := status(values...); got != http.StatusUnsupportedMediaType {
			t.Errorf("Content-Type %q: status %d", values, got)
		}
	}
	if got := s.store.Calls(); got != calls {
		t.Errorf("rejected requests called the Store %d times", got-calls)
	}
	for _, value := range accepted {
		if got := status(value); got != http.StatusCreated && got != http.StatusConflict {
			t.Errorf("Content-Type %q: status %d", value, got)
		}
	}
}

// A request is checked in the order route, media type, size, JSON, fields.
func TestErrors_precedence(t *testing.T) {
	s := serve(t)
	huge := strings.Repeat("[", 8<<10+1)
	for _, c := range []struct {
		method, path, body, contentType string
		status                          int
		code                            api.Code
	}{
		{"POST", "/api/nothing", huge, textPlain, 404, api.CodeNotFound},
		{"PUT", "/api/coupons", huge, textPlain, 405, api.CodeMethodNotAllowed},
		{"POST", "/api/coupons/%00", huge, textPlain, 405, api.CodeMethodNotAllowed},
		{"POST", "/api/coupons", huge, textPlain, 415, api.CodeUnsupportedMediaType},
		{"POST", "/api/coupons", huge, typeJSON, 413, api.CodeBodyTooLarge},
		{"POST", "/api/coupons", `{"amount":0,`, typeJSON, 400, api.CodeInvalidRequest},
		{"GET", "/api/coupons/sale", huge, textPlain, 404, api.CodeCouponNotFound},
	} {
		s.do(c.method, c.path, c.body, "Content-Type", c.contentType).want(t, c.status, c.code)
	}
}

// couponPath returns the path at which a client reads a coupon, as described in openapi.yaml.
func couponPath(name string) string {
	path := url.PathEscape(name)
	if name == "." || name == ".." {
		path = strings.ReplaceAll(name, ".", "%2E")
	}
	return "/api/coupons/" + path
}

func percentEncoded(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('%')
		b.WriteByte(digits[s[i]>>4])
		b.WriteByte(digits[s[i]&15])
	}
	return b.String()
}
