// Package apitest helps to test clients and servers of the HTTP API: it checks every response
// against openapi.yaml, and has an in-memory Store.
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

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"scalable-coupon-system/api"
)

// Contract returns openapi.yaml, parsed and validated, with examples that match their schemas. The
// document is shared: do not modify it.
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

// maxChecked is the maximum size, in bytes, of a body that is checked against its schema. A larger
// body is streamed to the caller, and only its status and headers are checked.
const maxChecked = 1 << 20

// Checked returns a RoundTripper that sends requests through next (http.DefaultTransport if it is
// nil) and fails tb if a response violates the contract:
//
//   - The status, the headers or the body are not what openapi.yaml documents for the operation, or
//     for an unknown path or method.
//   - The request violates the contract, but the status is not a 4xx.
//
// It returns all responses, also those that violate the contract. It is safe for concurrent use.
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

// RoundTrip implements http.RoundTripper.
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
		c.tb.Errorf("%s %s: status %d violates the contract: %v",
			request.Method, request.URL.RequestURI(), response.StatusCode, err)
	}
	return response, nil
}

// Check checks a request and its response against the contract in doc. sent is a copy of the
// request's body. If it is nil and the request has a body, the request is not checked. The
// response's body can still be read after Check. A response with a body that ends in an error is
// not checked.
func Check(doc *openapi3.T, request *http.Request, sent io.ReadCloser, response *http.Response) error {
	head, complete := peekBody(response)
	if !complete || fromNetHTTP(response, head) {
		return nil
	}
	method := request.Method
	if method == http.MethodHead {
		method = http.MethodGet
		if len(head) > 0 {
			return fmt.Errorf("the response to HEAD has a body: %q", head)
		}
	}
	input := &openapi3filter.RequestValidationInput{Request: forValidation(request, method, sent)}
	input.Route, input.PathParams = findRoute(doc, method, sentPath(request))
	noOperation := input.Route.Operation == nil
	if noOperation {
		input.Route.Operation = errorOperation(doc, input.Route.PathItem != nil)
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
		return fmt.Errorf("the response must not have a body: %q", head)
	}
	rejected := response.StatusCode/100 == 4
	if noOperation || rejected || (sent == nil && request.Body != nil && request.Body != http.NoBody) {
		return nil
	}
	if err := openapi3filter.ValidateRequest(request.Context(), input); err != nil {
		return fmt.Errorf("an invalid request was not rejected: %w", err)
	}
	return nil
}

const typeJSON = "application/json"

// mediaType returns the Content-Type of a response, which must equal one of the documented ones, or
// JSON if the response has no body.
func mediaType(documented *openapi3.ResponseRef, header http.Header) (string, error) {
	allowed := []string{typeJSON}
	if documented != nil && len(documented.Value.Content) > 0 {
		allowed = slices.Collect(maps.Keys(documented.Value.Content))
	}
	got := header.Values("Content-Type")
	if len(got) != 1 || !slices.Contains(allowed, got[0]) {
		return "", fmt.Errorf("Content-Type %q, want one of %q", got, allowed)
	}
	return got[0], nil
}

// fromNetHTTP reports whether net/http sent the response without calling a handler, because the
// request is not valid HTTP.
func fromNetHTTP(response *http.Response, body []byte) bool {
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

// forValidation returns a copy of the request in a form that the document describes: with this
// method (GET for HEAD).
func forValidation(request *http.Request, method string, sent io.ReadCloser) *http.Request {
	r := request.Clone(request.Context())
	r.Method = method
	r.Body = sent
	return r
}

// findRoute returns the operation of a request and its path parameters. Unlike some of
// kin-openapi's routers, it matches the path as sent, where %2F is part of a segment. A literal
// path takes precedence over one with a parameter, as OpenAPI requires. The route has no PathItem
// if the path is unknown, and no Operation if the path or the method is.
func findRoute(doc *openapi3.T, method, path string) (*routers.Route, map[string]string) {
	route := &routers.Route{Spec: doc, Method: method, Path: path}
	var params map[string]string
	for _, pattern := range doc.Paths.InMatchingOrder() { // literal paths first
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

// sentPath returns the path as the client sent it. EscapedPath does not always do that for a
// request that a server has parsed: if RawPath has a character that should be encoded, such as ",
// EscapedPath encodes Path again.
func sentPath(request *http.Request) string {
	if request.RequestURI != "" && request.URL.RawPath != "" {
		return request.URL.RawPath
	}
	return request.URL.EscapedPath()
}

// matchPath matches an escaped path segment by segment. It returns the decoded parameters, or nil
// if the path does not match.
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

// errorOperation returns an operation with the documented response for unknown paths, or for
// unknown methods of a known path.
func errorOperation(doc *openapi3.T, pathKnown bool) *openapi3.Operation {
	status, name := http.StatusNotFound, "NotFound"
	if pathKnown {
		status, name = http.StatusMethodNotAllowed, "MethodNotAllowed"
	}
	return &openapi3.Operation{Responses: openapi3.NewResponses(openapi3.WithStatus(status, doc.Components.Responses[name]))}
}

// peekBody reads up to maxChecked+1 bytes of the response's body and puts them back. complete is
// false if reading failed; the caller then gets the same error after the same bytes.
func peekBody(response *http.Response) (head []byte, complete bool) {
	body := response.Body
	head, err := io.ReadAll(io.LimitReader(body, maxChecked+1))
	response.Body = &peekedBody{io.MultiReader(bytes.NewReader(head), errorOr{err, body}), body}
	return head, err == nil
}

// peekedBody is a body that still returns the bytes that peekBody read.
type peekedBody struct {
	io.Reader
	io.Closer
}

// errorOr returns err from every Read, or reads from Reader if err is nil.
type errorOr struct {
	err error
	io.Reader
}

func (r errorOr) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.Reader.Read(p)
}
