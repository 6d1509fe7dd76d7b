package load

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"scalable-coupon-system/internal/couponmodel"
)

// Answer is the answer to a request: its HTTP status and, for an error, the code of the contract. A
// request without an answer has status 0 and the reason as its code. Answers are compared with ==.
type Answer struct {
	Status int
	Code   string
}

// Answers that say what the state is.
var (
	Created        = Answer{201, ""}
	CouponExists   = Answer{409, "COUPON_EXISTS"}
	Claimed        = Answer{201, ""}
	ReadOK         = Answer{200, ""}
	AlreadyClaimed = Answer{409, "ALREADY_CLAIMED"}
	OutOfStock     = Answer{400, "OUT_OF_STOCK"}
	CouponNotFound = Answer{404, "COUPON_NOT_FOUND"}
)

// Answers after which a client retries.
var (
	Overloaded     = Answer{503, "OVERLOADED"}
	Unavailable    = Answer{503, "UNAVAILABLE"}
	OutcomeUnknown = Answer{503, "OUTCOME_UNKNOWN"}
)

// Reasons for no answer, as they are known to a [Client].
var (
	NotSent   = Answer{0, "NOT_SENT"}
	Cut       = Answer{0, "CUT"}
	TimedOut  = Answer{0, "TIMED_OUT"}
	Malformed = Answer{0, "MALFORMED"}
)

// answers has the answer for each outcome of the model.
var answers = map[couponmodel.Outcome]Answer{
	couponmodel.Created:        Created,
	couponmodel.CouponExists:   CouponExists,
	couponmodel.Claimed:        Claimed,
	couponmodel.AlreadyClaimed: AlreadyClaimed,
	couponmodel.OutOfStock:     OutOfStock,
	couponmodel.CouponNotFound: CouponNotFound,
	couponmodel.Found:          ReadOK,
}

// AnswerFor returns the answer of a correct service to a request with this outcome in the model.
func AnswerFor(outcome couponmodel.Outcome) Answer { return answers[outcome] }

// NotExecuted reports whether the answer promises that the request changed nothing, and that a
// retry may succeed.
func (a Answer) NotExecuted() bool { return a == Overloaded || a == Unavailable || a == NotSent }

// Ambiguous reports whether a request with this answer may have been executed although the answer
// does not say so.
func (a Answer) Ambiguous() bool { return !a.NotExecuted() && (a.Status == 0 || a.Status >= 500) }

// Definite reports whether the answer says what the state is, so that a retry is of no use.
func (a Answer) Definite() bool { return !a.NotExecuted() && !a.Ambiguous() }

// String returns the answer for display: "409 ALREADY_CLAIMED", "no answer (CUT)".
func (a Answer) String() string {
	if a.Status == 0 {
		return "no answer (" + a.Code + ")"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Code))
}

// classify returns the Answer of a response to a request with this method. The error says what is
// wrong with one that is Malformed.
func classify(method string, r Response) (Answer, error) {
	if r.Status < 400 {
		if method == http.MethodPost && len(r.Body) > 0 {
			return Malformed, fmt.Errorf("malformed answer: status %d with a body of %d bytes, want none", r.Status, len(r.Body))
		}
		return Answer{r.Status, ""}, nil
	}
	var body struct {
		Error string `json:"error"`
		Code  string `json:"code"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || body.Code == "" || body.Error == "" {
		return Malformed, fmt.Errorf("malformed answer: status %d, and its body is not an error of the contract: %.200q", r.Status, r.Body)
	}
	return Answer{r.Status, body.Code}, nil
}
