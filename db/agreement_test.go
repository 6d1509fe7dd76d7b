package db_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"scalable-coupon-system/internal/pgtest"
)

// wish is one claim of a crowd.
type wish struct{ user, coupon string }

// model is what a claim is, once more, in the plainest words.
type model struct {
	stock map[string]int      // what is left of each coupon
	has   map[string][]string // who has each coupon, in claim order
}

func (m model) claim(w wish) string {
	left, exists := m.stock[w.coupon]
	switch {
	case !exists:
		return couponNotFound
	case slices.Contains(m.has[w.coupon], w.user):
		return alreadyClaimed
	case left == 0:
		return outOfStock
	}
	m.stock[w.coupon]--
	m.has[w.coupon] = append(m.has[w.coupon], w.user)
	return claimed
}

// The rule is said three times: for one user, for a crowd on one coupon, for a crowd over many coupons. Crowds drawn at random
// get the same answers from each, and leave the same tables.
func TestTheThreeWaysToClaimAgree(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		s := &session{s.Conn, t}
		m := model{map[string]int{}, map[string][]string{}}
		// Each way has coupons of its own, which differ in a prefix only.
		ways := map[string]func([]wish) []string{
			fmt.Sprintf("%d one by one ", run): s.oneByOne,
			fmt.Sprintf("%d by coupon ", run):  s.byCoupon,
			fmt.Sprintf("%d in a batch ", run): func(crowd []wish) []string { return s.inABatch(t, crowd) },
		}
		prefixes := slices.Sorted(maps.Keys(ways))
		create := func(coupon string, amount int) {
			m.stock[coupon] = amount
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
		for range rapid.IntRange(1, 4).Draw(t, "crowds") {
			crowd := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) wish {
				return wish{rapid.SampledFrom(users).Draw(t, "user"), rapid.SampledFrom(coupons).Draw(t, "coupon")}
			}), 0, 40).Draw(t, "crowd")
			want := make([]string, len(crowd))
			for i, w := range crowd {
				want[i] = m.claim(w)
			}
			for _, prefix := range prefixes {
				wishes := make([]wish, len(crowd))
				for i, w := range crowd {
					wishes[i] = wish{w.user, prefix + w.coupon}
				}
				equal(t, prefix, ways[prefix](wishes), want)
			}
			// And a coupon may appear between two crowds.
			if coupon := rapid.SampledFrom(coupons).Draw(t, "new coupon"); m.stock[coupon] == 0 && m.has[coupon] == nil {
				create(coupon, rapid.IntRange(1, 3).Draw(t, "amount"))
			}
		}
		for coupon := range m.stock {
			for _, prefix := range prefixes {
				equal(t, "who has "+prefix+coupon, s.claims(prefix+coupon), m.has[coupon])
			}
		}
	})
}

func (s *session) oneByOne(crowd []wish) []string {
	s.t.Helper()
	statuses := make([]string, len(crowd))
	for i, w := range crowd {
		statuses[i] = s.claim(w.user, w.coupon)
	}
	return statuses
}

func (s *session) byCoupon(crowd []wish) []string {
	s.t.Helper()
	places, users := map[string][]int{}, map[string][]string{}
	for i, w := range crowd {
		places[w.coupon], users[w.coupon] = append(places[w.coupon], i), append(users[w.coupon], w.user)
	}
	statuses := make([]string, len(crowd))
	for coupon := range places {
		for i, status := range s.claimCoupons(users[coupon], coupon) {
			statuses[places[coupon][i]] = status
		}
	}
	return statuses
}

