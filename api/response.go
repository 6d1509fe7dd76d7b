package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"scalable-coupon-system/pgstore"
)

// Code identifies an error for programs. Every error response has one; openapi.yaml explains each.
type Code string

// The codes, by their HTTP status.
const (
	CodeInvalidRequest       Code = "INVALID_REQUEST"
	CodeOutOfStock           Code = "OUT_OF_STOCK"
	CodeNotFound             Code = "NOT_FOUND"
	CodeCouponNotFound       Code = "COUPON_NOT_FOUND"
	CodeMethodNotAllowed     Code = "METHOD_NOT_ALLOWED"
	CodeAlreadyClaimed       Code = "ALREADY_CLAIMED"
	CodeCouponExists         Code = "COUPON_EXISTS"
	CodeBodyTooLarge         Code = "BODY_TOO_LARGE"
	CodeUnsupportedMediaType Code = "UNSUPPORTED_MEDIA_TYPE"
	CodeInternal             Code = "INTERNAL"
	CodeUnavailable          Code = "UNAVAILABLE"
	CodeOverloaded           Code = "OVERLOADED"
	CodeOutcomeUnknown       Code = "OUTCOME_UNKNOWN"
)

// errorResponses maps each code to its HTTP status and its message. INVALID_REQUEST has no fixed
// message: each one names the field and what is allowed.
var errorResponses = map[Code]errorResponse{
	CodeInvalidRequest:       {http.StatusBadRequest, ""},
	CodeOutOfStock:           {http.StatusBadRequest, "this coupon is sold out"},
	CodeNotFound:             {http.StatusNotFound, "this path does not exist"},
	CodeCouponNotFound:       {http.StatusNotFound, "no coupon has this name"},
	CodeMethodNotAllowed:     {http.StatusMethodNotAllowed, "method not allowed; see the Allow header"},
	CodeAlreadyClaimed:       {http.StatusConflict, "this user has already claimed this coupon"},
	CodeCouponExists:         {http.StatusConflict, "a coupon with this name already exists"},
	CodeBodyTooLarge:         {http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d KiB (%d bytes)", maxBody>>10, maxBody)},
	CodeUnsupportedMediaType: {http.StatusUnsupportedMediaType, "the Content-Type must be application/json"},
	CodeInternal:             {http.StatusInternalServerError, "internal error; the service's log has the cause under this request id"},
	CodeUnavailable:          {http.StatusServiceUnavailable, "the database is unreachable or blocked; nothing was done, try again"},
	CodeOverloaded:           {http.StatusServiceUnavailable, "too many requests are waiting; nothing was done, try again"},
	CodeOutcomeUnknown:       {http.StatusServiceUnavailable, "it is not known whether this was done; send the same request again to find out"},
}

type errorResponse struct {
	status  int
	message string
}

// claimCodes and createCodes map the outcomes to their codes; "" is success, 201 without a body.
var (
	claimCodes = map[pgstore.ClaimStatus]Code{
		pgstore.Claimed:        "",
		pgstore.AlreadyClaimed: CodeAlreadyClaimed,
		pgstore.OutOfStock:     CodeOutOfStock,
		pgstore.CouponNotFound: CodeCouponNotFound,
	}
	createCodes = map[pgstore.CreateStatus]Code{
		pgstore.Created:      "",
		pgstore.CouponExists: CodeCouponExists,
	}
)

// rejection is the error of a request that is answered with this code and exactly this message.
type rejection struct {
	code    Code
	message string
	members string // of the response's JSON before the others; empty, or ends in a comma
}

func (r rejection) Error() string { return r.message }

// reject returns the rejection with a code's fixed message.
func reject(code Code) rejection { return rejection{code: code, message: errorResponses[code].message} }

// invalidf returns an INVALID_REQUEST. Its message says what is wrong, and what is allowed.
func invalidf(format string, args ...any) error {
	return rejection{code: CodeInvalidRequest, message: fmt.Sprintf(format, args...)}
}

// codeOf returns the code of an error that is not a rejection.
func codeOf(err error) Code {
	switch {
	case errors.Is(err, pgstore.ErrOutcomeUnknown):
		// Before the other two: if an error wraps several, the least certain one decides.
		return CodeOutcomeUnknown
	case errors.Is(err, pgstore.ErrOverloaded), errors.Is(err, errOverBudget):
		return CodeOverloaded
	case errors.Is(err, pgstore.ErrUnavailable):
		return CodeUnavailable
	default:
		return CodeInternal
	}
}

// Constant header values, shared by all responses: net/http only reads them.
var (
	valueJSON    = []string{"application/json"}
	valueZero    = []string{"0"}
	valueClose   = []string{"close"}
	valueNoStore = []string{"no-store"}
	valueRetry   = []string{"1"} // seconds; with 503
)

// fail sends the error response for err. The text of err is sent only if it is a rejection; it is
// logged otherwise. A response that was started already can only be aborted.
func (x *exchange) fail(err error) {
	if x.status == 0 {
		x.abortIfClientClosed(err)
		r, ok := errors.AsType[rejection](err)
		if !ok {
			x.err = err
			r = reject(codeOf(err))
		}
		if err = x.sendError(r); err == nil {
			err = x.complete()
		}
	}
	if err != nil {
		x.abort(err)
	}
}

// sendOutcome sends the response to an outcome of the Store.
func sendOutcome[S ~string](x *exchange, codes map[S]Code, status S) error {
	code, known := codes[status]
	switch {
	case !known:
		return fmt.Errorf("unknown outcome %q: the database is newer than this service", status)
	case code == "":
		return x.send(http.StatusCreated, nil)
	default:
		return x.sendError(reject(code))
	}
}

// sendError sends an error response.
func (x *exchange) sendError(r rejection) error {
	body := append(make([]byte, 0, 192), '{')
	body = append(body, r.members...)
	body = append(body, `"error":`...)
	body = appendString(body, r.message)
	body = append(body, `,"code":"`...)
	body = append(body, r.code...)
	body = append(body, `","request_id":"`...)
	body = append(body, x.id[0]...) // needs no escaping, see validRequestID
	body = append(body, "\"}\n"...)
	return x.send(errorResponses[r.code].status, body)
}

// appendString appends s as a JSON string. Invalid UTF-8, which no name contains, becomes U+FFFD.
func appendString(body []byte, s string) []byte {
	body, _ = jsontext.AppendQuote(body, s)
	return body
}

// send sends a complete response. All but large coupons go through it. For HEAD it sends only the
// header, with the Content-Length of the body.
func (x *exchange) send(status int, body []byte) error {
	length := valueZero
	if len(body) > 0 {
		length = []string{strconv.Itoa(len(body))}
	}
	x.Header()["Content-Length"] = length
	if x.request.Method == http.MethodHead {
		body = nil
	}
	x.sendHeader(status)
	for part := range slices.Chunk(body, chunkSize) {
		if err := x.sendPart(part); err != nil {
			return err
		}
	}
	return nil
}

// netHTTPBuffer is how many bytes net/http buffers before it writes to the connection.
const netHTTPBuffer = 2 << 10

// sendPart sends a part of the body, after the header of a 200 if none was sent yet.
//
// From the first part that net/http does not buffer until complete, closing the connection resets
// it, whatever closes it: abort, net/http after an error, a shutdown that takes too long, or the
// kernel when the process is killed. Otherwise a client of HTTP/1.0, such as nginx by default,
// takes a part of a coupon for all of it: without a Content-Length the end of the connection is the
// end of the response.
func (x *exchange) sendPart(part []byte) error {
	if x.status == 0 {
		x.sendHeader(http.StatusOK)
	}
	if len(part) > netHTTPBuffer {
		x.setLinger(0)
		x.renewWriteDeadline()
	}
	n, err := x.Write(part)
	x.bytes += int64(n)
	if err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	return nil
}

// complete ends a response that was sent completely.
func (x *exchange) complete() error {
	if x.bytes <= netHTTPBuffer {
		return nil
	}
	err := http.NewResponseController(x.ResponseWriter).Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) { // not supported: a test without a connection
		return fmt.Errorf("write the response: %w", err)
	}
	x.setLinger(-1) // the default: close in the background
	return nil
}

// sendHeader sends the header, with the fields that all responses share.
func (x *exchange) sendHeader(status int) {
	header := x.Header()
	if header["Content-Type"] == nil {
		header["Content-Type"] = valueJSON
	}
	if status == http.StatusServiceUnavailable {
		header["Retry-After"] = valueRetry
	}
	if x.request.Method != http.MethodPost {
		header["Cache-Control"] = valueNoStore // the remaining amount changes at any moment
	}
	if x.unread {
		// net/http reads the rest of the body before it sends the response, without a time-out. So close
		// the connection afterwards, and give the rest of the body the usual deadline.
		header["Connection"] = valueClose
		x.setReadDeadline()
	}
	if x.h.draining.Load() {
		header["Connection"] = valueClose
	}
	if time.Since(x.started) > time.Second {
		x.renewWriteDeadline()
	}
	x.status = status
	x.WriteHeader(status)
}

// renewWriteDeadline gives the client stallTimeout from now to read what is written next.
func (x *exchange) renewWriteDeadline() {
	// This fails only without a connection, in a test.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Now().Add(x.h.stallTimeout))
}
