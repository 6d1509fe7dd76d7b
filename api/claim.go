package api

import (
	"fmt"

	"scalable-coupon-system/pgstore"
)

// claim answers POST /api/coupons/claim.
func (h *Handler) claim(x *exchange) {
	var values [2]value
	if err := x.readObject(claimFields, values[:]); err != nil {
		x.fail(err)
		return
	}
	status, err := h.store.Claim(x.request.Context(), values[0].text, values[1].text)
	if err != nil {
		x.fail(err)
		return
	}
	if status == pgstore.Claimed {
		x.created()
		return
	}
	code, known := claimCodes[status]
	if !known {
		x.fail(fmt.Errorf("claim_status %q is unknown to this version of the service", status))
		return
	}
	x.answer(code)
}

// createCoupon answers POST /api/coupons.
func (h *Handler) createCoupon(x *exchange) {
	var values [2]value
	if err := x.readObject(createFields, values[:]); err != nil {
		x.fail(err)
		return
	}
	name, amount := values[0].text, values[1].number
	status, err := h.store.CreateCoupon(x.request.Context(), name, amount)
	if err != nil {
		x.fail(err)
		return
	}
	if status == pgstore.Created {
		x.Header().Set("Location", couponPath(name))
		x.created()
		return
	}
	code, known := createCodes[status]
	if !known {
		x.fail(fmt.Errorf("create_status %q is unknown to this version of the service", status))
		return
	}
	x.answer(code)
}
