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

// maxNameLength is the most characters (Unicode code points) of a coupon's name
// and of a user id. The functions in PostgreSQL keep the same bound.
const maxNameLength = 255

const nameRule = "must be a string of 1 to 255 characters, not all of them white space and none of them NUL"

// checkName refuses what cannot be a name or a user id; what says in the message
// which one it is. A name that passes is kept byte for byte: no trimming, no
// folding of case, no normalising.
func checkName(what, name string) error {
	problem := ""
	switch {
	case name == "":
		problem = "it is empty"
	case !utf8.ValidString(name):
		problem = "it is not valid UTF-8"
	case strings.IndexByte(name, 0) >= 0:
		problem = "it has a NUL"
	case strings.IndexFunc(name, notWhiteSpace) < 0:
		problem = "it is all white space"
	default:
		if n := utf8.RuneCountInString(name); n > maxNameLength {
			problem = fmt.Sprintf("it has %d characters", n)
		}
	}
	if problem == "" {
		return nil
	}
	return invalidf("%s %s; %s", what, nameRule, problem)
}

// notWhiteSpace goes by Unicode's property White_Space, as the check in
// PostgreSQL does.
func notWhiteSpace(r rune) bool { return !unicode.Is(unicode.White_Space, r) }

// pathName is the coupon's name in the path of the request.
func pathName(r *http.Request) (string, error) {
	name := chi.URLParam(r, "name")
	if r.URL.RawPath != "" {
		// chi has routed the path as it was sent. Where there is no RawPath, it got
		// Path, which is decoded already: to do it again would read a%252F as a/.
		decoded, err := url.PathUnescape(name)
		if err != nil {
			return "", invalidf("the name in the path is not correctly percent-encoded")
		}
		name = decoded
	}
	return name, checkName("the name in the path", name)
}

// couponPath is where a coupon is read.
func couponPath(name string) string {
	const root = "/api/coupons/"
	switch name {
	case ".", "..":
		// Any client would take these for steps in the path.
		return root + strings.ReplaceAll(name, ".", "%2E")
	default:
		return root + url.PathEscape(name)
	}
}
