package load

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Request is one request of a plan: claim Coupon for User or, with Read, read Coupon.
type Request struct {
	User   string
	Coupon string
	Read   bool
}

// writer encodes the requests to one service, one after the other into the same memory.
type writer struct {
	read, claim, coupon string // the constant parts of each kind of request
	body, out           []byte
}

func newWriter(address string) *writer {
	body := " HTTP/1.1\r\nHost: " + address + "\r\nContent-Type: application/json\r\nContent-Length: "
	return &writer{
		read:   " HTTP/1.1\r\nHost: " + address + "\r\n\r\n",
		claim:  "POST /api/coupons/claim" + body,
		coupon: "POST /api/coupons" + body,
	}
}

// write returns the bytes of a request, valid until the next call. A name of a claim that is not
// valid UTF-8 is an error.
func (w *writer) write(r Request) ([]byte, error) {
	if r.Read {
		w.out = append(w.out[:0], "GET "...)
		w.out = append(w.out, CouponPath(r.Coupon)...)
		w.out = append(w.out, w.read...)
		return w.out, nil
	}
	var err error
	w.body = append(w.body[:0], `{"user_id":`...)
	if w.body, err = jsontext.AppendQuote(w.body, r.User); err != nil {
		return nil, err
	}
	w.body = append(w.body, `,"coupon_name":`...)
	if w.body, err = jsontext.AppendQuote(w.body, r.Coupon); err != nil {
		return nil, err
	}
	w.body = append(w.body, '}')
	return w.post(w.claim), nil
}

// create returns the bytes of a request for a new coupon, valid until the next call.
func (w *writer) create(name string, amount int) ([]byte, error) {
	var err error
	if w.body, err = jsontext.AppendQuote(append(w.body[:0], `{"name":`...), name); err != nil {
		return nil, err
	}
	w.body = append(w.body, `,"amount":`...)
	w.body = strconv.AppendInt(w.body, int64(amount), 10)
	w.body = append(w.body, '}')
	return w.post(w.coupon), nil
}

func (w *writer) post(head string) []byte {
	w.out = append(w.out[:0], head...)
	w.out = strconv.AppendInt(w.out, int64(len(w.body)), 10)
	w.out = append(w.out, "\r\n\r\n"...)
	w.out = append(w.out, w.body...)
	return w.out
}

// CouponPath returns the path of a coupon. The dots of the names "." and ".." are escaped, because
// clients and proxies resolve them as path segments.
func CouponPath(name string) string {
	escaped := url.PathEscape(name)
	if name == "." || name == ".." {
		escaped = strings.ReplaceAll(name, ".", "%2E")
	}
	return "/api/coupons/" + escaped
}
