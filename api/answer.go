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

// Code says in one word what went wrong. It stands in the body of every answer
// that is no success; openapi.yaml explains each.
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

// answers is the table from code to HTTP: the status, and the sentence people
// read. INVALID_REQUEST has no sentence here: each names the field and what is
// allowed.
var answers = map[Code]answer{
	CodeInvalidRequest:       {http.StatusBadRequest, ""},
	CodeOutOfStock:           {http.StatusBadRequest, "nothing is left of this coupon"},
	CodeNotFound:             {http.StatusNotFound, "there is nothing at this path"},
	CodeCouponNotFound:       {http.StatusNotFound, "there is no coupon of this name"},
	CodeMethodNotAllowed:     {http.StatusMethodNotAllowed, "this path does not answer this method; the header Allow names those it does"},
	CodeAlreadyClaimed:       {http.StatusConflict, "this user has already claimed this coupon"},
	CodeCouponExists:         {http.StatusConflict, "there is already a coupon of this name"},
	CodeBodyTooLarge:         {http.StatusRequestEntityTooLarge, "the body is larger than 64 KiB (65536 bytes)"},
	CodeUnsupportedMediaType: {http.StatusUnsupportedMediaType, "the body must have the Content-Type application/json"},
	CodeInternal:             {http.StatusInternalServerError, "the service failed; its log tells why under this request id"},
	CodeUnavailable:          {http.StatusServiceUnavailable, "the database is away or blocked; nothing was done, try again"},
	CodeOverloaded:           {http.StatusServiceUnavailable, "too many requests are waiting; nothing was done, try again"},
	CodeOutcomeUnknown:       {http.StatusServiceUnavailable, "it is not known whether this was done; send the same request again to find out"},
}

type answer struct {
	status   int
	sentence string
}

// Codes lists every Code, in no order, so that tests can prove the list equal to
// openapi.yaml's.
func Codes() []Code { return slices.Collect(maps.Keys(answers)) }

// claimCodes and createCodes say which code each outcome is told by. The two
// outcomes that are missing are the successes: 201 and no body.
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

// What the service itself refuses, before the Store is asked.
var (
	errBodyTooLarge         = errors.New("body too large")
	errUnsupportedMediaType = errors.New("unsupported media type")
)

// invalidError is why a request is malformed or invalid: one sentence that names
// the field and what is allowed, for the client to read.
type invalidError string

func (e invalidError) Error() string { return string(e) }

func invalidf(format string, args ...any) error {
	return invalidError(fmt.Sprintf(format, args...))
}

// codeOf says which code an error is told by.
func codeOf(err error) Code {
	var invalid invalidError
	switch {
	case errors.As(err, &invalid):
		return CodeInvalidRequest
	case errors.Is(err, errBodyTooLarge):
		return CodeBodyTooLarge
	case errors.Is(err, errUnsupportedMediaType):
		return CodeUnsupportedMediaType
	case errors.Is(err, pgstore.ErrOutcomeUnknown):
		// Before the other two: an error that wraps several is as uncertain as the
		// least certain of them.
		return CodeOutcomeUnknown
	case errors.Is(err, pgstore.ErrOverloaded):
		return CodeOverloaded
	case errors.Is(err, pgstore.ErrUnavailable):
		return CodeUnavailable
	default:
		return CodeInternal
	}
}

// Header values that never change. net/http only reads them.
var (
	valueJSON    = []string{"application/json"}
	valueZero    = []string{"0"}
	valueClose   = []string{"close"}
	valueNoStore = []string{"no-store"}
	valueRetry   = []string{"1"} // seconds; with 503
)

// created sends the one success without a body.
func (x *exchange) created() { x.send(http.StatusCreated, nil) }

// fail answers with what err is told by.
func (x *exchange) fail(err error) {
	x.abortIfGone(err)
	code := codeOf(err)
	if code == CodeInvalidRequest {
		x.sendError(code, err.Error())
		return
	}
	if answers[code].status >= http.StatusInternalServerError {
		x.err = err
	}
	x.answer(code)
}

// answer sends the fixed answer of a code.
func (x *exchange) answer(code Code) { x.sendError(code, answers[code].sentence) }

func (x *exchange) sendError(code Code, sentence string) {
	x.send(answers[code].status, appendError(make([]byte, 0, 192), "", code, sentence, x.id[0]))
}

// appendError appends the body of an answer that is no success; lead is what
// stands before its first member.
func appendError(body []byte, lead string, code Code, sentence, requestID string) []byte {
	body = append(body, '{')
	body = append(body, lead...)
	body = append(body, `"error":`...)
	body = appendString(body, sentence)
	body = append(body, `,"code":"`...)
	body = append(body, code...)
	body = append(body, `","request_id":"`...)
	body = append(body, requestID...) // needs no quoting: see saneRequestID
	return append(body, "\"}\n"...)
}

// appendString appends s as a JSON string. Bytes that are no UTF-8 become U+FFFD;
// no name has any.
func appendString(body []byte, s string) []byte {
	body, _ = jsontext.AppendQuote(body, s)
	return body
}

// send is the one writer of whole answers. To HEAD it sends the header alone, with
// the length that the body has.
func (x *exchange) send(status int, body []byte) {
	length := valueZero
	if len(body) > 0 {
		length = []string{strconv.Itoa(len(body))}
	}
	x.Header()["Content-Length"] = length
	x.sendHeader(status)
	for part := range slices.Chunk(body, chunkSize) {
		x.sendPart(part)
	}
}

// sendPart sends a part of the body. When the client takes no more of it, the
// exchange ends here.
func (x *exchange) sendPart(part []byte) {
	if len(part) > netHTTPBuffer {
		x.renewWriteDeadline() // net/http will not keep it for later
	}
	if _, err := x.Write(part); err != nil {
		x.abort(fmt.Errorf("the client took no more: %w", err))
	}
}

// netHTTPBuffer is how much net/http gathers before it sends, in bytes.
const netHTTPBuffer = 2 << 10

// sendHeader sends what all answers have in common.
func (x *exchange) sendHeader(status int) {
	header := x.Header()
	if header["Content-Type"] == nil {
		header["Content-Type"] = valueJSON
	}
	if status == http.StatusServiceUnavailable {
		header["Retry-After"] = valueRetry
	}
	if x.request.Method != http.MethodPost {
		header["Cache-Control"] = valueNoStore // what remains of a coupon is true for an instant
	}
	if x.unread {
		// net/http would read the rest of the body before it answers, and wait for
		// it without a bound. So this is the connection's last answer, and the rest
		// of the body has as long as any.
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

// renewWriteDeadline gives the client stallTimeout from now to take what is
// written next.
func (x *exchange) renewWriteDeadline() {
	// Only a ResponseWriter without a connection, in a test, has no deadline.
	_ = http.NewResponseController(x.ResponseWriter).SetWriteDeadline(time.Now().Add(x.h.stallTimeout))
}
