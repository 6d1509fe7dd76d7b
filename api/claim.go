package api

import (
	"fmt"

	"scalable-coupon-system/pgstore"
)

// claim handles POST /api/coupons/claim.
func (h *Handler) claim(x *exchange) {
	fields, err := x.readObject(claimSchema)
	if err != nil {
		x.fail(err)
		return
	}
	user, coupon := fields[0].text, fields[1].text
	status, err := h.store.Claim(x.context(), user, coupon)
	if err != nil {
		x.fail(err)
		return
	}
	if status == pgstore.Claimed {
		x.sendCreated()
		return
	}
	code, known := claimCodes[status]
	if !known {
		x.fail(fmt.Errorf("unknown claim_status %q: the database is newer than this service", status))
		return
	}
	x.sendCode(code)
}
