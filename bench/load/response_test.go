package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestReadResponse(t *testing.T) {
	long := strings.Repeat("x", 3*bufferSize)
	tests := map[string]struct {
		in     string
		status int
		body   string // the part that is kept
		length int
		retry  time.Duration
		close  bool
	}{
		"empty body": {
			in: "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", status: 201,
		},
		"body": {
			in: "HTTP/1.1 409 Conflict\r\ncontent-LENGTH:  5 \r\n\r\nhello", status: 409, body: "hello", length: 5,
		},
		"no reason phrase": {
			in: "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", status: 200,
		},
		"retry after seconds": {
			in: "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n", status: 503, retry: 2 * time.Second,
		},
		"retry after a date is ignored": {
			in: "HTTP/1.1 503 X\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n", status: 503,
		},
		"connection close among others": {
			in: "HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 0\r\n\r\n", status: 200, close: true,
		},
		"no content": {
			in: "HTTP/1.1 204 No Content\r\n\r\n", status: 204,
		},
		"chunks and a trailer": {
			in:     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n, reader!!\r\n0\r\nX-Sum: 1\r\n\r\n",
			status: 200, body: "hello, reader!!", length: 15,
		},
		"a body longer than what is kept": {
			in:     "HTTP/1.1 200 OK\r\nContent-Length: " + fmt.Sprint(len(long)) + "\r\n\r\n" + long,
			status: 200, body: long[:KeptBody], length: len(long),
		},
		"chunks longer than what is kept": {
			in:     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(long), long),
			status: 200, body: "abc" + long[:KeptBody-3], length: 3 + len(long),
		},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			// Bytes of the next response must not be read.
			const next = "HTTP/1.1 200 OK\r\n"
			for pace, source := range map[string]io.Reader{
				"at once":      strings.NewReader(want.in + next),
				"byte by byte": iotest.OneByteReader(strings.NewReader(want.in + next)),
			} {
				in := bufio.NewReaderSize(source, bufferSize)
				r, err := readResponse(in, make([]byte, 0, KeptBody))
				if err != nil {
					t.Fatalf("%s: %v", pace, err)
				}
				if r.Status != want.status || string(r.Body) != want.body || r.Length != int64(want.length) ||
					r.RetryAfter != want.retry || r.close != want.close {
					t.Errorf("%s: got %+v", pace, r)
				}
				if rest, _ := io.ReadAll(in); string(rest) != next {
					t.Errorf("%s: %q is left, want %q", pace, rest, next)
				}
			}
		})
	}
}

func TestReadResponse_malformed(t *testing.T) {
	tests := map[string]string{
		"another protocol":             "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"an older version":             "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"no space after the status":    "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
		"a status of letters":          "HTTP/1.1 2oo OK\r\nContent-Length: 0\r\n\r\n",
		"a status out of range":        "HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
		"an interim response":          "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"a control character":          "HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
		"bare line feeds":              "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"a header without a colon":     "HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
		"a header without a name":      "HTTP/1.1 200 OK\r\n: 0\r\n\r\n",
		"a space before the colon":     "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
		"a folded header":              "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"a control character in value": "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
		"no length":                    "HTTP/1.1 200 OK\r\n\r\nhello",
		"a negative length":            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"a length with a sign":         "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
		"a length too large":           "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"two lengths":                  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
		"a length and chunks":          "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another transfer coding":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunked twice":                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a body with 204":              "HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\nx",
		"no chunk size":                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
		"a chunk size of letters":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
		"a chunk size too large":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n123456789\r\n",
		"a chunk extension":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
		"a chunk longer than its size": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
		"a broken trailer":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nfoo\r\n\r\n",
		"a line that is too long":      "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", bufferSize) + "\r\n\r\n",
		"too many headers":             "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: a\r\n", maxHeaders+1) + "\r\n",
		"too many trailers":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: a\r\n", maxHeaders+1) + "\r\n",
	}
	for name, in := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := readResponse(bufio.NewReaderSize(strings.NewReader(in), bufferSize), make([]byte, 0, KeptBody))
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, want ErrMalformed", err)
			}
		})
	}
}

// A response that is cut at any byte is reported as cut, not as complete or malformed.
func TestReadResponse_cut(t *testing.T) {
	for _, whole := range []string{
		"HTTP/1.1 409 Conflict\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
	} {
		for n := range len(whole) {
			_, err := readResponse(bufio.NewReaderSize(strings.NewReader(whole[:n]), bufferSize), make([]byte, 0, KeptBody))
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if !errors.Is(err, want) {
				t.Errorf("cut after %q: got %v, want %v", whole[:n], err, want)
			}
		}
	}
}

// A response that readResponse accepts is read by net/http with the same result, however its bytes
// arrive. The reverse does not hold, because readResponse is stricter.
func FuzzReadResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 409 Conflict\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 503 x\r\nRetry-After: 9\r\nContent-Length: 1\r\n\r\nx"))
	f.Add([]byte("HTTP/1.1 304 x\r\nContent-Length: 7\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readResponse(bufio.NewReaderSize(bytes.NewReader(data), bufferSize), make([]byte, 0, KeptBody))
		slow, errSlow := readResponse(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(data)), bufferSize), make([]byte, 0, KeptBody))
		if fmt.Sprint(got, err) != fmt.Sprint(slow, errSlow) {
			t.Fatalf("at once %+v, %v; byte by byte %+v, %v", got, err, slow, errSlow)
		}
		if err != nil {
			return
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		if err != nil {
			t.Fatalf("accepted %+v, net/http returns %v", got, err)
		}
		body, err := io.ReadAll(want.Body)
		if err != nil {
			t.Fatalf("accepted %+v, net/http returns %v for the body", got, err)
		}
		if got.Status != want.StatusCode || got.Length != int64(len(body)) || !bytes.HasPrefix(body, got.Body) ||
			len(got.Body) != min(len(body), KeptBody) || got.close != want.Close {
			t.Fatalf("read %+v, net/http %d with %q, close %v", got, want.StatusCode, body, want.Close)
		}
	})
}
