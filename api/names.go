package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
)

// maxNameLength is the maximum length of a coupon's name and of a user id, in characters (Unicode
// code points). The functions in PostgreSQL have the same limit.
const maxNameLength = 255

const nameRule = "must be a string of 1 to 255 characters, not only white space and without NUL"

// checkName returns an error if name is not a valid coupon name or user id; what names it in the
// message. A valid name is kept byte for byte: not trimmed, case-folded or normalized.
func checkName(what, name string) error {
	var problem string
	switch {
	case name == "":
		problem = "it is empty"
	case !utf8.ValidString(name):
		problem = "it is not valid UTF-8"
	case strings.IndexByte(name, 0) >= 0:
		problem = "it contains NUL"
	case strings.IndexFunc(name, notWhiteSpace) < 0:
		problem = "it is only white space"
	case utf8.RuneCountInString(name) > maxNameLength:
		problem = fmt.Sprintf("it has %d characters", utf8.RuneCountInString(name))
	default:
		return nil
	}
	return invalidf("%s %s; %s", what, nameRule, problem)
}

// notWhiteSpace uses Unicode's property White_Space, as the check in PostgreSQL does.
func notWhiteSpace(r rune) bool { return !unicode.Is(unicode.White_Space, r) }

// pathName returns the coupon's name in the path of the request.
func pathName(r *http.Request) (string, error) {
	name := chi.URLParam(r, "name")
	if r.URL.RawPath != "" {
		// chi routes by RawPath if there is one, otherwise by Path, which is already decoded. Decoding
		// that again would turn a%252F into a/.
		decoded, err := url.PathUnescape(name)
		if err != nil {
			return "", invalidf("the name in the path is not correctly percent-encoded")
		}
		name = decoded
	}
	return name, checkName("the name in the path", name)
}

// couponLocation returns where a coupon is read, relative to /api/coupons. So it also holds behind
// a path prefix, which this service does not know.
func couponLocation(name string) string {
	const root = "coupons/"
	if name == "." || name == ".." { // clients resolve these, if not encoded, as relative path segments
		return root + strings.ReplaceAll(name, ".", "%2E")
	}
	return root + url.PathEscape(name)
}
