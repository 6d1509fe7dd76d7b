package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxBody     = 64 << 10         // bytes; a body of exactly so many passes
	bodyTimeout = 10 * time.Second // from the end of the header to the end of the body

	// keptBuffer is the largest buffer that goes back to the pool. A claim takes
	// some 60 bytes, and at most 6 KiB when all of it is written in \u escapes.
	keptBuffer = 8 << 10
)

// reader holds what reading and decoding a body needs, to be used again.
type reader struct {
	body  bytes.Buffer
	limit io.LimitedReader
	json  jsontext.Decoder
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// readObject reads the body of a request, which must be the wanted object.
func (x *exchange) readObject(want *object) (values, error) {
	if !isJSON(x.request.Header["Content-Type"]) {
		return values{}, errUnsupportedMediaType
	}
	if x.request.ContentLength > maxBody {
		return values{}, errBodyTooLarge
	}
	r := readers.Get().(*reader)
	defer r.release()
	if err := r.read(x); err != nil {
		return values{}, err
	}
	return r.decode(want)
}

func (r *reader) release() {
	if r.body.Cap() > keptBuffer {
		return
	}
	r.body.Reset()
	r.limit.R = nil
	readers.Put(r)
}

// read reads the whole body, whatever its Content-Length says.
func (r *reader) read(x *exchange) error {
	if !x.unread {
		return nil
	}
	x.setReadDeadline()
	r.limit = io.LimitedReader{R: x.request.Body, N: maxBody + 1}
	n, err := r.body.ReadFrom(&r.limit)
	switch {
	case n > maxBody:
		return errBodyTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return invalidf("the body must arrive within %v", x.h.bodyTimeout)
	case err != nil:
		return invalidf("the body must be as long as its Content-Length or its chunks say")
	}
	x.unread = false
	return nil
}

// setReadDeadline bounds the time in which the body of the request must arrive.
// net/http lifts the deadline when the body has ended, before it begins to watch
// whether the client goes away.
func (x *exchange) setReadDeadline() {
	// Only a ResponseWriter without a connection, in a test, has no deadline.
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(x.started.Add(x.h.bodyTimeout))
}

// isJSON judges a request's Content-Type header: application/json, with whatever
// parameters (RFC 8259 knows none, charset neither: JSON is UTF-8), or no type.
func isJSON(contentType []string) bool {
	switch len(contentType) {
	case 0:
		return true
	case 1:
		if contentType[0] == valueJSON[0] || contentType[0] == "" {
			return true
		}
		mediaType, _, err := mime.ParseMediaType(contentType[0])
		return mediaType == valueJSON[0] && (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter))
	default: // which of them?
		return false
	}
}
