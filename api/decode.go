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

// objectSchema describes the JSON object that a request must have as its body: each field exactly
// once, and no others.
type objectSchema struct {
	fields []fieldSchema
	rule   string // what is allowed, for messages
}

type fieldSchema struct {
	name string
	kind jsontext.Kind // KindString or KindNumber
	rule string        // what is allowed; follows the field's name in messages
}

const (
	maxAmount  = 1<<31 - 1 // PostgreSQL's integer
	amountRule = "must be a whole number from 1 to 2147483647, written in digits only"

	// maxDepth limits the nesting of a value. Nested values are rejected anyway, but a body
	// with thousands of levels would take the decoder a hundred times longer.
	maxDepth = 100
)

var (
	claimSchema = newObjectSchema(
		fieldSchema{"user_id", jsontext.KindString, nameRule},
		fieldSchema{"coupon_name", jsontext.KindString, nameRule},
	)
	createSchema = newObjectSchema(
		fieldSchema{"name", jsontext.KindString, nameRule},
		fieldSchema{"amount", jsontext.KindNumber, amountRule},
	)
)

func newObjectSchema(fields ...fieldSchema) *objectSchema {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return &objectSchema{fields, "the body must be a JSON object with exactly the fields " + strings.Join(names, " and ")}
}

// value is the value of a field.
type value struct {
	text    string // of a string
	number  int32  // of a number
	present bool
}

// values has the values of a schema's fields, in the order of the schema.
type values [2]value

// decode decodes the body, which must match schema. It does not guess what a client may have meant:
// names and kinds match exactly, no field is repeated or unknown. It reports the first problem, but
// errors in the JSON before errors in the fields.
//
// It reads tokens because the messages of json.Unmarshal are about Go types and not about what is
// allowed.
func (r *bodyReader) decode(schema *objectSchema) (values, error) {
	body := r.body.Bytes()
	if !utf8.Valid(body) {
		return values{}, invalidf("the body must be valid UTF-8")
	}
	r.json.Reset(&r.body)
	d := objectDecoder{json: &r.json, schema: schema}
	err := d.body()
	switch {
	case errors.Is(err, io.EOF): // before the first token
		return values{}, invalidf("%s; it is empty", schema.rule)
	case errors.Is(err, errTooDeep):
		return values{}, invalidf("%s; it is nested too deeply", schema.rule)
	case err != nil:
		return values{}, syntaxError(err, body)
	}
	if _, err := d.json.ReadToken(); !errors.Is(err, io.EOF) {
		return values{}, invalidf("%s; it is followed by more data", schema.rule)
	}
	return d.values, d.problem
}

// objectDecoder decodes one body. Its methods return an error if the JSON cannot be read to its
// end, and store other errors in problem.
type objectDecoder struct {
	json    *jsontext.Decoder
	schema  *objectSchema
	values  values
	problem error // the first one
}

var errTooDeep = errors.New("nested too deeply")

// body reads one JSON value, which should be an object.
func (d *objectDecoder) body() error {
	if kind := d.json.PeekKind(); kind != jsontext.KindBeginObject {
		d.addProblem("%s; it is %s", d.schema.rule, kindName(kind))
		return d.skip()
	}
	if _, err := d.json.ReadToken(); err != nil {
		return err
	}
	for {
		name, err := d.json.ReadToken()
		if err != nil {
			return err
		}
		if name.Kind() == jsontext.KindEndObject {
			break
		}
		if err := d.member(name.String()); err != nil {
			return err
		}
	}
	for i, f := range d.schema.fields {
		if !d.values[i].present {
			d.addProblem("%s %s; it is missing", f.name, f.rule)
		}
	}
	return nil
}

// member reads the value of the member with this name.
func (d *objectDecoder) member(name string) error {
	for i, f := range d.schema.fields {
		if f.name == name {
			return d.field(f, &d.values[i])
		}
	}
	if d.problem == nil { // saves the work of quoteName
		d.addProblem("%s; it has the unknown field %s", d.schema.rule, quoteName(name))
	}
	return d.skip()
}

// field reads the value of a field.
func (d *objectDecoder) field(f fieldSchema, v *value) error {
	v.present = true
	if kind := d.json.PeekKind(); kind != f.kind {
		d.addProblem("%s %s; it is %s", f.name, f.rule, kindName(kind))
		return d.skip()
	}
	token, err := d.json.ReadToken()
	if err != nil {
		return err
	}
	var problem error
	if text := token.String(); f.kind == jsontext.KindString {
		v.text, problem = text, checkName(f.name, text)
	} else {
		v.number, problem = parseAmount(f, text)
	}
	if d.problem == nil {
		d.problem = problem
	}
	return nil
}

// addProblem stores a problem if it is the first one.
func (d *objectDecoder) addProblem(format string, args ...any) {
	if d.problem == nil {
		d.problem = invalidf(format, args...)
	}
}

// skip reads a value and ignores it.
func (d *objectDecoder) skip() error {
	outside := d.json.StackDepth()
	for {
		if _, err := d.json.ReadToken(); err != nil {
			return err
		}
		switch depth := d.json.StackDepth(); {
		case depth <= outside:
			return nil
		case depth > maxDepth:
			return errTooDeep
		}
	}
}

// parseAmount parses a JSON number that must be an integer in digits only. Some JSON libraries take
// 1.0 and 1e3 for integers; OpenAPI 3.0 does not.
func parseAmount(f fieldSchema, text string) (int32, error) {
	if strings.Trim(strings.TrimPrefix(text, "-"), "0123456789") != "" {
		return 0, invalidf("%s %s; it has a fraction or an exponent", f.name, f.rule)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 || n > maxAmount {
		return 0, invalidf("%s %s; it is out of range", f.name, f.rule)
	}
	return int32(n), nil
}

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
	if rest := body[min(int(syntax.ByteOffset), len(body)):]; isSurrogate(rest) {
		return invalidf("the body must be valid JSON; it has an unpaired surrogate at byte %d", syntax.ByteOffset)
	}
	return invalidf("the body must be valid JSON; it has a syntax error near byte %d", syntax.ByteOffset)
}

// isSurrogate reports whether text begins with the escape of a surrogate, \ud800 to \udfff.
func isSurrogate(text []byte) bool {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return false
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return err == nil && n>>11 == 0xd800>>11
}

// kindName returns the name of a JSON kind, to follow "it is" in a message.
func kindName(kind jsontext.Kind) string {
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
	default: // not valid JSON, which is reported instead
		return "something else"
	}
}

// quoteName quotes a field's name from a request for a message, and shortens it to 40 characters.
func quoteName(name string) string {
	const limit = 40
	if utf8.RuneCountInString(name) > limit {
		name = string([]rune(name)[:limit]) + "…"
	}
	return fmt.Sprintf("%q", name)
}
