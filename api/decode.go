package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// objectSchema describes the JSON object that a request must have as its body: these two fields,
// each exactly once, and no others.
type objectSchema [2]fieldSchema

type fieldSchema struct {
	name string
	kind jsontext.Kind // KindString for a name, KindNumber for an amount
	rule string        // what is allowed; follows the field's name in messages
}

const (
	amountRule = "must be a whole number from 1 to 2147483647, written in digits only"

	// maxBrackets is how many [ and { a valid body can have: its own one, and two names full of them.
	// More of them may be a value with thousands of levels, which would take the decoder a hundred
	// times longer.
	maxBrackets = 1 + 2*maxNameLength
)

var (
	claimSchema = &objectSchema{
		{"user_id", jsontext.KindString, nameRule},
		{"coupon_name", jsontext.KindString, nameRule},
	}
	createSchema = &objectSchema{
		{"name", jsontext.KindString, nameRule},
		{"amount", jsontext.KindNumber, amountRule},
	}
)

// values has the values of a schema's fields, in the order of the schema.
type values [2]value

type value struct {
	text   string // of a string
	number int32  // of a number
}

// decode decodes the body, which must match schema. It does not guess what a client may have meant:
// names and kinds match exactly, no field is repeated or unknown. It reports the first problem, but
// errors in the JSON before errors in the fields.
//
// It reads tokens because the messages of json.Unmarshal are about Go types and not about what is
// allowed.
func (r *bodyReader) decode(schema *objectSchema) (v values, err error) {
	body := r.body.Bytes()
	switch {
	case !utf8.Valid(body):
		return v, invalidf("the body must be valid UTF-8")
	case bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > maxBrackets:
		return v, schema.invalid(fmt.Sprintf("it has more than %d [ and {", maxBrackets))
	}
	r.json.Reset(&r.body)
	object, err := r.json.ReadValue()
	switch {
	case errors.Is(err, io.EOF): // before the first token
		return v, schema.invalid("it is empty")
	case err != nil:
		return v, syntaxError(err, body)
	}
	kind := object.Kind()
	if _, err := r.json.ReadToken(); !errors.Is(err, io.EOF) {
		return v, schema.invalid("it is followed by more data")
	}
	if kind != jsontext.KindBeginObject {
		return v, schema.invalid("it is " + kindNames[kind])
	}

	// From here on, the JSON is known to be valid.
	r.body = *bytes.NewBuffer(body)
	r.json.Reset(&r.body)
	_, _ = r.json.ReadToken()
	for r.json.PeekKind() != jsontext.KindEndObject {
		if err := r.member(schema, &v); err != nil {
			return v, err
		}
	}
	for i, f := range schema {
		if v[i] == (value{}) {
			return v, f.invalid("it is missing")
		}
	}
	return v, nil
}

// member reads a name and its value, and stores the value in v.
func (r *bodyReader) member(schema *objectSchema, v *values) (err error) {
	name, _ := r.json.ReadValue()
	r.unquote(name)
	i := slices.IndexFunc(schema[:], func(f fieldSchema) bool { return f.name == string(r.text) })
	if i < 0 {
		return schema.invalid("it has the unknown field " + quoteName(string(r.text)))
	}
	f := schema[i]
	value, _ := r.json.ReadValue()
	switch kind := value.Kind(); {
	case kind != f.kind:
		return f.invalid("it is " + kindNames[kind])
	case kind == jsontext.KindString:
		r.unquote(value)
		v[i].text = string(r.text)
		return checkName(f.name, v[i].text)
	default:
		v[i].number, err = f.parseAmount(string(value))
		return err
	}
}

// unquote decodes a JSON string that was read.
func (r *bodyReader) unquote(value jsontext.Value) {
	r.text, _ = jsontext.AppendUnquote(r.text[:0], value)
}

// invalid returns the error for a body that does not match the schema.
func (s *objectSchema) invalid(problem string) error {
	return invalidf("the body must be a JSON object with exactly the fields %s and %s; %s", s[0].name, s[1].name, problem)
}

// invalid returns the error for a field with this problem.
func (f fieldSchema) invalid(problem string) error {
	return invalidf("%s %s; %s", f.name, f.rule, problem)
}

// parseAmount parses a JSON number that must be an integer in digits only. Some JSON libraries take
// 1.0 and 1e3 for integers; OpenAPI 3.0 does not.
func (f fieldSchema) parseAmount(text string) (int32, error) {
	if strings.ContainsAny(text, ".eE") {
		return 0, f.invalid("it has a fraction or an exponent")
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 {
		return 0, f.invalid("it is out of range")
	}
	return int32(n), nil
}

// surrogate matches the escape of a surrogate.
var surrogate = regexp.MustCompile(`^\\u[dD][89a-fA-F][0-9a-fA-F]{2}`)

// syntaxError returns the message for a body that is not valid JSON. The text of jsontext's own
// error is of little use to clients, and differs between its versions.
func syntaxError(err error, body []byte) error {
	syntax, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok {
		return err // cannot happen: the decoder reads from memory
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return invalidf("each field may appear only once; %s is repeated", quoteName(syntax.JSONPointer.LastToken()))
	}
	problem := "a syntax error near"
	if surrogate.Match(body[min(int(syntax.ByteOffset), len(body)):]) {
		problem = "an unpaired surrogate at"
	}
	return invalidf("the body must be valid JSON; it has %s byte %d", problem, syntax.ByteOffset)
}

// kindNames has the names of JSON kinds, to follow "it is" in a message.
var kindNames = map[jsontext.Kind]string{
	jsontext.KindNull:        "null",
	jsontext.KindTrue:        "a boolean",
	jsontext.KindFalse:       "a boolean",
	jsontext.KindString:      "a string",
	jsontext.KindNumber:      "a number",
	jsontext.KindBeginArray:  "an array",
	jsontext.KindBeginObject: "an object",
}

// quoteName quotes a field's name from a request for a message, and shortens it to 40 characters.
func quoteName(name string) string {
	const limit = 40
	if utf8.RuneCountInString(name) > limit {
		name = string([]rune(name)[:limit]) + "…"
	}
	return strconv.Quote(name)
}
