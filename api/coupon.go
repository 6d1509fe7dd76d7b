package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"scalable-coupon-system/pgstore"
)

// chunkSize is how much of an answer is encoded before it is sent, in bytes. It
// bounds the memory a reader costs; beyond a few KiB its size hardly matters for
// the speed.
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
	ctx := x.request.Context()
	c, found, err := h.store.Coupon(ctx, name)
	switch {
	case err != nil:
		x.fail(err)
	case !found:
		x.answer(CodeCouponNotFound)
	case x.request.Method == http.MethodHead:
		// No Content-Length: to know it, a million claims would have to be read.
		x.sendHeader(http.StatusOK)
	default:
		x.sendCoupon(ctx, c)
	}
}

// sendCoupon sends a coupon with its claimers: whole when that fits into a chunk,
// else chunk by chunk while the pages are read. Nothing is sent before the first
// page is there; what goes wrong later can only be told by cutting the answer off.
func (x *exchange) sendCoupon(ctx context.Context, c *pgstore.Coupon) {
	pooled := chunks.Get().(*[]byte)
	body := append((*pooled)[:0], `{"name":`...)
	defer func() {
		*pooled = body[:0]
		chunks.Put(pooled)
	}()
	body = appendString(body, c.Name)
	body = append(body, `,"amount":`...)
	body = strconv.AppendInt(body, int64(c.Amount), 10)
	body = append(body, `,"remaining_amount":`...)
	body = strconv.AppendInt(body, int64(c.RemainingAmount), 10)
	body = append(body, `,"claimed_by":[`...)

	claimers := 0
	for page, err := range c.Claimers(ctx) {
		if err != nil {
			x.failCoupon(err)
			return
		}
		for _, user := range page {
			if claimers > 0 {
				body = append(body, ',')
			}
			claimers++
			body = appendString(body, user)
			if len(body) >= chunkSize {
				if err := x.sendChunk(body); err != nil {
					x.abort(fmt.Errorf("the client took no more: %w", err))
				}
				body = body[:0]
			}
		}
	}
	if claimers != c.Amount-c.RemainingAmount {
		x.failCoupon(fmt.Errorf("coupon %q: %d claimers, but %d of %d remain", c.Name, claimers, c.RemainingAmount, c.Amount))
		return
	}
	body = append(body, "]}\n"...)
	if x.status == 0 {
		x.send(http.StatusOK, body)
		return
	}
	if err := x.sendChunk(body); err != nil {
		x.abort(fmt.Errorf("the client took no more: %w", err))
	}
}

// sendChunk sends a part of a coupon, the header first. It does not flush: a
// chunk is larger than net/http's buffers, and goes through them.
func (x *exchange) sendChunk(part []byte) error {
	if x.status == 0 {
		x.sendHeader(http.StatusOK)
	}
	x.renewWriteDeadline()
	_, err := x.Write(part)
	return err
}

// failCoupon tells what went wrong, or cuts the answer off when it has begun.
func (x *exchange) failCoupon(err error) {
	if x.status == 0 {
		x.fail(err)
		return
	}
	x.abort(err)
}
