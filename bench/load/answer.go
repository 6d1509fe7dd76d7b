package load

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// Answer is what a request came to: the status and, where it is no success, the code that the contract has for it. A
// request without an answer has status 0 and one of the reasons below. Answers are compared with ==.
type Answer struct {
	Status int
	Code   string
}

// The answers that say how a claim ended, or a read (ReadOK).
var (
	Claimed        = Answer{201, ""}
	ReadOK         = Answer{200, ""}
	AlreadyClaimed = Answer{409, "ALREADY_CLAIMED"}
	OutOfStock     = Answer{400, "OUT_OF_STOCK"}
	CouponNotFound = Answer{404, "COUPON_NOT_FOUND"}
)

// The answers after which a client asks again.
var (
	Overloaded     = Answer{503, "OVERLOADED"}
	Unavailable    = Answer{503, "UNAVAILABLE"}
	OutcomeUnknown = Answer{503, "OUTCOME_UNKNOWN"}
)

// No answer, and why: the errors of [Conn].
var (
	NotSent   = Answer{0, "NOT_SENT"}
	Cut       = Answer{0, "CUT"}
	TimedOut  = Answer{0, "TIMED_OUT"}
	Malformed = Answer{0, "MALFORMED"}
)

// Definite says whether this ends a claim: the user has the coupon, or will never have it.
func (a Answer) Definite() bool {
	return a == Claimed || a == AlreadyClaimed || a == OutOfStock
}

// Ambiguous says whether a claim so answered may have been carried out all the same.
func (a Answer) Ambiguous() bool {
	switch a {
	case Overloaded, Unavailable, NotSent:
		return false
	}
	return a.Status == 0 || a.Status >= 500
}

// String is for people: "409 ALREADY_CLAIMED", "no answer (CUT)".
func (a Answer) String() string {
	switch {
	case a.Status == 0:
		return "no answer (" + a.Code + ")"
	case a.Code == "":
		return fmt.Sprint(a.Status)
	default:
		return fmt.Sprintf("%d %s", a.Status, a.Code)
	}
}

// judge names what came back for a request. Its error says what was wrong with an answer that is Malformed, or why there
// is none.
func judge(request Request, r Response, err error) (Answer, error) {
	switch {
	case errors.Is(err, ErrNotSent):
		return NotSent, err
	case errors.Is(err, ErrTimeout):
		return TimedOut, err
	case errors.Is(err, ErrMalformed):
		return Malformed, err
	case err != nil:
		return Cut, err
	case r.Status >= 400:
		code, err := errorCode(r)
		if err != nil {
			return Malformed, err
		}
		return Answer{r.Status, code}, nil
	case !request.Read && r.Length > 0:
		return Malformed, malformed("a claim's %d with a body of %d bytes", r.Status, r.Length)
	default:
		return Answer{r.Status, ""}, nil
	}
}

// errorCode finds the code in an error body. A sale that is sold out is nothing but such bodies, so the common form is
// searched for instead of decoded: in a JSON text these bytes cannot stand inside a string, where every quote is
// escaped, and error bodies have no objects within.
func errorCode(r Response) (string, error) {
	if r.Length > int64(len(r.Body)) {
		return "", malformed("a %d with %d bytes of body", r.Status, r.Length)
	}
	if _, rest, found := bytes.Cut(r.Body, []byte(`"code":"`)); found {
		if code, _, found := bytes.Cut(rest, []byte(`"`)); found {
			if known, found := knownCodes[string(code)]; found {
				return known, nil
			}
		}
	}
	var body struct {
		Error string `json:"error"`
		Code  string `json:"code"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || body.Code == "" || body.Error == "" {
		return "", malformed("a %d whose body is no error of the contract: %.200q", r.Status, r.Body)
	}
	return body.Code, nil
}

// knownCodes are the codes a sale meets; looking them up costs no allocation. Others are decoded.
var knownCodes = func() map[string]string {
	known := map[string]string{}
	for _, a := range []Answer{AlreadyClaimed, OutOfStock, CouponNotFound, Overloaded, Unavailable, OutcomeUnknown} {
		known[a.Code] = a.Code
	}
	return known
}()
