package drain

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/internal/rawhttp"
)

// requestHead returns the header of a request with this number of lines, including the empty one at
// its end.
func requestHead(lines int) string {
	return "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n" + strings.Repeat("a:\r\n", lines-4) + "\r\n"
}

// A header with too many lines is rejected before it is complete, however it is split and whatever
// came before it. The lines of a body do not count.
func TestListener_headerLines(t *testing.T) {
	l := newTestListener(t, time.Second, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	l.server.ReadHeaderTimeout = time.Hour // only the number of lines ends a request here
	l.serve()
	body := strings.Repeat("\n", 90)
	largest, tooLarge := requestHead(maxHeaderLines), requestHead(maxHeaderLines+1)
	unfinished := strings.TrimSuffix(requestHead(maxHeaderLines+2), "\r\n")
	const response = "" // instead of a part: wait for a response
	for name, c := range map[string]struct {
		parts    []string
		answered int  // with 200
		rejected bool // afterwards
	}{
		"largest":                      {[]string{largest + body, response}, 1, false},
		"one line more":                {[]string{tooLarge + body}, 0, true},
		"unfinished":                   {[]string{unfinished}, 0, true},
		"unfinished, in parts":         {[]string{unfinished[:200], unfinished[200:300], unfinished[300:]}, 0, true},
		"in parts":                     {[]string{largest[:200], largest[200:300], largest[300:], body, response}, 1, false},
		"after another request":        {[]string{largest, body[:89], body[89:], response, requestHead(10) + body, response}, 2, false},
		"too large after another one":  {[]string{requestHead(10) + body, response, unfinished}, 1, true},
		"together with another one":    {[]string{requestHead(10) + body + unfinished[:200], unfinished[200:]}, 1, true},
		"together, at a line's end":    {[]string{requestHead(10) + body + unfinished[:strings.Index(unfinished, "a:")+40], strings.Repeat("a:\r\n", 20)}, 1, true},
		"together with a complete one": {[]string{requestHead(10) + body + requestHead(10) + body, response, response}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := rawhttp.Dial(t, l.Addr())
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			answered := 0
			awaitAnswer := func() {
				t.Helper()
				if _, err := conn.Response(http.StatusOK); err != nil {
					t.Fatalf("after %d responses: %v", answered, err)
				}
				answered++
			}
			for _, part := range c.parts {
				if part == response {
					awaitAnswer()
					continue
				}
				_, _ = io.WriteString(conn, part)
				time.Sleep(5 * time.Millisecond) // so that the next part is not read together with this one
			}
			for answered < c.answered {
				awaitAnswer()
			}
			if !c.rejected {
				return
			}
			// Closed at once: with a 400, or without if net/http has nothing of the request yet.
			rest, err := io.ReadAll(conn.R)
			if timeout, ok := err.(interface{ Timeout() bool }); ok && timeout.Timeout() || strings.Contains(string(rest), "200") {
				t.Errorf("answered %q, %v", rest, err)
			}
		})
	}
}
