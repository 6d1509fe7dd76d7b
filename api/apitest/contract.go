// Package apitest helps tests that speak with the HTTP API: it holds every answer
// against openapi.yaml, and has a Store in memory.
package apitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"scalable-coupon-system/api"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
)

// Contract returns openapi.yaml, parsed, resolved and found to be a correct
// document whose examples keep its schemas. It is shared: do not change it.
func Contract(tb testing.TB) *openapi3.T {
	tb.Helper()
	doc, err := contract()
	if err != nil {
		tb.Fatalf("openapi.yaml: %v", err)
	}
	return doc
}

var contract = sync.OnceValues(func() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(context.Background(), openapi3.EnableExamplesValidation())
})

// maxChecked bounds the bodies that are held against their schemas, in bytes. A
// larger one is passed on as it streams, with only its status and headers
// checked: a million claims are for a test of their own.
const maxChecked = 1 << 20

// Checked returns a RoundTripper that sends requests through next (nil:
// http.DefaultTransport), and fails tb when an answer breaks the contract:
//
//   - its status, its headers or its body are not what openapi.yaml documents for
//     the operation, or for paths and methods that it does not have;
//   - the request breaks the contract, and is not answered with 4xx.
//
// It passes all answers on, also those it finds fault with. It may be used by many
// goroutines, and costs some 50 µs a request.
func Checked(tb testing.TB, next http.RoundTripper) http.RoundTripper {
	tb.Helper()
	if next == nil {
		next = http.DefaultTransport
	}
	return &checked{tb: tb, doc: Contract(tb), next: next}
}

type checked struct {
	tb   testing.TB
	doc  *openapi3.T
	next http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (c *checked) RoundTrip(request *http.Request) (*http.Response, error) {
	var sent io.ReadCloser
	if request.GetBody != nil {
		body, err := request.GetBody()
		if err != nil {
			return nil, err
		}
		sent = body
	}
	response, err := c.next.RoundTrip(request)
	if err != nil {
		return response, err
	}
	if err := Check(c.doc, request, sent, response); err != nil {
		c.tb.Errorf("%s %s was answered %d, against the contract: %v",
			request.Method, request.URL.RequestURI(), response.StatusCode, err)
	}
	return response, nil
}

// Check holds a request and its response against the contract in doc. sent is a
// copy of the request's body, or nil when there is none: then a request that has
// one is not judged. What Check reads of the response's body it puts back.
func Check(doc *openapi3.T, request *http.Request, sent io.ReadCloser, response *http.Response) error {
	head, err := io.ReadAll(io.LimitReader(response.Body, maxChecked+1))
	response.Body = &rest{io.MultiReader(bytes.NewReader(head), afterError{err, response.Body}), response.Body}
	if err != nil {
		return nil
	}
	if madeByNetHTTP(response, head) {
		return nil
	}
	method := request.Method
	if method == http.MethodHead {
		method = http.MethodGet
		if len(head) > 0 {
			return fmt.Errorf("an answer to HEAD has a body: %q", head)
		}
	}
	input := &openapi3filter.RequestValidationInput{Request: forValidation(request, method, sent)}
	input.Route, input.PathParams = findRoute(doc, method, sentPath(request))
	unrouted := input.Route.Operation == nil
	if unrouted {
		input.Route.Operation = unroutedOperation(doc, input.Route.PathItem != nil)
	}
	media, err := mediaType(input.Route.Operation.Responses.Status(response.StatusCode), response.Header)
	if err != nil {
		return err
	}
	err = openapi3filter.ValidateResponse(request.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input,
		Status:                 response.StatusCode,
		Header:                 response.Header,
		Body:                   io.NopCloser(bytes.NewReader(head)),
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true,
			ExcludeResponseBody:   request.Method == http.MethodHead || len(head) > maxChecked || media != typeJSON,
		},
	})
	if err != nil {
		return err
	}
	if documented := input.Route.Operation.Responses.Status(response.StatusCode).Value; len(documented.Content) == 0 && len(head) > 0 {
		return fmt.Errorf("it must not have a body: %q", head)
	}
	refused := response.StatusCode/100 == 4
	if unrouted || refused || (sent == nil && request.Body != nil && request.Body != http.NoBody) {
		return nil
	}
	if err := openapi3filter.ValidateRequest(request.Context(), input); err != nil {
		return fmt.Errorf("the request was not refused, though: %w", err)
	}
	return nil
}

