package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Response is the HTTP response to one request.
type Response struct {
	// Status is the HTTP status, 200 to 599.
	Status int
	// Body is the beginning of the body, at most [KeptBody] bytes. It is valid until the Conn's
	// next request.
	Body []byte
	// Length is the length of the whole body in bytes.
	Length int64
	// RetryAfter is the header of that name if it is a number of seconds, else 0.
	RetryAfter time.Duration
	// Sent is when the request was given to the kernel, Answered when the last byte of the answer
	// was read.
	Sent, Answered time.Time
	// Attempt is how often the request has been sent, this time included. Only [Plan].Answered and
	// [UntilDefinite] set it.
	Attempt int

	close bool // the service closes the connection after this response
}

const (
	// KeptBody is how many bytes of a body are kept. Every error body of the contract fits. Of a
	// coupon that is read under load only the length is needed.
	KeptBody = 1024

	// bufferSize is that of a connection's reader. It bounds a header line.
	bufferSize = 4096
	maxHeaders = 100
)

// ErrMalformed means that the answer is not a valid HTTP/1.1 response (RFC 9112) to the request.
var ErrMalformed = errors.New("malformed answer")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// readResponse reads exactly one response from in. The beginning of its body goes into kept, up to
// its capacity. It is stricter than net/http: bare line feeds, folded headers, interim responses
// (no request expects one), a missing or repeated length, and any transfer coding but chunked are
// malformed. Any other error is that of in.
func readResponse(in *bufio.Reader, kept []byte) (Response, error) {
	r := Response{Body: kept[:0]}
	line, err := readLine(in)
	if err != nil {
		return r, err
	}
	if r.Status, err = parseStatus(line); err != nil {
		return r, err
	}

	length, chunked := int64(-1), false
	for headers := 0; ; headers++ {
		line, err = readLine(in)
		if err != nil {
			return r, unfinished(err)
		}
		if len(line) == 0 {
			break
		}
		if headers == maxHeaders {
			return r, malformed("more than %d headers", maxHeaders)
		}
		name, value, err := parseHeader(line)
		if err != nil {
			return r, err
		}
		switch {
		case equalFold(name, "content-length"):
			if length >= 0 {
				return r, malformed("Content-Length twice")
			}
			if length, err = parseNumber(value); err != nil {
				return r, malformed("Content-Length %q", value)
			}
		case equalFold(name, "transfer-encoding"):
			if chunked || !equalFold(value, "chunked") {
				return r, malformed("Transfer-Encoding %q", value)
			}
			chunked = true
		case equalFold(name, "connection"):
			for option := range bytes.SplitSeq(value, []byte{','}) {
				r.close = r.close || equalFold(bytes.Trim(option, " \t"), "close")
			}
		case equalFold(name, "retry-after"):
			// The other form, a date, is ignored: the caller then has only its own back-off.
			if s, err := parseNumber(value); err == nil && s <= 1<<20 {
				r.RetryAfter = time.Duration(s) * time.Second
			}
		}
	}

	switch {
	case r.Status == 204 || r.Status == 304:
		if chunked || length > 0 && r.Status == 204 {
			return r, malformed("status %d with a body", r.Status)
		}
	case chunked && length >= 0:
		return r, malformed("both Content-Length and Transfer-Encoding")
	case chunked:
		return r, unfinished(readChunks(in, &r))
	case length < 0:
		// The RFC allows it: the body ends with the connection. But a cut one would look the same.
		return r, malformed("neither Content-Length nor Transfer-Encoding")
	default:
		return r, unfinished(readBody(in, &r, length))
	}
	return r, nil
}

// parseStatus returns the status of a line like "HTTP/1.1 201 Created".
func parseStatus(line []byte) (int, error) {
	const version = "HTTP/1.1 "
	if len(line) < len(version)+4 || string(line[:len(version)]) != version || line[len(version)+3] != ' ' {
		return 0, malformed("status line %q", line)
	}
	status, err := parseNumber(line[len(version) : len(version)+3])
	if err != nil || status < 100 || status > 599 {
		return 0, malformed("status line %q", line)
	}
	if status < 200 {
		return 0, malformed("interim response %d, which no request expects", status)
	}
	for _, c := range line[len(version)+4:] {
		if controls[c] {
			return 0, malformed("status line %q", line)
		}
	}
	return int(status), nil
}

