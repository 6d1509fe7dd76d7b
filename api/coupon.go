package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"scalable-coupon-system/pgstore"
)

// chunkSize is how much of a big answer is encoded before it is sent, and how much
// the client has to take within stallTimeout, in bytes.
const chunkSize = 32 << 10

// chunks are buffers that hold a chunk and the user id that made it full.
var chunks = sync.Pool{New: func() any {
	buffer := make([]byte, 0, chunkSize+4<<10)
	return &buffer
}}

// coupon answers GET and HEAD /api/coupons/{name}.
func (h *Handler) coupon(x *exchange) {
	name, err := pathName(x.request)
	if err != nil {
		x.fail(err)
		return
	}
	ctx := x.context()
	c, found, err := h.store.Coupon(ctx, name)
	if err != nil {
		x.fail(err)
		return
	}
	if !found {
		x.answer(CodeCouponNotFound)
		return
	}
	if x.request.Method == http.MethodHead {
		// No Content-Length: to know it, a million claims would have to be read.
		x.sendHeader(http.StatusOK)
		return
	}
	if _, whole := c.Whole(); whole {
		// All who share this read share its encoding.
		x.send(http.StatusOK, c.EncodeOnce(encodeCoupon))
		return
	}
	x.streamCoupon(ctx, c)
}

// encodeCoupon encodes a coupon whose claimers are all at hand.
func encodeCoupon(c *pgstore.Coupon) []byte {
	users, _ := c.Whole()
	size := 128 + len(c.Name)
	for _, user := range users {
		size += len(user) + len(`"",`)
	}
	body := appendCouponHead(make([]byte, 0, size), c)
	for i, user := range users {
		body = appendUser(body, i, user)
	}
	return append(body, couponTail...)
}

// streamCoupon sends a coupon chunk by chunk while the pages of its claimers are
// read, in memory that does not grow with it. Nothing is sent before the first
// page is there; what goes wrong later can only be told by cutting the answer off.
func (x *exchange) streamCoupon(ctx context.Context, c *pgstore.Coupon) {
	buffer := chunks.Get().(*[]byte)
	body := appendCouponHead((*buffer)[:0], c)
	defer func() {
		*buffer = body[:0]
		chunks.Put(buffer)
	}()
	claimers := 0
	for page, err := range c.Claimers(ctx) {
		if err != nil {
			x.failCoupon(err)
			return
		}
		for _, user := range page {
			body = appendUser(body, claimers, user)
			claimers++
			if len(body) >= chunkSize {
				x.sendChunk(body)
				body = body[:0]
			}
		}
	}
	if claimers != c.Amount-c.RemainingAmount {
		x.failCoupon(fmt.Errorf("coupon %q has %d claimers, but %d of %d remain", c.Name, claimers, c.RemainingAmount, c.Amount))
		return
	}
	x.sendChunk(append(body, couponTail...))
}

// sendChunk sends a part of a coupon, the header first. It does not flush: a chunk
// is larger than net/http's buffers and goes through them.
func (x *exchange) sendChunk(part []byte) {
	if x.status == 0 {
		x.sendHeader(http.StatusOK)
	}
	x.sendPart(part)
}

// failCoupon tells what went wrong, or cuts the answer off when it has begun.
func (x *exchange) failCoupon(err error) {
	if x.status == 0 {
		x.fail(err)
		return
	}
	x.abort(err)
}

// The body of a coupon: the head, the users with commas between them, the tail.

func appendCouponHead(body []byte, c *pgstore.Coupon) []byte {
	body = append(body, `{"name":`...)
	body = appendString(body, c.Name)
	body = append(body, `,"amount":`...)
	body = strconv.AppendInt(body, int64(c.Amount), 10)
	body = append(body, `,"remaining_amount":`...)
	body = strconv.AppendInt(body, int64(c.RemainingAmount), 10)
	return append(body, `,"claimed_by":[`...)
}

func appendUser(body []byte, i int, user string) []byte {
	if i > 0 {
		body = append(body, ',')
	}
	return appendString(body, user)
}

const couponTail = "]}\n"