// inABatch gives the claims positions in any order: the answers come under these, in the order of the claims.
func (s *session) inABatch(t *rapid.T, crowd []wish) []string {
	t.Helper()
	users, coupons, positions := []string{}, []string{}, []int32{}
	for i, w := range crowd {
		users, coupons, positions = append(users, w.user), append(coupons, w.coupon), append(positions, int32(i))
	}
	positions = append([]int32{}, rapid.Permutation(positions).Draw(t, "positions")...) // nil would be null
	rows, err := s.Query(bounded(t), "select * from public.claim_batch($1, $2, $3)", users, coupons, positions)
	if err != nil {
		t.Fatal(err)
	}
	statuses, answered := []string{}, []int32{}
	var position int32
	var status string
	if _, err = pgx.ForEachRow(rows, []any{&position, &status}, func() error {
		statuses, answered = append(statuses, status), append(answered, position)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	equal(t, "the positions", answered, positions)
	return statuses
}

// While claim_batch waits for a coupon, others appear, and some of these are claimed by others at once. For this call there are
// no such coupons, unless the user has them already or nothing is left of them.
func TestCouponsThatAppearWhileABatchWaits(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	stage := newStage(t, d, "holder", "batch")
	admin := stage.watcher
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		s := &session{admin.Conn, t}
		stage := *stage
		stage.t, stage.watcher = t, s
		defer stage.clear()
		name := func(coupon string) string { return fmt.Sprintf("%d %s", run, coupon) }

		// What is there before, m, and what appears while the batch waits.
		m := model{map[string]int{}, map[string][]string{}}
		users, coupons := names("u%d", rapid.IntRange(1, 8).Draw(t, "users")), names("c%d", rapid.IntRange(2, 6).Draw(t, "coupons"))
		locked := rapid.SampledFrom(coupons).Draw(t, "locked")
		var late []string
		for _, coupon := range coupons {
			if coupon == locked || rapid.Bool().Draw(t, "exists") {
				m.stock[coupon] = rapid.IntRange(1, 5).Draw(t, "amount")
				s.create(name(coupon), m.stock[coupon])
			} else if rapid.Bool().Draw(t, "late") {
				late = append(late, coupon)
			}
		}
		crowd := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) wish {
			return wish{rapid.SampledFrom(users).Draw(t, "user"), rapid.SampledFrom(coupons).Draw(t, "coupon")}
		}), 0, 20).Draw(t, "crowd")
		crowd = append(crowd, wish{"the one who makes it wait", locked})

		want := make([]string, len(crowd))
		for i, w := range crowd {
			want[i] = m.claim(w)
		}
		sql := "select string_agg(status::text, ',') from public.claim_batch(array["
		for i, w := range crowd {
			sql += []string{"", ", "}[min(i, 1)] + "'" + w.user + "'"
		}
		sql += "], array["
		for i, w := range crowd {
			sql += []string{"", ", "}[min(i, 1)] + "'" + name(w.coupon) + "'"
		}
		sql += fmt.Sprintf("], array(select generate_series(1, %d)))", len(crowd))

		stage.play("holder:locks", "begin", "select count(*) from (select from public.coupons where name = '"+name(locked)+"' for update) as c")
		stage.play("batch:claims", sql)
		others := model{map[string]int{}, map[string][]string{}}
		for _, coupon := range late {
			others.stock[coupon] = rapid.IntRange(1, 3).Draw(t, "amount")
			s.create(name(coupon), others.stock[coupon])
			for range rapid.IntRange(0, 3).Draw(t, "claims by others") {
				user := rapid.SampledFrom(users).Draw(t, "user")
				equal(t, "another's claim", []string{s.claim(user, name(coupon))}, []string{others.claim(wish{user, coupon})})
			}
		}
		stage.play("holder:commits", "commit")

		for i, w := range crowd {
			if left, appeared := others.stock[w.coupon]; appeared {
				switch {
				case slices.Contains(others.has[w.coupon], w.user):
					want[i] = alreadyClaimed
				case left == 0:
					want[i] = outOfStock
				default:
					want[i] = couponNotFound
				}
			}
		}
		answers := ""
		for i, status := range want {
			answers += []string{"", ","}[min(i, 1)] + status
		}
		equal(t, "what happens", stage.trace, []string{"holder:locks=1", "batch:claims...", "holder:commits", "batch:claims=" + answers})
		for coupon := range m.stock {
			equal(t, "who has "+coupon, s.claims(name(coupon)), m.has[coupon])
		}
		for coupon := range others.stock {
			equal(t, "who has "+coupon+", which is new", s.claims(name(coupon)), others.has[coupon])
		}
	})
}
