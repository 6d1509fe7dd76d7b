package load

import (
	"testing"

	"scalable-coupon-system/internal/couponmodel"
)

func TestAnswer(t *testing.T) {
	const definite, ambiguous, notExecuted = "definite", "ambiguous", "not executed"
	for _, test := range []struct {
		answer     Answer
		kind, text string
		outcome    couponmodel.Outcome // "": the model has none
	}{
		{Claimed, definite, "201", couponmodel.Claimed},
		{AlreadyClaimed, definite, "409 ALREADY_CLAIMED", couponmodel.AlreadyClaimed},
		{OutOfStock, definite, "400 OUT_OF_STOCK", couponmodel.OutOfStock},
		{CouponNotFound, definite, "404 COUPON_NOT_FOUND", couponmodel.CouponNotFound},
		{Answer{400, "INVALID_REQUEST"}, definite, "400 INVALID_REQUEST", ""},
		{Overloaded, notExecuted, "503 OVERLOADED", ""},
		{Unavailable, notExecuted, "503 UNAVAILABLE", ""},
		{NotSent, notExecuted, "no answer (NOT_SENT)", ""},
		{OutcomeUnknown, ambiguous, "503 OUTCOME_UNKNOWN", ""},
		{Answer{500, "INTERNAL"}, ambiguous, "500 INTERNAL", ""},
		{Answer{503, "SOMETHING_NEW"}, ambiguous, "503 SOMETHING_NEW", ""},
		{Cut, ambiguous, "no answer (CUT)", ""},
		{TimedOut, ambiguous, "no answer (TIMED_OUT)", ""},
		{Malformed, ambiguous, "no answer (MALFORMED)", ""},
	} {
		a := test.answer
		if a.Definite() != (test.kind == definite) || a.Ambiguous() != (test.kind == ambiguous) || a.NotExecuted() != (test.kind == notExecuted) {
			t.Errorf("%v: definite %v, ambiguous %v, not executed %v", a, a.Definite(), a.Ambiguous(), a.NotExecuted())
		}
		if a.String() != test.text || test.outcome != "" && AnswerFor(test.outcome) != a {
			t.Errorf("%v, %v for %q, want %+v", a, AnswerFor(test.outcome), test.outcome, test)
		}
	}
}
