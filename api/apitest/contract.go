// Package apitest helps to test clients and servers of the HTTP API: it checks every response
// against openapi.yaml, and has an in-memory Store.
package apitest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"scalable-coupon-system/api"
)

// Contract returns openapi.yaml, parsed and validated, with examples that match their schemas. The
// document is shared: do not modify it.
func Contract(tb testing.TB) *openapi3.T {
	tb.Helper()
	c, err := parsed()
	if err != nil {
		tb.Fatalf("openapi.yaml: %v", err)
	}
	return c.doc
}

// contract is openapi.yaml with its routes.
type contract struct {
	doc    *openapi3.T
	router routers.Router
}

var parsed = sync.OnceValues(func() (c contract, err error) {
	if c.doc, err = openapi3.NewLoader().LoadFromData(api.OpenAPI); err != nil {
		return c, err
	}
	if err = c.doc.Validate(context.Background(), openapi3.EnableExamplesValidation()); err != nil {
		return c, err
	}
	rooted := *c.doc // its server is relative to the docs page
	rooted.Servers = nil
	c.router, err = gorillamux.NewRouter(&rooted)
	return c, err
})

// Checked returns a RoundTripper that sends requests through next, fails tb if Check returns an
// error, and returns every response all the same. It is safe for concurrent use.
func Checked(tb testing.TB, next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err != nil {
			return response, err
		}
		if err := Check(request, response); err != nil {
			tb.Errorf("%s %s: status %d violates the contract: %v",
				request.Method, request.URL.RequestURI(), response.StatusCode, err)
		}
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

const (
	typeJSON = "application/json"

	// maxChecked is the size, in bytes, of the largest body that is checked against its schema.
	maxChecked = 64 << 10
)

// Check returns an error if a response violates openapi.yaml:
//
//   - The status, the headers or the body are not what it documents for the operation, or for an
//     unknown path or method.
//   - The request violates it, but the status is not a 4xx. A request with a body is checked only
//     if it has GetBody.
//
// It reads the response's body, which can still be read afterwards. A response that is cut off is
// not checked, nor is the root, which leads people to the docs page.
func Check(request *http.Request, response *http.Response) error {
	c, err := parsed()
	if err != nil {
		return err
	}
	body, cutOff := io.ReadAll(response.Body)
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), iotest.ErrReader(cmp.Or(cutOff, io.EOF))), response.Body}
	isRoot := cmp.Or(request.URL.Path, "/") == "/" // "" in the absolute form, GET http://host
	if isComplete := cutOff == nil; !isComplete || isRoot {
		return nil
	}
	input, err := c.input(request)
	if err != nil {
		return err
	}
	content := openapi3.Content{typeJSON: nil} // also of a response without a body
	isHead := request.Method == http.MethodHead
	hasBody := false
	if r := input.Route.Operation.Responses.Status(response.StatusCode); r != nil && len(r.Value.Content) > 0 {
		content, hasBody = r.Value.Content, !isHead
	}
	// openapi3filter ignores parameters of the Content-Type, such as the charset.
	media := strings.Join(response.Header["Content-Type"], ", ")
	if _, documented := content[media]; !documented {
		return fmt.Errorf("Content-Type %q, want one of %v", media, slices.Collect(maps.Keys(content)))
	}
	err = openapi3filter.ValidateResponse(request.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input,
		Status:                 response.StatusCode,
		Header:                 response.Header,
		Body:                   io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true,
			ExcludeResponseBody:   isHead || len(body) > maxChecked || media != typeJSON,
		},
	})
	if err != nil {
		return err
	}
	if !hasBody && len(body) > 0 {
		return fmt.Errorf("the response must not have a body: %q", body)
	}
	isKnown := request.GetBody != nil || request.Body == nil || request.Body == http.NoBody
	if !isKnown || response.StatusCode/100 == 4 {
		return nil
	}
	if err := openapi3filter.ValidateRequest(request.Context(), input); err != nil {
		return fmt.Errorf("an invalid request was not rejected: %w", err)
	}
	return nil
}

// input returns the request in a form that the document describes: HEAD as GET. If the request has
// no operation, it gets one whose only response is the documented error.
func (c contract) input(request *http.Request) (*openapi3filter.RequestValidationInput, error) {
	r := request.Clone(request.Context())
	if r.Method == http.MethodHead {
		r.Method = http.MethodGet
	}
	if r.GetBody != nil {
		var err error
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	route, params, err := c.router.FindRoute(r)
	switch {
	case errors.Is(err, routers.ErrPathNotFound):
		route = c.errorRoute(http.StatusNotFound, "NotFound")
	case errors.Is(err, routers.ErrMethodNotAllowed):
		route = c.errorRoute(http.StatusMethodNotAllowed, "MethodNotAllowed")
	case err != nil:
		return nil, err
	}
	for name, value := range params {
		if params[name], err = url.PathUnescape(value); err != nil {
			return nil, err
		}
	}
	return &openapi3filter.RequestValidationInput{Request: r, Route: route, PathParams: params}, nil
}

// errorRoute returns a route with one of the documented error responses.
func (c contract) errorRoute(status int, response string) *routers.Route {
	return &routers.Route{Spec: c.doc, Operation: &openapi3.Operation{
		Responses: openapi3.NewResponses(openapi3.WithStatus(status, c.doc.Components.Responses[response])),
	}}
}