const typeJSON = "application/json"

// mediaType is the Content-Type of an answer, which must be word for word one of those documented; and JSON where
// no body is.
func mediaType(documented *openapi3.ResponseRef, header http.Header) (string, error) {
	allowed := []string{typeJSON}
	if documented != nil && len(documented.Value.Content) > 0 {
		allowed = slices.Collect(maps.Keys(documented.Value.Content))
	}
	got := header.Values("Content-Type")
	if len(got) != 1 || !slices.Contains(allowed, got[0]) {
		return "", fmt.Errorf("its Content-Type is %q", got)
	}
	return got[0], nil
}

// madeByNetHTTP tells the answers that net/http gives by itself to what is no
// correct HTTP: no handler has seen these requests.
func madeByNetHTTP(response *http.Response, body []byte) bool {
	switch response.StatusCode {
	case http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge,
		http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return response.Header.Get("Content-Type") == "text/plain; charset=utf-8" &&
			response.Close && response.Header.Get("X-Request-ID") == "" &&
			(bytes.HasPrefix(body, []byte(strconv.Itoa(response.StatusCode))) || string(body) == "Unsupported transfer encoding")
	case http.StatusExpectationFailed:
		return len(body) == 0
	}
	return false
}

// forValidation copies a request to what the document can judge: HEAD is GET, a
// body without a Content-Type is JSON.
func forValidation(request *http.Request, method string, sent io.ReadCloser) *http.Request {
	r := request.Clone(request.Context())
	r.Method = method
	r.Body = sent
	if sent != nil && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", typeJSON)
	}
	return r
}

// findRoute finds the operation of a request. It goes by the path as it was sent,
// where %2F is part of a segment, which kin-openapi's own routers do not all do;
// and a path spelled out goes before one with a parameter, as OpenAPI says. The
// route has no PathItem when the path is unknown, and no Operation when the path
// or the method is.
func findRoute(doc *openapi3.T, method, path string) (*routers.Route, map[string]string) {
	route := &routers.Route{Spec: doc, Method: method, Path: path}
	var params map[string]string
	for _, pattern := range doc.Paths.InMatchingOrder() { // spelled out before templates
		if params = matchPath(pattern, path); params != nil {
			route.Path, route.PathItem = pattern, doc.Paths.Value(pattern)
			break
		}
	}
	if route.PathItem != nil {
		route.Operation = route.PathItem.GetOperation(method)
	}
	return route, params
}

// sentPath is the path as it went over the wire. On a request that a server has
// read, EscapedPath is not always that: where RawPath holds a character that ought
// to be encoded, like ", it encodes Path anew.
func sentPath(request *http.Request) string {
	if request.RequestURI != "" && request.URL.RawPath != "" {
		return request.URL.RawPath
	}
	return request.URL.EscapedPath()
}

// matchPath matches an escaped path segment by segment, and returns the decoded
// parameters, or nil when it does not match.
func matchPath(pattern, path string) map[string]string {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil
	}
	params := make(map[string]string)
	for i, segment := range want {
		if !strings.HasPrefix(segment, "{") {
			if segment != got[i] {
				return nil
			}
			continue
		}
		decoded, err := url.PathUnescape(got[i])
		if err != nil || decoded == "" {
			return nil
		}
		params[strings.Trim(segment, "{}")] = decoded
	}
	return params
}

// unroutedOperation stands in for what the document cannot have: an operation for
// all other paths, or for all other methods of a path.
func unroutedOperation(doc *openapi3.T, pathKnown bool) *openapi3.Operation {
	status, name := http.StatusNotFound, "NotFound"
	if pathKnown {
		status, name = http.StatusMethodNotAllowed, "MethodNotAllowed"
	}
	return &openapi3.Operation{Responses: openapi3.NewResponses(openapi3.WithStatus(status, doc.Components.Responses[name]))}
}

// rest is a body whose beginning has been read.
type rest struct {
	io.Reader
	io.Closer
}

// afterError repeats the error that ended the reading, if there was one.
type afterError struct {
	err  error
	body io.Reader
}

func (r afterError) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.body.Read(p)
}