// parseHeader splits "Name: value" and trims white space around the value.
func parseHeader(line []byte) (name, value []byte, err error) {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return nil, nil, malformed("header %q", line)
	}
	name, value = line[:colon], bytes.Trim(line[colon+1:], " \t")
	for _, c := range name {
		if !tokenChars[c] {
			return nil, nil, malformed("header name %q", name)
		}
	}
	for _, c := range value {
		if controls[c] {
			return nil, nil, malformed("header %q", line)
		}
	}
	return name, value, nil
}

// readLine returns the next line without its CRLF. It is valid until the next read from in.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, malformed("a line of more than %d bytes", bufferSize)
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case len(line) < 2 || line[len(line)-2] != '\r':
		return nil, malformed("a line that does not end in CR LF: %q", line)
	}
	return line[:len(line)-2], nil
}

// unfinished turns io.EOF inside a response into io.ErrUnexpectedEOF.
func unfinished(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readBody reads n bytes of the body and keeps as many as fit into r.Body.
func readBody(in *bufio.Reader, r *Response, n int64) error {
	r.Length += n
	if room := int64(cap(r.Body) - len(r.Body)); room > 0 && n > 0 {
		keep := min(n, room)
		at := len(r.Body)
		r.Body = r.Body[:at+int(keep)]
		if _, err := io.ReadFull(in, r.Body[at:]); err != nil {
			return err
		}
		n -= keep
	}
	if n <= int64(in.Buffered()) {
		_, err := in.Discard(int(n))
		return err
	}
	return discard(in, n)
}

// discardBuffers are larger than a connection's own buffer, so that reading a coupon with 1,000,000
// claims takes fewer system calls.
var discardBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

func discard(in *bufio.Reader, n int64) error {
	buffer := discardBuffers.Get().(*[64 << 10]byte)
	defer discardBuffers.Put(buffer)
	for n > 0 {
		read, err := in.Read(buffer[:min(n, int64(len(buffer)))])
		if n -= int64(read); err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// readChunks reads a chunked body and its trailer.
func readChunks(in *bufio.Reader, r *Response) error {
	for {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		size, err := parseChunkSize(line)
		if err != nil {
			return err
		}
		if size == 0 {
			break
		}
		if err := readBody(in, r, size); err != nil {
			return err
		}
		if line, err = readLine(in); err != nil {
			return err
		}
		if len(line) != 0 {
			return malformed("%q, want the end of a chunk", line)
		}
	}
	for headers := 0; ; headers++ {
		line, err := readLine(in)
		if err != nil || len(line) == 0 {
			return err
		}
		if headers == maxHeaders {
			return malformed("more than %d trailers", maxHeaders)
		}
		if _, _, err := parseHeader(line); err != nil {
			return err
		}
	}
}

// parseChunkSize parses a hexadecimal number. Chunk extensions are malformed: the services measured
// here do not send them, and they are a means of response smuggling.
func parseChunkSize(line []byte) (int64, error) {
	if len(line) == 0 || len(line) > 8 {
		return 0, malformed("chunk size %q", line)
	}
	var size int64
	for _, c := range line {
		switch {
		case '0' <= c && c <= '9':
			size = size<<4 | int64(c-'0')
		case 'a' <= c && c <= 'f':
			size = size<<4 | int64(c-'a'+10)
		case 'A' <= c && c <= 'F':
			size = size<<4 | int64(c-'A'+10)
		default:
			return 0, malformed("chunk size %q", line)
		}
	}
	return size, nil
}

var errNumber = errors.New("not a number")

// parseNumber parses 1 to 15 decimal digits.
func parseNumber(s []byte) (int64, error) {
	if len(s) == 0 || len(s) > 15 {
		return 0, errNumber
	}
	var n int64
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, errNumber
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// equalFold reports whether s equals lower, which is in lower-case ASCII, ignoring the case of s.
func equalFold(s []byte, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i, c := range s {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// controls are the characters that a header or status line must not contain.
var controls = func() (t [256]bool) {
	for c := range byte(' ') {
		t[c] = c != '\t'
	}
	t[0x7f] = true
	return t
}()

// tokenChars are the characters of a header name (RFC 9110, 5.6.2).
var tokenChars = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()
