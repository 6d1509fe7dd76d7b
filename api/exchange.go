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

// exchange is one request and its answer. It is the ResponseWriter of all
// handlers, so that whatever they send is counted and logged.
type exchange struct {
	http.ResponseWriter

	h       *Handler
	request *http.Request
	id      [1]string // the request id, in the form of a header's values
	started time.Time

	// unread: the request has a body that nobody has read to its end.
	unread bool

	status  int   // 0 until the header of the answer is sent
	bytes   int64 // of the answer's body
	aborted bool  // the answer was cut off
	err     error // why it is a 5xx, or was cut off; for the log alone
}

// observe makes the exchange, and stands around everything that answers it.
func (h *Handler) observe(next http.Handler) http.Handler {
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

// WriteHeader sends the header of the answer, once.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the answer's body.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(p)
	if x.request.Method != http.MethodHead { // net/http takes it and sends nothing
		x.bytes += int64(n)
	}
	return n, err
}

// Unwrap gives http.ResponseController what it looks for.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// context is the context of the request, for the Store: it knows the request's id as
// well. It is the exchange itself, seen as a context: a request pays no allocation.
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

// abort cuts the answer off, so that the client sees a broken one and never a
// whole one that is not true; err says why.
func (x *exchange) abort(err error) {
	x.err = err
	panic(http.ErrAbortHandler)
}

// abortIfGone ends the exchange without an answer when err is only the Store's way
// to say that the client has gone.
func (x *exchange) abortIfGone(err error) {
	if x.request.Context().Err() != nil && errors.Is(err, context.Canceled) {
		x.status = statusClientGone
		x.abort(err)
	}
}

// finish ends the exchange, whatever has happened: a panic with a value other than
// nil becomes a 500, or the end of the connection when a part of the answer is out
// already; and one line goes to the log.
func (x *exchange) finish(failure any) {
	var stack []byte
	switch failure {
	case nil:
	case http.ErrAbortHandler:
		x.aborted = true
	default:
		x.err = fmt.Errorf("panic: %v", failure)
		stack = debug.Stack()
		if x.status == 0 {
			x.answer(CodeInternal)
		} else {
			x.aborted = true
		}
	}
	took := time.Since(x.started)
	x.h.traffic.observe(x.request.Method, x.request.Pattern, x.status, took)
	x.writeLog(took, stack)
	if x.aborted {
		panic(http.ErrAbortHandler)
	}
}

// statusClientGone stands in the log and the metrics, and only there, for an answer
// that nobody was left to take. nginx made the number up.
const statusClientGone = 499

// writeLog writes the line of the exchange.
func (x *exchange) writeLog(took time.Duration, stack []byte) {
	route := cmp.Or(x.request.Pattern, unroutedRoute) // the metrics' word for it
	level := zerolog.InfoLevel
	switch {
	case route == pathHealth || route == pathLive || route == pathMetrics && x.status == http.StatusOK:
		level = zerolog.DebugLevel
	case x.status == http.StatusInternalServerError || stack != nil:
		level = zerolog.ErrorLevel
	case x.status > http.StatusInternalServerError || x.aborted && x.status != statusClientGone:
		level = zerolog.WarnLevel
	}
	line := x.h.log.WithLevel(level)
	if line == nil {
		return // below the level of the log
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
	headerRequestID    = "X-Request-Id" // as net/http spells X-Request-ID
	maxRequestIDLength = 128
)

// requestID takes the request's X-Request-ID when there is one and it is sane,
// and makes one otherwise.
func requestID(r *http.Request) string {
	if given := r.Header[headerRequestID]; len(given) == 1 && saneRequestID(given[0]) {
		return given[0]
	}
	return rand.Text()
}

// saneRequestID allows what the usual makers of request ids use (UUIDs, ULIDs,
// base64, trace headers, addresses) and nothing that means something to JSON, to
// a terminal or to a shell.
func saneRequestID(id string) bool {
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
