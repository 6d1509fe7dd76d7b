package db_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"scalable-coupon-system/internal/couponmodel"
	"scalable-coupon-system/internal/pgtest"
)

// claim is one claim of a batch.
type claim struct{ user, coupon string }

// The claim rule is implemented three times: for one user, for a batch for one coupon, and for a
// batch over several coupons. Each returns the same statuses for random batches, and leaves the
// same tables.
func TestClaimFunctions_agree(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		s := &session{s.Conn, t}
		m := couponmodel.Coupons{}
		// Each function has its own coupons, which differ only in their prefix.
		functions := map[string]func([]claim) []string{
			fmt.Sprintf("%d one by one ", run): s.oneByOne,
			fmt.Sprintf("%d by coupon ", run):  s.byCoupon,
			fmt.Sprintf("%d in a batch ", run): func(batch []claim) []string { return s.claimBatch(split(batch)) },
		}
		prefixes := slices.Sorted(maps.Keys(functions))
		create := func(coupon string, amount int) {
			m.Create(coupon, amount)
			for _, prefix := range prefixes {
				s.create(prefix+coupon, amount)
			}
		}

		coupons, users := names("c%d", rapid.IntRange(1, 6).Draw(t, "coupons")), names("u%d", rapid.IntRange(1, 25).Draw(t, "users"))
		for _, coupon := range coupons {
			if rapid.IntRange(0, 5).Draw(t, "exists") > 0 {
				create(coupon, rapid.IntRange(1, 12).Draw(t, "amount"))
			}
		}
		for range rapid.IntRange(1, 4).Draw(t, "batches") {
			batch := drawBatch(t, users, coupons, 40)
			want := make([]string, len(batch))
			for i, c := range batch {
				want[i] = string(m.Claim(c.user, c.coupon))
			}
			for _, prefix := range prefixes {
				prefixed := make([]claim, len(batch))
				for i, c := range batch {
					prefixed[i] = claim{c.user, prefix + c.coupon}
				}
				equal(t, prefix, functions[prefix](prefixed), want)
			}
			// A coupon may be created between two batches.
			if coupon := rapid.SampledFrom(coupons).Draw(t, "new coupon"); m[coupon].Amount == 0 {
				create(coupon, rapid.IntRange(1, 3).Draw(t, "amount"))
			}
		}
		for name, coupon := range m {
			for _, prefix := range prefixes {
				if coupon.Amount > 0 {
					equal(t, "users of "+prefix+name, s.claims(prefix+name), coupon.ClaimedBy)
				}
			}
		}
	})
}

// drawBatch draws a batch of up to n claims.
func drawBatch(t *rapid.T, users, coupons []string, n int) []claim {
	t.Helper()
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) claim {
		return claim{rapid.SampledFrom(users).Draw(t, "user"), rapid.SampledFrom(coupons).Draw(t, "coupon")}
	}), 0, n).Draw(t, "batch")
}

// oneByOne calls claim_coupon for each claim, in one statement.
func (s *session) oneByOne(batch []claim) []string {
	s.t.Helper()
	users, coupons := split(batch)
	return list[string](s, `
		select coupond.claim_coupon(t.user_id, t.coupon)::text
		from unnest($1::text[], $2::text[]) with ordinality as t (user_id, coupon, i)
		order by t.i`, users, coupons)
}

// split returns the users and the coupons of the claims.
func split(batch []claim) (users, coupons []string) {
	users, coupons = []string{}, []string{} // nil would be null
	for _, c := range batch {
		users, coupons = append(users, c.user), append(coupons, c.coupon)
	}
	return users, coupons
}

func (s *session) byCoupon(batch []claim) []string {
	s.t.Helper()
	indexes, users := map[string][]int{}, map[string][]string{}
	for i, c := range batch {
		indexes[c.coupon], users[c.coupon] = append(indexes[c.coupon], i), append(users[c.coupon], c.user)
	}
	statuses := make([]string, len(batch))
	for coupon := range indexes {
		for i, status := range s.claimCoupons(users[coupon], coupon) {
			statuses[indexes[coupon][i]] = status
		}
	}
	return statuses
}

// While claim_batch waits for the lock of a coupon, other coupons are created, and some of them are
// claimed. The waiting call returns coupon_not_found for them, unless the user has the coupon by
// then or its stock is 0.
func TestClaimBatch_couponsCreatedWhileItWaits(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	it := newIsolationTester(t, d, "holder", "batch")
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		it := it.on(t)
		s := it.control
		defer it.reset()
		name := func(coupon string) string { return fmt.Sprintf("%d %s", run, coupon) }

		// m has the coupons that exist before, late those that are created while the batch waits.
		m := couponmodel.Coupons{}
		users, coupons := names("u%d", rapid.IntRange(1, 8).Draw(t, "users")), names("c%d", rapid.IntRange(2, 6).Draw(t, "coupons"))
		locked := rapid.SampledFrom(coupons).Draw(t, "locked")
		var late []string
		for _, coupon := range coupons {
			if coupon == locked || rapid.Bool().Draw(t, "exists") {
				amount := rapid.IntRange(1, 5).Draw(t, "amount")
				m.Create(coupon, amount)
				s.create(name(coupon), amount)
			} else if rapid.Bool().Draw(t, "late") {
				late = append(late, coupon)
			}
		}
		batch := append(drawBatch(t, users, coupons, 20), claim{"a user that waits for the lock", locked})

		want, userList, couponList := make([]string, len(batch)), make([]string, len(batch)), make([]string, len(batch))
		for i, c := range batch {
			want[i], userList[i], couponList[i] = string(m.Claim(c.user, c.coupon)), "'"+c.user+"'", "'"+name(c.coupon)+"'"
		}
		sql := fmt.Sprintf("select string_agg(status::text, ',') from coupond.claim_batch(array[%s], array[%s], array(select generate_series(1, %d)))",
			strings.Join(userList, ", "), strings.Join(couponList, ", "), len(batch))

		it.run("holder:locks", "begin", "select count(*) from (select from coupond.coupons where name = '"+name(locked)+"' for update) as c")
		it.run("batch:claims", sql)
		meanwhile := couponmodel.Coupons{}
		for _, coupon := range late {
			amount := rapid.IntRange(1, 3).Draw(t, "amount")
			meanwhile.Create(coupon, amount)
			s.create(name(coupon), amount)
			for range rapid.IntRange(0, 3).Draw(t, "claims meanwhile") {
				user := rapid.SampledFrom(users).Draw(t, "user")
				equal(t, "a claim meanwhile", []string{s.claim(user, name(coupon))}, []string{string(meanwhile.Claim(user, coupon))})
			}
		}
		it.run("holder:commits", "commit")

		for i, c := range batch {
			if coupon, isLate := meanwhile[c.coupon]; isLate {
				_, outcome := coupon.Claim(c.user)
				if outcome == couponmodel.Claimed {
					outcome = couponmodel.CouponNotFound
				}
				want[i] = string(outcome)
			}
		}
		equal(t, "the trace", it.trace,
			[]string{"holder:locks=1", "batch:claims...", "holder:commits", "batch:claims=" + strings.Join(want, ",")})
		for _, model := range []couponmodel.Coupons{m, meanwhile} {
			for coupon, c := range model {
				if c.Amount > 0 {
					equal(t, "users of "+coupon, s.claims(name(coupon)), c.ClaimedBy)
				}
			}
		}
	})
}
