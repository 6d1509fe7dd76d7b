package load

import (
	"net/http"
	"testing"

	"scalable-coupon-system/internal/couponmodel"
)

func TestClassify(t *testing.T) {
	for name, test := range map[string]struct {
		method string
		status int
		body   string
		want   Answer
	}{
		"claimed":         {http.MethodPost, 201, "", Claimed},
		"read":            {http.MethodGet, 200, `{"name":"c"}`, ReadOK},
		"already claimed": {http.MethodPost, 409, `{"error":"x","code":"ALREADY_CLAIMED","request_id":"1"}`, AlreadyClaimed},
		"sold out":        {http.MethodPost, 400, `{"error":"x","code":"OUT_OF_STOCK","request_id":"1"}`, OutOfStock},
		"other spelling":  {http.MethodPost, 400, "{ \"code\" : \"OUT_OF_STOCK\",\n \"error\" : \"x\" }", OutOfStock},
		"another code":    {http.MethodPost, 413, `{"error":"x","code":"BODY_TOO_LARGE"}`, Answer{413, "BODY_TOO_LARGE"}},
		"a code inside the error text": {
			http.MethodPost, 500, `{"error":"has \"code\":\"OUT_OF_STOCK\"","code":"INTERNAL"}`, Answer{500, "INTERNAL"},
		},
	} {
		got, err := classify(test.method, Response{Status: test.status, Body: []byte(test.body)})
		if got != test.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", name, got, err, test.want)
		}
	}
}

func TestAnswer(t *testing.T) {
	for _, test := range []struct {
		answer  Answer
		outcome couponmodel.Outcome
		text    string
	}{
		{Claimed, couponmodel.Claimed, "201"},
		{AlreadyClaimed, couponmodel.AlreadyClaimed, "409 ALREADY_CLAIMED"},
		{OutOfStock, couponmodel.OutOfStock, "400 OUT_OF_STOCK"},
		{CouponNotFound, couponmodel.CouponNotFound, "404 COUPON_NOT_FOUND"},
		{Overloaded, couponmodel.NotExecuted, "503 OVERLOADED"},
		{Unavailable, couponmodel.NotExecuted, "503 UNAVAILABLE"},
		{NotSent, couponmodel.NotExecuted, "no answer (NOT_SENT)"},
		{OutcomeUnknown, couponmodel.Ambiguous, "503 OUTCOME_UNKNOWN"},
		{Answer{500, "INTERNAL"}, couponmodel.Ambiguous, "500 INTERNAL"},
		{Answer{503, "SOMETHING_NEW"}, couponmodel.Ambiguous, "503 SOMETHING_NEW"},
		{Cut, couponmodel.Ambiguous, "no answer (CUT)"},
		{TimedOut, couponmodel.Ambiguous, "no answer (TIMED_OUT)"},
		{Malformed, couponmodel.Ambiguous, "no answer (MALFORMED)"},
	} {
		a := test.answer
		if a.ClaimOutcome() != test.outcome || a.String() != test.text {
			t.Errorf("%v: %q, want %+v", a, a.ClaimOutcome(), test)
		}
		ambiguous, notExecuted := test.outcome == couponmodel.Ambiguous, test.outcome == couponmodel.NotExecuted
		if a.Ambiguous() != ambiguous || a.NotExecuted() != notExecuted || a.Definite() == (ambiguous || notExecuted) {
			t.Errorf("%v: ambiguous %v, not executed %v, definite %v", a, a.Ambiguous(), a.NotExecuted(), a.Definite())
		}
		if !ambiguous && !notExecuted && AnswerFor(test.outcome) != a {
			t.Errorf("%q: %v, want %v", test.outcome, AnswerFor(test.outcome), a)
		}
	}
	if invalid := (Answer{400, "INVALID_REQUEST"}); !invalid.Definite() || invalid.Ambiguous() {
		t.Errorf("%v is not definite", invalid)
	}
}
