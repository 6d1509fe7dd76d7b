package load

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestService_Create(t *testing.T) {
	s := Service{Timeout: time.Minute, Address: serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Name   string `json:"name"`
			Amount int    `json:"amount"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != "POST" || r.URL.Path != "/api/coupons" ||
			r.Header.Get("Content-Type") != "application/json" || body.Amount != 3 {
			t.Errorf("%s %s %+v: %v", r.Method, r.URL, body, err)
		}
		switch body.Name {
		case "new":
			w.WriteHeader(201)
		case "taken":
			fail(w, 409, "COUPON_EXISTS")
		default:
			fail(w, 503, "UNAVAILABLE")
		}
	})}
	if err := s.Create(t.Context(), "new", 3); err != nil {
		t.Error(err)
	}
	if err := s.Create(t.Context(), "taken", 3); !errors.Is(err, ErrCouponExists) {
		t.Errorf("got %v", err)
	}
	if err := s.Create(t.Context(), "else", 3); err == nil || errors.Is(err, ErrCouponExists) || !strings.Contains(err.Error(), "UNAVAILABLE") {
		t.Errorf("got %v", err)
	}
}

func TestService_Coupon(t *testing.T) {
	answer, path := "", ""
	s := Service{Timeout: time.Minute, Address: serve(t, func(w http.ResponseWriter, r *http.Request) {
		path = r.RequestURI
		if answer == "" {
			fail(w, 404, "COUPON_NOT_FOUND")
			return
		}
		_, _ = w.Write([]byte(answer))
	})}
	for _, name := range []string{"a/b", "..", "sale 🎟"} {
		answer = `{"name":"x","amount":3,"remaining_amount":1,"claimed_by":["a","b"]}`
		c, err := s.Coupon(t.Context(), name)
		if err != nil || c.Name != "x" || c.Amount != 3 || c.Remaining != 1 || !slices.Equal(c.ClaimedBy, []string{"a", "b"}) {
			t.Errorf("%+v, %v", c, err)
		}
		if path != CouponPath(name) {
			t.Errorf("path %s, want %s", path, CouponPath(name))
		}
	}
	for _, broken := range []string{
		"",
		`{"name":"x","amount":3,"remaining_amount":1}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":null}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":[],"more":1}`,
		`{"name":"x","amount":3,"amount":3,"remaining_amount":1,"claimed_by":[]}`,
		`{"name":"x","amount":3.5,"remaining_amount":1,"claimed_by":[]}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":[]}{}`,
		`{"name":"x","amount":3,"remaining_amount":1,"claimed_by":["a"`,
	} {
		answer = broken
		if c, err := s.Coupon(t.Context(), "x"); err == nil {
			t.Errorf("%s was accepted as %+v", broken, c)
		}
	}
}
