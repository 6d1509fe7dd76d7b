package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// exchange is one request and its response, which is counted and logged. Handlers write to it only
// by the methods in response.go.
type exchange struct {
	http.ResponseWriter

	h       *Handler
	request *http.Request
	id      [1]string // the request id; an array, so that it can serve as header values
	started time.Time

	// unread is true while the request has a body that was not read to its end.
	unread bool

	status  int   // 0 until the header of the response is sent
	bytes   int64 // of the response's body
	aborted bool  // the response was cut off
	err     error // why it is a 5xx or was cut off; only logged
}

// handle returns f for chi. It creates the exchange of each request and finishes it after f, also
// after a panic. An error of f is answered, see exchange.fail.
func (h *Handler) handle(f func(*exchange) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x := &exchange{
			ResponseWriter: w,
			h:              h,
			request:        r,
			id:             [1]string{requestID(r)},
			started:        time.Now(),
			unread:         r.ContentLength != 0,
		}
		w.Header()[headerRequestID] = x.id[:]
		defer func() { x.finish(recover()) }()
		err := f(x)
		if err == nil {
			err = x.complete()
		}
		if err != nil {
			x.fail(err)
		}
	}
}

// context returns the request's context with its id, for the Store.
func (x *exchange) context() context.Context {
	return context.WithValue(x.request.Context(), pgstore.RequestIDKey{}, &x.id[0])
}

// abort closes the connection, so that the client sees a broken response and never a complete one
// that is wrong. err is logged.
func (x *exchange) abort(err error) {
	x.err = err
	panic(http.ErrAbortHandler)
}

// abortIfClientClosed ends the exchange without a response if the Store returned err because the
// client disconnected.
func (x *exchange) abortIfClientClosed(err error) {
	if x.request.Context().Err() != nil && errors.Is(err, context.Canceled) {
		x.status = statusClientClosed
		x.abort(err)
	}
}

// finish counts and logs the exchange. recovered is the value of a panic, or nil. A panic becomes a
// 500, or closes the connection if a part of the response was sent already.
func (x *exchange) finish(recovered any) {
	var stack []byte
	switch recovered {
	case nil:
	case http.ErrAbortHandler:
		x.aborted = true
	default:
		x.err = fmt.Errorf("panic: %v", recovered)
		stack = debug.Stack()
		if x.status == 0 {
			_ = x.sendError(reject(CodeInternal)) // it fits into net/http's buffer
		} else {
			x.aborted = true
		}
	}
	took := time.Since(x.started)
	route := cmp.Or(x.request.Pattern, noRoute)
	x.h.requests.observe(x.request.Method, route, x.status, took)
	x.writeLog(route, took, stack)
	if x.aborted {
		panic(http.ErrAbortHandler)
	}
}

// statusClientClosed is the status in the log and the metrics if the client disconnected before the
// response. It is never sent. The number is nginx's.
const statusClientClosed = 499

// writeLog writes the log line of the exchange.
func (x *exchange) writeLog(route string, took time.Duration, stack []byte) {
	level := zerolog.InfoLevel
	switch {
	case route == pathHealth || route == pathLive || route == pathMetrics && x.status == http.StatusOK:
		level = zerolog.DebugLevel
	case x.status == http.StatusInternalServerError || stack != nil:
		level = zerolog.ErrorLevel
	case x.status > http.StatusInternalServerError || x.aborted && x.status != statusClientClosed:
		level = zerolog.WarnLevel
	}
	line := x.h.log.WithLevel(level).Err(x.err) // nil below the log level, which zerolog ignores
	if stack != nil {
		line.Bytes("stack", stack)
	}
	if x.aborted {
		line.Bool("aborted", true)
	}
	line.Str("request_id", x.id[0]).
		Str("method", x.request.Method).
		Str("route", route).
		Int("status", x.status).
		Float64("duration_ms", float64(took.Microseconds())/1000).
		Int64("bytes", x.bytes).
		Msg("request")
}

const (
	headerRequestID    = "X-Request-Id" // X-Request-ID in net/http's canonical form
	maxRequestIDLength = 128

	// requestIDCharacters are those of common request ids (UUIDs, ULIDs, base64, trace headers,
	// addresses). None has a special meaning in JSON, in a terminal or in a shell.
	requestIDCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/+=@-"
)

// requestID returns the request's X-Request-ID if it is valid, otherwise a new one.
func requestID(r *http.Request) string {
	if given := r.Header[headerRequestID]; len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	return rand.Text()
}

func validRequestID(id string) bool {
	return id != "" && len(id) <= maxRequestIDLength && strings.Trim(id, requestIDCharacters) == ""
}
