package api

import (
	"fmt"

	"scalable-coupon-system/pgstore"
)

// claim answers POST /api/coupons/claim.
func (h *Handler) claim(x *exchange) {
	given, err := x.readObject(claimObject)
	if err != nil {
		x.fail(err)
		return
	}
	user, coupon := given[0].text, given[1].text
	status, err := h.store.Claim(x.context(), user, coupon)
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
	given, err := x.readObject(createObject)
	if err != nil {
		x.fail(err)
		return
	}
	name, amount := given[0].text, given[1].number
	status, err := h.store.CreateCoupon(x.context(), name, amount)
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
