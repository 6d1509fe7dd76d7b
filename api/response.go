package api

import (
	"errors"
	"fmt"
	"maps"
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

// Codes returns every Code, in no particular order. Tests compare the list with openapi.yaml.
func Codes() []Code { return slices.Collect(maps.Keys(errorResponses)) }

// claimCodes and createCodes map the outcomes that are errors to their codes. The successful
// outcomes, pgstore.Claimed and pgstore.Created, are not in them: their response is 201 without a
// body.
var (
	claimCodes = map[pgstore.ClaimStatus]Code{
		pgstore.AlreadyClaimed: CodeAlreadyClaimed,
		pgstore.OutOfStock:     CodeOutOfStock,
		pgstore.CouponNotFound: CodeCouponNotFound,
	}
	createCodes = map[pgstore.CreateStatus]Code{
		pgstore.CouponExists: CodeCouponExists,
	}
)

// Requests that are rejected before the Store is called.
var (
	errBodyTooLarge         = errors.New("body too large")
	errUnsupportedMediaType = errors.New("unsupported media type")
)

// invalidError is the message of an INVALID_REQUEST response: what is wrong, and what is allowed.
type invalidError string

func (e invalidError) Error() string { return string(e) }

func invalidf(format string, args ...any) error {
	return invalidError(fmt.Sprintf(format, args...))
}

// codeOf returns the code of an error.
func codeOf(err error) Code {
	if _, ok := errors.AsType[invalidError](err); ok {
		return CodeInvalidRequest
	}
	switch {
	case errors.Is(err, errBodyTooLarge):
		return CodeBodyTooLarge
	case errors.Is(err, errUnsupportedMediaType):
		return CodeUnsupportedMediaType
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

// sendCreated sends 201 without a body.
func (x *exchange) sendCreated() { x.send(http.StatusCreated, nil) }

// fail sends the error response for err. The text of err is sent only if it is an invalidError; a
// 5xx logs it instead.
func (x *exchange) fail(err error) {
	x.abortIfClientClosed(err)
	code := codeOf(err)
	if code == CodeInvalidRequest {
		x.sendError(code, err.Error())
		return
	}
	if errorResponses[code].status >= http.StatusInternalServerError {
		x.err = err
	}
	x.sendCode(code)
}

// sendCode sends the error response of a code, with its fixed message.
func (x *exchange) sendCode(code Code) { x.sendError(code, errorResponses[code].message) }

func (x *exchange) sendError(code Code, message string) {
	x.send(errorResponses[code].status, appendError(make([]byte, 0, 192), "", code, message, x.id[0]))
}

// appendError appends the body of an error response. firstMembers is empty, or JSON members that
// end in a comma.
func appendError(body []byte, firstMembers string, code Code, message, requestID string) []byte {
	body = append(body, '{')
	body = append(body, firstMembers...)
	body = append(body, `"error":`...)
	body = appendString(body, message)
	body = append(body, `,"code":"`...)
	body = append(body, code...)
	body = append(body, `","request_id":"`...)
	body = append(body, requestID...) // needs no escaping, see validRequestID
	return append(body, "\"}\n"...)
}

// appendString appends s as a JSON string. Invalid UTF-8, which no name contains, becomes U+FFFD.
func appendString(body []byte, s string) []byte {
	body, _ = jsontext.AppendQuote(body, s)
	return body
}

// quotedSize returns the size of what appendString appends for a name, or slightly more.
func quotedSize(s string) int {
	size := len(s) + len(`""`)
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ':
			size += len(`\u0001`) - 1
		case c == '"' || c == '\\':
			size += len(`\"`) - 1
		}
	}
	return size
}

// send sends a complete response. All but large coupons go through it. For HEAD it sends only the
// header, with the Content-Length of the body.
func (x *exchange) send(status int, body []byte) {
	length := valueZero
	if len(body) > 0 {
		length = []string{strconv.Itoa(len(body))}
	}
	x.Header()["Content-Length"] = length
	large := len(body) > netHTTPBuffer
	if large {
		x.beginLarge()
	}
	x.sendHeader(status)
	for part := range slices.Chunk(body, chunkSize) {
		x.sendPart(part)
	}
	if large {
		x.endLarge()
	}
}

// beginLarge prepares for a response that net/http cannot buffer. Until endLarge, closing its
// connection resets it, whatever closes it: abort, net/http after an error, a shutdown that takes
// too long, or the kernel when the process is killed.
//
// Otherwise a client of HTTP/1.0, such as nginx by default, takes a part of a coupon for all of it:
// without a Content-Length the end of the connection is the end of the response.
func (x *exchange) beginLarge() { x.setLinger(0) }

// endLarge ends a response that was sent completely.
func (x *exchange) endLarge() {
	err := http.NewResponseController(x.ResponseWriter).Flush()
	if err != nil && !errors.Is(err, http.ErrNotSupported) { // not supported: a test without a connection
		x.abort(fmt.Errorf("write the response: %w", err))
	}
	x.setLinger(-1) // the default: close in the background
}

// sendPart sends a part of the body. If that fails, it aborts the exchange.
func (x *exchange) sendPart(part []byte) {
	if len(part) > netHTTPBuffer {
		x.renewWriteDeadline() // net/http writes it through to the connection
	}
	if _, err := x.Write(part); err != nil {
		x.abort(fmt.Errorf("write the response: %w", err))
	}
}

// netHTTPBuffer is how many bytes net/http buffers before it writes to the connection.
const netHTTPBuffer = 2 << 10

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
	x.WriteHeader(status)
}

// renewWriteDeadline gives the client stallTimeout from now to read what is written next.
func (x *exchange) renewWriteDeadline() {
	// This fails only without a connection, in a test.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Now().Add(x.h.stallTimeout))
}
