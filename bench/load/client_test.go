package load

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

func TestClient(t *testing.T) {
	c := NewClient(serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); r.Method == http.MethodPost && err != nil {
			t.Error(err)
		}
		switch r.Method + " " + r.URL.Path {
		case "POST /api/coupons":
			if body["name"] != `a"b` || body["amount"] != 3.0 {
				fail(w, 409, "COUPON_EXISTS")
				return
			}
			w.WriteHeader(http.StatusCreated)
		case "POST /api/coupons/claim":
			fail(w, 503, "OUTCOME_UNKNOWN")
		default:
			_, _ = w.Write([]byte(`{"name":"x"}`))
		}
	}), time.Minute)
	defer c.Close()
	if a, _, err := c.Create(t.Context(), `a"b`, 3); a != (Answer{201, ""}) || err != nil {
		t.Error(a, err)
	}
	if a, _, err := c.Create(t.Context(), "other", 3); a != (Answer{409, "COUPON_EXISTS"}) || err != nil {
		t.Error(a, err)
	}
	if a, _, err := c.Send(t.Context(), Request{User: "u", Coupon: "x"}); a != OutcomeUnknown || err != nil {
		t.Error(a, err)
	}
	if a, r, err := c.Send(t.Context(), Request{Coupon: "x", Read: true}); a != ReadOK || string(r.Body) != `{"name":"x"}` || err != nil {
		t.Error(a, r, err)
	}
	c.Close()
	if a, _, err := c.Send(t.Context(), Request{User: "\xff", Coupon: "x"}); a != NotSent || err == nil {
		t.Error(a, err)
	}
}
