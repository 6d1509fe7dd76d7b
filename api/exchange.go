package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"

	"scalable-coupon-system/pgstore"
)

// exchange is one request and its response. It is the ResponseWriter that handlers write to, so
// that every response is counted and logged.
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

// withExchange creates the exchange of a request and finishes it after next, also after a panic.
func (h *Handler) withExchange(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		next.ServeHTTP(x, r)
	})
}

// WriteHeader sends the header of the response, once.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the response's body.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(p)
	if x.request.Method != http.MethodHead { // net/http accepts the body but does not send it
		x.bytes += int64(n)
	}
	return n, err
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// context returns the request's context with its id, for the Store. It is the exchange itself under
// another type, so that it needs no allocation.
func (x *exchange) context() context.Context { return (*exchangeContext)(x) }

type exchangeContext exchange

func (c *exchangeContext) Deadline() (time.Time, bool) { return c.request.Context().Deadline() }
func (c *exchangeContext) Done() <-chan struct{}       { return c.request.Context().Done() }
func (c *exchangeContext) Err() error                  { return c.request.Context().Err() }

func (c *exchangeContext) Value(key any) any {
	if key == (pgstore.RequestIDKey{}) {
		return &c.id[0]
	}
	return c.request.Context().Value(key)
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
			x.sendCode(CodeInternal)
		} else {
			x.aborted = true
		}
	}
	took := time.Since(x.started)
	x.h.requests.observe(x.request.Method, x.request.Pattern, x.status, took)
	x.writeLog(took, stack)
	if x.aborted {
		panic(http.ErrAbortHandler)
	}
}

// statusClientClosed is the status in the log and the metrics if the client disconnected before the
// response. It is never sent. The number is nginx's.
const statusClientClosed = 499

// writeLog writes the log line of the exchange.
func (x *exchange) writeLog(took time.Duration, stack []byte) {
	route := cmp.Or(x.request.Pattern, noRouteLabel) // as in the metrics
	level := zerolog.InfoLevel
	switch {
	case route == pathHealth || route == pathLive || route == pathMetrics && x.status == http.StatusOK:
		level = zerolog.DebugLevel
	case x.status == http.StatusInternalServerError || stack != nil:
		level = zerolog.ErrorLevel
	case x.status > http.StatusInternalServerError || x.aborted && x.status != statusClientClosed:
		level = zerolog.WarnLevel
	}
	line := x.h.log.WithLevel(level)
	if line == nil {
		return // below the log level
	}
	if x.err != nil {
		line.Err(x.err)
	}
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
)

// requestID returns the request's X-Request-ID if it is valid, otherwise a new one.
func requestID(r *http.Request) string {
	if given := r.Header[headerRequestID]; len(given) == 1 && validRequestID(given[0]) {
		return given[0]
	}
	return rand.Text()
}

// validRequestID allows the characters of common request ids (UUIDs, ULIDs, base64, trace headers,
// addresses), and none with a special meaning in JSON, in a terminal or in a shell.
func validRequestID(id string) bool {
	if id == "" || len(id) > maxRequestIDLength {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == ':', c == '/', c == '+', c == '=', c == '@', c == '-':
		default:
			return false
		}
	}
	return true
}
