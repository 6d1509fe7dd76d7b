package load

import (
	"errors"
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	claim, read := Request{User: "u", Coupon: "c"}, Request{Coupon: "c", Read: true}
	tests := map[string]struct {
		request Request
		status  int
		body    string
		err     error
		want    Answer
	}{
		"claimed":         {claim, 201, "", nil, Claimed},
		"already claimed": {claim, 409, `{"error":"x","code":"ALREADY_CLAIMED","request_id":"1"}`, nil, AlreadyClaimed},
		"sold out":        {claim, 400, `{"error":"x","code":"OUT_OF_STOCK","request_id":"1"}`, nil, OutOfStock},
		"other spelling":  {claim, 400, "{ \"code\" : \"OUT_OF_STOCK\",\n \"error\" : \"x\" }", nil, OutOfStock},
		"another code":    {claim, 413, `{"error":"x","code":"BODY_TOO_LARGE"}`, nil, Answer{413, "BODY_TOO_LARGE"}},
		"a code inside the error text": {
			claim, 500, `{"error":"has \"code\":\"OUT_OF_STOCK\"","code":"INTERNAL"}`, nil, Answer{500, "INTERNAL"},
		},
		"read":                    {read, 200, `{"name":"c"}`, nil, ReadOK},
		"a claim with a body":     {claim, 201, `{}`, nil, Malformed},
		"no body":                 {claim, 503, ``, nil, Malformed},
		"a proxy's body":          {claim, 502, `<html>Bad Gateway</html>`, nil, Malformed},
		"no code":                 {claim, 400, `{"error":"x"}`, nil, Malformed},
		"a body that is too long": {claim, 400, strings.Repeat(" ", KeptBody+1), nil, Malformed},
		"not sent":                {claim, 0, "", ErrNotSent, NotSent},
		"cut":                     {claim, 0, "", ErrCut, Cut},
		"timed out":               {claim, 0, "", ErrTimeout, TimedOut},
		"malformed":               {claim, 0, "", malformed("x"), Malformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := Response{Status: test.status, Body: []byte(test.body)[:min(len(test.body), KeptBody)], Length: int64(len(test.body))}
			got, err := classify(test.request, r, test.err)
			if got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if (err != nil) != (got.Status == 0) {
				t.Errorf("%v with error %v: want either a status or an error", got, err)
			}
			if test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("error %v does not wrap %v", err, test.err)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	tests := []struct {
		answer              Answer
		definite, ambiguous bool
		text                string
	}{
		{Claimed, true, false, "201"},
		{AlreadyClaimed, true, false, "409 ALREADY_CLAIMED"},
		{OutOfStock, true, false, "400 OUT_OF_STOCK"},
		{CouponNotFound, true, false, "404 COUPON_NOT_FOUND"},
		{Answer{400, "INVALID_REQUEST"}, true, false, "400 INVALID_REQUEST"},
		{Overloaded, false, false, "503 OVERLOADED"},
		{Unavailable, false, false, "503 UNAVAILABLE"},
		{NotSent, false, false, "no answer (NOT_SENT)"},
		{OutcomeUnknown, false, true, "503 OUTCOME_UNKNOWN"},
		{Answer{500, "INTERNAL"}, false, true, "500 INTERNAL"},
		{Answer{503, "SOMETHING_NEW"}, false, true, "503 SOMETHING_NEW"},
		{Cut, false, true, "no answer (CUT)"},
		{TimedOut, false, true, "no answer (TIMED_OUT)"},
		{Malformed, false, true, "no answer (MALFORMED)"},
	}
	for _, test := range tests {
		a := test.answer
		if a.Definite() != test.definite || a.Ambiguous() != test.ambiguous || a.String() != test.text {
			t.Errorf("%q: definite %v, ambiguous %v; want %+v", a.String(), a.Definite(), a.Ambiguous(), test)
		}
	}
}
