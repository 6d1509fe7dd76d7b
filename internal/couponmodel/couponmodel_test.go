package couponmodel_test

import (
	"testing"

	"scalable-coupon-system/internal/couponmodel"
)

func TestCoupons(t *testing.T) {
	t.Parallel()
	s := couponmodel.Coupons{}
	for i, step := range []struct{ got, want couponmodel.Outcome }{
		{s.Claim("u", "c"), couponmodel.CouponNotFound},
		{s["c"].Read(), couponmodel.CouponNotFound},
		{s.Create("c", 2), couponmodel.Created},
		{s.Create("c", 3), couponmodel.CouponExists},
		{s.Claim("u", "c"), couponmodel.Claimed},
		{s.Claim("u", "c"), couponmodel.AlreadyClaimed},
		{s.Claim("v", "c"), couponmodel.Claimed},
		{s.Claim("w", "c"), couponmodel.OutOfStock},
		{s.Claim("u", "c"), couponmodel.AlreadyClaimed},
		{s["c"].Read(), couponmodel.Found},
	} {
		if step.got != step.want {
			t.Errorf("step %d: %v, want %v", i, step.got, step.want)
		}
	}
	if !s["c"].Equal(couponmodel.Coupon{Amount: 2, ClaimedBy: []string{"u", "v"}}) || s["c"].Remaining() != 0 {
		t.Errorf("%+v", s["c"])
	}
}

// Two histories that continue from one state must not share the memory of ClaimedBy.
func TestCoupon_Claim_sharesNoMemory(t *testing.T) {
	t.Parallel()
	c, _ := couponmodel.Coupon{}.Create(5)
	for _, user := range []string{"a", "b", "c"} { // the next append finds room
		c, _ = c.Claim(user)
	}
	d, _ := c.Claim("d")
	e, _ := c.Claim("e")
	if d.ClaimedBy[3] != "d" || e.ClaimedBy[3] != "e" || len(c.ClaimedBy) != 3 {
		t.Error(c, d, e)
	}
}
