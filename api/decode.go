package api

import (
	"bytes"
	"errors"
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
type values [2]struct {
	text   string // of a string
	number int32  // of a number
}

// decode decodes the body, which must match schema. It does not guess what a client may have meant:
// names and kinds match exactly, no field is repeated or unknown. It reports the first problem, but
// errors in the JSON before errors in the fields.
//
// It reads tokens because the messages of json.Unmarshal are about Go types and not about what is
// allowed.
func (r *bodyReader) decode(schema *objectSchema) (values, error) {
	body := r.body.Bytes()
	d := objectDecoder{bodyReader: r, schema: schema}
	switch {
	case !utf8.Valid(body):
		return values{}, invalidf("the body must be valid UTF-8")
	case bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > maxBrackets:
		return values{}, d.invalidBody("it has too many brackets")
	}
	r.json.Reset(&r.body)
	switch err := d.object(); {
	case errors.Is(err, io.EOF): // before the first token
		return values{}, d.invalidBody("it is empty")
	case err != nil:
		return values{}, syntaxError(err, body)
	}
	if _, err := d.json.ReadToken(); !errors.Is(err, io.EOF) {
		return values{}, d.invalidBody("it is followed by more data")
	}
	return d.values, d.problem
}

// objectDecoder decodes one body. Its methods return an error if the JSON cannot be read to its
// end, and store other errors in problem.
type objectDecoder struct {
	*bodyReader

	schema  *objectSchema
	values  values
	problem error // the first one
}

// object reads one JSON value, which should be an object.
func (d *objectDecoder) object() error {
	if kind := d.json.PeekKind(); kind != jsontext.KindBeginObject {
		d.problem = d.invalidBody("it is " + kindNames[kind])
		return d.json.SkipValue()
	}
	if _, err := d.json.ReadToken(); err != nil {
		return err
	}
	for d.json.PeekKind() != jsontext.KindEndObject {
		if err := d.member(); err != nil {
			return err
		}
	}
	for i, f := range d.schema {
		if d.problem == nil && d.values[i].text == "" && d.values[i].number == 0 {
			d.problem = f.invalid("it is missing")
		}
	}
	_, err := d.json.ReadToken()
	return err
}

// member reads a name and its value.
func (d *objectDecoder) member() error {
	name, err := d.json.ReadValue()
	if err != nil {
		return err
	}
	d.unquote(name)
	i := slices.IndexFunc(d.schema[:], func(f fieldSchema) bool { return f.name == string(d.text) })
	if i < 0 && d.problem == nil {
		d.problem = d.invalidBody("it has the unknown field " + quoteName(string(d.text)))
	}
	if d.problem != nil {
		return d.json.SkipValue()
	}
	f, v := d.schema[i], &d.values[i]
	if kind := d.json.PeekKind(); kind != f.kind {
		d.problem = f.invalid("it is " + kindNames[kind])
		return d.json.SkipValue()
	}
	value, err := d.json.ReadValue()
	if err != nil {
		return err
	}
	if f.kind == jsontext.KindString {
		d.unquote(value)
		v.text = string(d.text)
		d.problem = checkName(f.name, v.text)
	} else {
		v.number, d.problem = f.parseAmount(string(value))
	}
	return nil
}

// unquote decodes a JSON string that was read.
func (d *objectDecoder) unquote(value jsontext.Value) {
	d.text, _ = jsontext.AppendUnquote(d.text[:0], value)
}

// invalidBody returns the error for a body that does not match the schema.
func (d *objectDecoder) invalidBody(problem string) error {
	return invalidf("the body must be a JSON object with exactly the fields %s and %s; %s", d.schema[0].name, d.schema[1].name, problem)
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
