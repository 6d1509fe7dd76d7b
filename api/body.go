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
	maxBody     = 64 << 10         // bytes; a body of exactly this size is accepted
	bodyTimeout = 10 * time.Second // from the end of the header to the end of the body

	// maxPooledBuffer is the largest buffer, in bytes, that returns to the pool. A claim has some 60
	// bytes, and at most 6 KiB if every character is a \u escape.
	maxPooledBuffer = 8 << 10
)

// bodyReader reads and decodes a body. Its buffers are reused, see bodyReaders.
type bodyReader struct {
	body  bytes.Buffer
	limit io.LimitedReader
	json  jsontext.Decoder
}

var bodyReaders = sync.Pool{New: func() any { return new(bodyReader) }}

// readObject reads the body of the request, which must be a JSON object that matches schema.
func (x *exchange) readObject(schema *objectSchema) (values, error) {
	if !isJSON(x.request.Header["Content-Type"]) {
		return values{}, errUnsupportedMediaType
	}
	if x.request.ContentLength > maxBody {
		return values{}, errBodyTooLarge
	}
	r := bodyReaders.Get().(*bodyReader)
	defer r.release()
	if err := r.read(x); err != nil {
		return values{}, err
	}
	return r.decode(schema)
}

func (r *bodyReader) release() {
	if r.body.Cap() > maxPooledBuffer {
		return
	}
	r.body.Reset()
	r.limit.R = nil
	bodyReaders.Put(r)
}

// read reads the whole body. The size limit holds for chunked bodies, too, which have no
// Content-Length.
func (r *bodyReader) read(x *exchange) error {
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
		return invalidf("the body must be as long as its Content-Length, or correctly chunked")
	}
	x.unread = false
	return nil
}

// setReadDeadline sets the deadline for the arrival of the whole body. net/http clears it at the
// end of the body, before it starts to watch whether the client disconnects.
func (x *exchange) setReadDeadline() {
	// This fails only without a connection, in a test.
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(x.started.Add(x.h.bodyTimeout))
}

// isJSON reports whether the values of a Content-Type header allow JSON: there is none, or it is
// application/json. Parameters are ignored: RFC 8259 defines none, not even charset.
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
	default: // ambiguous
		return false
	}
}
