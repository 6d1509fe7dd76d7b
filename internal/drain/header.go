package drain

import (
	"bytes"
	"errors"
)

// maxHeaderLines is the largest number of lines in the header of a request. http.Server limits only
// its bytes, and 12 KB of short lines take 290 KB of memory once they are parsed: 2,000 connections
// that send them use up a container of 512 MiB. HAProxy has the same limit (tune.http.maxhdr).
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
	lines := bytes.Count(p, []byte("\n"))
	if !inHeader {
		if len(p) > 1 { // a single byte is read ahead, and does not replace what was read before
			h.rest = lines
		}
		return
	}
	if end := bytes.Index(p, []byte("\r\n\r\n")); end >= 0 {
		h.rest = bytes.Count(p[end:], []byte("\n")) - 2
		lines -= h.rest
	}
	h.lines += lines
}

// tooLarge reports whether the header has too many lines. It stays so: net/http may read again
// after an error.
func (h *headerLines) tooLarge() bool { return h.lines > maxHeaderLines }
