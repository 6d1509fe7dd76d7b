package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"scalable-coupon-system/pgstore"
)

// chunkSize is how many bytes of a large response are encoded and then sent at once. The client
// must read each chunk within stallTimeout.
const chunkSize = 32 << 10

// chunkBuffers have room for a chunk and the user id that exceeds it.
var chunkBuffers = sync.Pool{New: func() any {
	buffer := make([]byte, 0, chunkSize+4<<10)
	return &buffer
}}

// createCoupon handles POST /api/coupons.
func (h *Handler) createCoupon(x *exchange) {
	fields, err := x.readObject(createSchema)
	if err != nil {
		x.fail(err)
		return
	}
	name, amount := fields[0].text, fields[1].number
	status, err := h.store.CreateCoupon(x.context(), name, amount)
	if err != nil {
		x.fail(err)
		return
	}
	if status == pgstore.Created {
		x.Header().Set("Location", couponPath(name))
		x.sendCreated()
		return
	}
	code, known := createCodes[status]
	if !known {
		x.fail(fmt.Errorf("unknown create_status %q: the database is newer than this service", status))
		return
	}
	x.sendCode(code)
}

// coupon handles GET and HEAD /api/coupons/{name}.
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
		x.sendCode(CodeCouponNotFound)
		return
	}
	if x.request.Method == http.MethodHead {
		// No Content-Length: it would require reading all claims.
		x.sendHeader(http.StatusOK)
		return
	}
	if _, whole := c.Whole(); whole {
		// Requests that share this read also share its encoding.
		x.send(http.StatusOK, c.EncodeOnce(encodeCoupon))
		return
	}
	x.streamCoupon(ctx, c)
}

// encodeCoupon encodes a coupon with all claimers in memory.
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

// streamCoupon sends a coupon in chunks while it reads the pages of its claimers, in constant
// memory. Nothing is sent before the first page was read. An error after the first chunk can only
// abort the response.
func (x *exchange) streamCoupon(ctx context.Context, c *pgstore.Coupon) {
	buffer := chunkBuffers.Get().(*[]byte)
	body := appendCouponHead((*buffer)[:0], c)
	defer func() {
		*buffer = body[:0]
		chunkBuffers.Put(buffer)
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
		x.failCoupon(fmt.Errorf("coupon %q has %d claimers, but a remaining amount of %d of %d", c.Name, claimers, c.RemainingAmount, c.Amount))
		return
	}
	x.sendChunk(append(body, couponTail...))
}

// sendChunk sends a part of a coupon, after the header if that was not sent yet. It needs no flush:
// a chunk is larger than net/http's buffers.
func (x *exchange) sendChunk(part []byte) {
	if x.status == 0 {
		x.sendHeader(http.StatusOK)
	}
	x.sendPart(part)
}

// failCoupon sends an error response, or aborts a response that was started.
func (x *exchange) failCoupon(err error) {
	if x.status == 0 {
		x.fail(err)
		return
	}
	x.abort(err)
}

// The body of a coupon is its head, its users separated by commas, and couponTail.

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
