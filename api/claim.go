package api

// claim handles POST /api/coupons/claim.
func (h *Handler) claim(x *exchange) error {
	fields, err := x.readObject(claimSchema)
	if err != nil {
		return err
	}
	status, err := h.store.Claim(x.context(), fields[0].text, fields[1].text)
	if err != nil {
		return err
	}
	return sendOutcome(x, claimCodes, status)
}
