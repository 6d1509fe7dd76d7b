package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"scalable-coupon-system/pgstore"
)

// chunkSize is how many bytes of a large response are encoded and then sent at once. The client
// must read each chunk within stallTimeout.
const chunkSize = 32 << 10

// createCoupon handles POST /api/coupons.
func (h *Handler) createCoupon(x *exchange) error {
	fields, err := x.readObject(createSchema)
	if err != nil {
		return err
	}
	name, amount := fields[0].text, fields[1].number
	status, err := h.store.CreateCoupon(x.context(), name, amount)
	if err != nil {
		return err
	}
	if status == pgstore.Created {
		x.Header().Set("Location", couponLocation(name))
	}
	return sendOutcome(x, createCodes, status)
}

// coupon handles GET and HEAD /api/coupons/{name}.
func (h *Handler) coupon(x *exchange) error {
	name, err := pathName(x.request)
	if err != nil {
		return err
	}
	ctx := x.context()
	c, found, err := h.store.Coupon(ctx, name)
	if err != nil {
		return err
	}
	if !found {
		return reject(CodeCouponNotFound)
	}
	if x.request.Method == http.MethodHead {
		// No Content-Length: it would require reading all claims.
		x.sendHeader(http.StatusOK)
		return nil
	}
	if _, whole := c.Whole(); !whole {
		return x.streamCoupon(ctx, c)
	}
	defer h.bodies.release(c)
	body, err := h.bodies.hold(c)
	if err != nil {
		return err
	}
	return x.send(http.StatusOK, body)
}

// streamCoupon sends a coupon in chunks while it reads the pages of its claimers. It holds one page
// and one chunk, which the budget counts. Nothing is sent before the first page was read. An error
// after the first chunk can only abort the response.
func (x *exchange) streamCoupon(ctx context.Context, c *pgstore.Coupon) error {
	// With room for the user id that exceeds a chunk.
	body := appendCouponHead(make([]byte, 0, chunkSize+4<<10), c)
	held := 0 // bytes of the budget
	defer func() { x.h.budget.give(held) }()
	claimers := 0
	for page, err := range c.Claimers(ctx) {
		if err != nil {
			return err
		}
		size := cap(body) + pageSize(page)
		if err := x.h.budget.resize(held, size); err != nil {
			return err
		}
		held = size
		for _, user := range page {
			body = appendUser(body, claimers, user)
			claimers++
			if len(body) >= chunkSize {
				if err := x.sendPart(body); err != nil {
					return err
				}
				body = body[:0]
			}
		}
	}
	if claimers != c.Amount-c.RemainingAmount {
		return fmt.Errorf("coupon %q has %d claimers, but a remaining amount of %d of %d", c.Name, claimers, c.RemainingAmount, c.Amount)
	}
	return x.sendPart(append(body, couponTail...))
}

// The body of a coupon is its head, its users separated by commas, and couponTail.

// encodeCoupon appends a coupon with all claimers in memory to body.
func encodeCoupon(body []byte, c *pgstore.Coupon, users []string) []byte {
	body = appendCouponHead(body, c)
	for i, user := range users {
		body = appendUser(body, i, user)
	}
	return append(body, couponTail...)
}

// couponSize returns the size of what encodeCoupon appends, or slightly more.
func couponSize(c *pgstore.Coupon, users []string) int {
	encoded := encodeCoupon(make([]byte, 0, 2*maxNameLength), c, nil)
	size := len(encoded)
	for _, user := range users {
		encoded = appendUser(encoded[:0], 1, user)
		size += len(encoded)
	}
	return size
}

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
