package pgstore

import (
	"net/url"
	"regexp"
	"strings"
)

var paramName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// splitConnString splits a connection string into its parameters and, for a URL, the part before
// them. Of a repeated parameter it returns the last value, which counts.
func splitConnString(text string) (base string, params []connParam, err error) {
	_, rest, isURL := cutScheme(text)
	switch {
	case isURL:
		base, params, err = splitURL(text, afterUser(rest))
	case strings.ContainsAny(text[:min(1, len(text))], `'"`):
		err = malformed("it begins with a quotation mark")
	default:
		params, err = splitKeywords(text)
	}
	if err != nil {
		return "", nil, err
	}
	last := map[string]int{}
	for i, p := range params {
		if !paramName.MatchString(p.name) {
			return "", nil, malformed("not a connection string")
		}
		last[p.name] = i
	}
	var effective []connParam
	for i, p := range params {
		if last[p.name] == i {
			effective = append(effective, p)
		}
	}
	return base, effective, nil
}

// splitURL splits a URL. rest is its part after the user and the password.
//
// An @ in rest may mean that the password has a character that ends it earlier than intended: in
// postgres://user:12/34@host/db libpq and pgx see port 12 and a database named 34@host/db. It is
// accepted in the value of a known parameter.
func splitURL(text, rest string) (base string, params []connParam, err error) {
	misplacedAt := malformed("it has an @ after the host (percent-encode / ? and @ in the password)")
	if strings.ContainsAny(text, "\n\r\t") {
		return "", nil, malformed("it has a line break or a tab in the middle")
	}
	beforeQuery, query, hasQuery := strings.Cut(rest, "?")
	if strings.Contains(beforeQuery, "@") {
		return "", nil, misplacedAt
	}
	base = text
	if hasQuery {
		base = strings.TrimSuffix(text, "?"+query)
	}
	for item := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' }) {
		name, value, hasValue := strings.Cut(item, "=")
		name, nameErr := url.PathUnescape(strings.Trim(name, " "))
		p := connParam{canonicalName(name), ""}
		_, isForeign := foreignParams[p.name]
		switch known := p.isKnown() || isForeign; {
		case strings.Contains(item, "@") && (!hasValue || !known):
			return "", nil, misplacedAt
		case !hasValue || nameErr != nil:
			return "", nil, malformed("not a valid connection string")
		case strings.Contains(value, "=") && known:
			return "", nil, malformed("the value of " + p.name + " has an = (percent-encode it: %3D)")
		}
		if p.value, err = url.PathUnescape(strings.Trim(value, " ")); err != nil {
			return "", nil, malformed("a % is not followed by two hexadecimal digits (percent-encode it: %25)")
		}
		if p == (connParam{"ssl", "true"}) { // as in JDBC
			p = connParam{"sslmode", "require"}
		}
		params = append(params, p)
	}
	return base, params, nil
}

// splitKeywords splits keyword=value pairs as libpq and pgx do.
func splitKeywords(text string) ([]connParam, error) {
	const space = " \t\n\r\v\f"
	var params []connParam
	for text = strings.TrimLeft(text, space); text != ""; text = strings.TrimLeft(text, space) {
		name, rest, found := strings.Cut(text, "=")
		if !found {
			return nil, malformed("not a connection string")
		}
		rest = strings.TrimLeft(rest, space)
		quoted := strings.HasPrefix(rest, "'")
		if quoted {
			rest = rest[1:]
		}
		var value strings.Builder
		end := 0
		for ; end < len(rest); end++ {
			c := rest[end]
			if quoted && c == '\'' || !quoted && strings.IndexByte(space, c) >= 0 {
				break
			}
			if c == '\\' {
				if end++; end == len(rest) {
					break
				}
			}
			value.WriteByte(rest[end])
		}
		if quoted {
			if end++; end > len(rest) {
				return nil, malformed("a quotation mark is missing")
			}
		}
		text = rest[min(end, len(rest)):]
		params = append(params, connParam{canonicalName(strings.Trim(name, space)), value.String()})
	}
	return params, nil
}

func canonicalName(name string) string {
	if name == "dbname" {
		return "database"
	}
	return name
}

func quoteValue(value string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

func trimURL(text string) string {
	if trimmed := strings.TrimSpace(text); trimmed != text {
		if _, _, isURL := cutScheme(trimmed); isURL {
			return trimmed
		}
	}
	return text
}

// afterUser returns the part of a URL, given without its scheme, that follows the user and the
// password. Like libpq, it assumes that these end at the first @ before any /.
func afterUser(rest string) string {
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		return rest[i+1:]
	}
	return rest
}

func cutScheme(text string) (scheme, rest string, isURL bool) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, ok := strings.CutPrefix(text, scheme); ok {
			return scheme, rest, true
		}
	}
	return "", text, false
}
