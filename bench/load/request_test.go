package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
)

func TestWriter_claim(t *testing.T) {
	w := newWriter("127.0.0.1:8080")
	for _, want := range []Request{
		{User: "user-0000001", Coupon: "sale"},
		{User: `quo"te\`, Coupon: "new\nline\t"},
		{User: "名前 🎟", Coupon: "a/b%2F <&>"},
	} {
		raw, err := w.write(want)
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(bytes.NewReader(raw))
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		if r.Method != "POST" || r.URL.Path != "/api/coupons/claim" || r.Host != "127.0.0.1:8080" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%q", raw)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			User   string `json:"user_id"`
			Coupon string `json:"coupon_name"`
		}
		if err := json.Unmarshal(body, &got); err != nil || got.User != want.User || got.Coupon != want.Coupon {
			t.Errorf("%q: %v", body, err)
		}
		if in.Buffered() > 0 {
			t.Errorf("%d bytes after the end of the body", in.Buffered())
		}
	}
	if _, err := w.write(Request{User: "\xff", Coupon: "sale"}); err == nil {
		t.Error("invalid UTF-8 was accepted")
	}
}

func TestWriter_read(t *testing.T) {
	w := newWriter("127.0.0.1:8080")
	for _, name := range []string{"sale", "a/b", "50% off?", ".", "..", "🎟", "claim", "..."} {
		raw, err := w.write(Request{Coupon: name, Read: true})
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if r.Method != "GET" || r.URL.Path != "/api/coupons/"+name {
			t.Errorf("%q: %q", name, raw)
		}
		if (name == "." || name == "..") && bytes.Contains(raw, []byte("/. ")) {
			t.Errorf("%q is not escaped in %q", name, raw)
		}
	}
}
