package couponmodel_test

import (
	"testing"

	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

func TestCoupons(t *testing.T) {
	t.Parallel()
	s := couponmodel.Coupons{}
	for i, step := range []struct{ got, want load.Answer }{
		{s.Claim("u", "c"), load.CouponNotFound},
		{s["c"].Read(), load.CouponNotFound},
		{s.Create("c", 2), couponmodel.Created},
		{s.Create("c", 3), couponmodel.CouponExists},
		{s.Claim("u", "c"), load.Claimed},
		{s.Claim("u", "c"), load.AlreadyClaimed},
		{s.Claim("v", "c"), load.Claimed},
		{s.Claim("w", "c"), load.OutOfStock},
		{s.Claim("u", "c"), load.AlreadyClaimed},
		{s["c"].Read(), load.ReadOK},
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
	c, _ = c.Claim("a")
	b, _ := c.Claim("b")
	d, _ := c.Claim("d")
	if b.ClaimedBy[1] != "b" || d.ClaimedBy[1] != "d" || len(c.ClaimedBy) != 1 {
		t.Error(b, c, d)
	}
}
