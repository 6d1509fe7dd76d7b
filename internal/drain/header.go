package drain

import (
	"bytes"
	"errors"
)

// maxHeaderLines is the largest number of lines in the header of a request. http.Server limits only
// its bytes, and 12 KB of short lines take 290 KB of memory once they are parsed. HAProxy has the
// same limit (tune.http.maxhdr).
const maxHeaderLines = 101

var errHeaderLines = errors.New("too many lines in the header of a request")

// headerLines counts the lines of a header while it is read.
type headerLines struct {
	lines int // of the header so far
	rest  int // lines of the last read that do not belong to this header
}

// begin begins the header of the next request. Its first part may have come with the last read; how
// much is not known, so all lines of that read count, also those of a body.
func (h *headerLines) begin() { h.lines, h.rest = h.rest, 0 }

// add counts what was read. inHeader means that the header was not complete before.
func (h *headerLines) add(p []byte, inHeader bool) {
	switch header, rest, complete := bytes.Cut(p, []byte("\r\n\r\n")); {
	case inHeader:
		h.lines += lines(header)
		if complete {
			h.lines += 2
			h.rest = lines(rest)
		}
	case len(p) > 1: // a single byte is read ahead, and does not replace what was read before
		h.rest = lines(p)
	}
}

func (h *headerLines) tooLarge() bool { return h.lines > maxHeaderLines }

func lines(p []byte) int { return bytes.Count(p, []byte("\n")) }
