package api

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// field is a field that the JSON object of a request must have, once.
type field struct {
	name string
	kind jsontext.Kind // a string or a number
	rule string        // what is allowed, to follow the field's name in a message
}

const (
	maxAmount  = 1<<31 - 1 // PostgreSQL's integer
	amountRule = "must be a whole number from 1 to 2147483647, written in digits only"
)

var (
	claimFields = []field{
		{"user_id", jsontext.KindString, nameRule},
		{"coupon_name", jsontext.KindString, nameRule},
	}
	createFields = []field{
		{"name", jsontext.KindString, nameRule},
		{"amount", jsontext.KindNumber, amountRule},
	}
)

// value is what a request has in a field.
type value struct {
	text   string // of a string
	number int32  // of a number
	given  bool
}

// decode reads the body into values, one for each of fields. It is strict, since
// what a lenient reader makes of a claim would be a guess: names and kinds match
// exactly, nothing is there twice, nothing else is there. The JSON is judged
// first, to its end, then the fields; the first problem is told.
//
// It goes by tokens because json.Unmarshal, strict as its options may be, has
// messages about Go types and not about what is allowed.
func (r *reader) decode(fields []field, values []value) error {
	body := r.body.Bytes()
	if !utf8.Valid(body) {
		return invalidf("the body must be valid UTF-8")
	}
	r.json.Reset(&r.body)
	problem, err := r.object(fields, values)
	switch {
	case err == io.EOF: //nolint:errorlint // as jsontext says it: there is nothing at all
		return invalidf("%s; it is empty", bodyRule(fields))
	case err != nil:
		return syntaxError(err, body)
	}
	if _, err := r.json.ReadToken(); err != io.EOF { //nolint:errorlint // as above
		return invalidf("%s; something follows it", bodyRule(fields))
	}
	return problem
}

// object reads one JSON value, whatever it is, to its end. It returns the first
// problem of an object's fields, or the error that makes it no JSON.
func (r *reader) object(fields []field, values []value) (problem, err error) {
	if kind := r.json.PeekKind(); kind != jsontext.KindBeginObject {
		return invalidf("%s; it is %s", bodyRule(fields), nameOf(kind)), r.json.SkipValue()
	}
	if _, err := r.json.ReadToken(); err != nil {
		return nil, err
	}
	for {
		name, err := r.json.ReadToken()
		if err != nil {
			return nil, err
		}
		if name.Kind() == jsontext.KindEndObject {
			break
		}
		wrong, err := r.member(name.String(), fields, values)
		if err != nil {
			return nil, err
		}
		if problem == nil {
			problem = wrong
		}
	}
	for i, f := range fields {
		if problem == nil && !values[i].given {
			problem = invalidf("%s %s; it is missing", f.name, f.rule)
		}
	}
	return problem, nil
}

// member reads what follows the name of a member into the value of its field.
func (r *reader) member(name string, fields []field, values []value) (problem, err error) {
	for i, f := range fields {
		if f.name != name {
			continue
		}
		values[i].given = true
		if kind := r.json.PeekKind(); kind != f.kind {
			return invalidf("%s %s; it is %s", f.name, f.rule, nameOf(kind)), r.json.SkipValue()
		}
		token, err := r.json.ReadToken()
		if err != nil {
			return nil, err
		}
		text := token.String()
		if f.kind == jsontext.KindString {
			values[i].text = text
			return checkName(f.name, text), nil
		}
		values[i].number, problem = amount(f, text)
		return problem, nil
	}
	return invalidf("%s; it has %s", bodyRule(fields), quoted(name)), r.json.SkipValue()
}

// amount reads a JSON number that must be a whole one, digits only: 1.0 and 1e3
// are whole to some readers of JSON, and are not integers to OpenAPI 3.0.
func amount(f field, text string) (int32, error) {
	if strings.Trim(strings.TrimPrefix(text, "-"), "0123456789") != "" {
		return 0, invalidf("%s %s; it has a fraction or an exponent", f.name, f.rule)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 || n > maxAmount {
		return 0, invalidf("%s %s; it is out of this range", f.name, f.rule)
	}
	return int32(n), nil
}

// syntaxError says why the body is no JSON. jsontext's own message would be of
// no use to a client: it quotes, and it changes from version to version.
func syntaxError(err error, body []byte) error {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return err // the decoder reads from memory: a fault of ours
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return invalidf("no field may be given twice; %s is", quoted(syntax.JSONPointer.LastToken()))
	}
	if rest := body[min(int(syntax.ByteOffset), len(body)):]; isSurrogate(rest) {
		return invalidf("the body must be valid JSON; at byte %d there is half of a surrogate pair", syntax.ByteOffset)
	}
	return invalidf("the body must be valid JSON; it is not, at or soon after byte %d", syntax.ByteOffset)
}

// isSurrogate tells whether JSON text goes on with the escape of a surrogate,
// \ud800 to \udfff.
func isSurrogate(text []byte) bool {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return false
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return err == nil && n>>11 == 0xd800>>11
}

// bodyRule is what is allowed as the body.
func bodyRule(fields []field) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return "the body must be one JSON object with the fields " + strings.Join(names, " and ") + " and no other"
}

// nameOf calls a kind of JSON value by a name that stands after "it is".
func nameOf(kind jsontext.Kind) string {
	switch kind {
	case jsontext.KindNull:
		return "null"
	case jsontext.KindTrue, jsontext.KindFalse:
		return "a boolean"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindNumber:
		return "a number"
	case jsontext.KindBeginArray:
		return "an array"
	case jsontext.KindBeginObject:
		return "an object"
	default: // no JSON: another message is told
		return "something else"
	}
}

// quoted is a field's name out of a request, fit for a message.
func quoted(name string) string {
	const most = 40 // characters
	if utf8.RuneCountInString(name) > most {
		name = string([]rune(name)[:most]) + "…"
	}
	return fmt.Sprintf("%q", name)
}
