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

// Response is what a service answered to one request.
type Response struct {
	// Status is the HTTP status, 200 to 599.
	Status int
	// Body is the beginning of the body, at most [KeptBody] bytes. It belongs to the Conn and is overwritten by its next
	// request.
	Body []byte
	// Length is how long the whole body was, in bytes.
	Length int64
	// RetryAfter is the header of that name when it counts seconds, else 0.
	RetryAfter time.Duration
	// Sent and Answered are when the request was handed to the kernel and when the last byte of the answer had been read.
	Sent, Answered time.Time

	close bool // the service closes the connection after this answer
}

const (
	// KeptBody is how many bytes of a body are kept. Every error body of the contract fits; of a coupon read under load
	// only the length matters.
	KeptBody = 1024

	// A line of a header must fit into the connection's buffer. 4 KiB times 2,000 connections is still only 8 MB.
	bufferSize = 4096
	maxHeaders = 100
)

// ErrMalformed says that what came back is no answer that HTTP/1.1 (RFC 9112) allows to a request of ours. A sale has
// to fail loudly then: whatever is counted after it would be a guess.
var ErrMalformed = errors.New("malformed answer")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// readResponse reads exactly one answer from in; kept is where the beginning of the body goes (its capacity bounds it).
// It is stricter than net/http: bare line feeds, folded headers, interim answers (nobody asked for one), a length that
// is missing or said twice, and any transfer coding but chunked are all malformed. Any other error is in's own.
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
				return r, malformed("Content-Length said twice")
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
			// The other form of this header, a date, is no use to a closed loop: back-off then is the caller's own.
			if s, err := parseNumber(value); err == nil && s <= 1<<20 {
				r.RetryAfter = time.Duration(s) * time.Second
			}
		}
	}

	switch {
	case r.Status == 204 || r.Status == 304:
		if chunked || length > 0 && r.Status == 204 {
			return r, malformed("a body announced with status %d", r.Status)
		}
	case chunked && length >= 0:
		return r, malformed("both Content-Length and Transfer-Encoding")
	case chunked:
		return r, unfinished(readChunks(in, &r))
	case length < 0:
		// Allowed by the RFC: the body then ends with the connection. But nobody could tell it from one that was cut.
		return r, malformed("neither Content-Length nor Transfer-Encoding")
	default:
		return r, unfinished(readBody(in, &r, length))
	}
	return r, nil
}

// parseStatus reads a line like "HTTP/1.1 201 Created".
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
		return 0, malformed("interim answer %d, which no request asked for", status)
	}
	for _, c := range line[len(version)+4:] {
		if controls[c] {
			return 0, malformed("status line %q", line)
		}
	}
	return int(status), nil
}

// parseHeader splits "Name: value", the value without the white space around it.
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

// readLine returns the next line without its CRLF; it is good until the next read from in.
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

// unfinished turns the end of the stream inside an answer into io.ErrUnexpectedEOF.
func unfinished(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readBody reads n bytes of body and keeps what there is room for.
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

// Reads as long as this one go past the connection's own small buffer: a coupon with 1,000,000 claims takes 64 KiB at a
// time instead of 4.
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

// readChunks reads a body in chunks with its trailer.
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
			return malformed("%q where a chunk should end", line)
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

// parseChunkSize reads hexadecimal digits. Chunk extensions are refused: no service this tool is for sends them, and
// their misuse is how answers get smuggled.
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

// parseNumber reads 1 to 15 decimal digits and nothing else.
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

// equalFold says whether s is lower, a word in lower-case ASCII, in any case.
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

// controls are the characters that no header or status line may have.
var controls = func() (t [256]bool) {
	for c := range byte(' ') {
		t[c] = c != '\t'
	}
	t[0x7f] = true
	return t
}()

// tokenChars are the characters of a header's name (RFC 9110, 5.6.2).
var tokenChars = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()
