package main

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
)

// A real service on a real PostgreSQL answers random sequences of creations, claims, concurrent
// claims and reads as the model does. rapid shrinks a failing sequence and prints its seed.
func TestModel(t *testing.T) {
	t.Parallel()
	_, c := serve(t)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		// Names that need escaping. Each sequence has its own coupons.
		names := []string{fmt.Sprintf("%d a/b", run), fmt.Sprintf("%d ünï 🎟", run), fmt.Sprintf("%d claim", run)}
		coupon, user := rapid.SampledFrom(names), rapid.SampledFrom([]string{"ann", "bob", "eve", " eve", "Eve", "%65ve", "joe", "名前"})
		m := modelTest{c, couponmodel.Coupons{}}
		claim := rapid.Custom(func(t *rapid.T) loadgen.Request {
			return loadgen.Request{User: user.Draw(t, "user"), Coupon: coupon.Draw(t, "coupon")}
		})
		// Short sequences: each step is a request or more, and names and stock are few.
		for _, step := range rapid.SliceOfN(rapid.SampledFrom([]string{"create", "claim", "claim concurrently", "read"}), 1, 16).Draw(t, "steps") {
			switch step {
			case "create":
				name, amount := coupon.Draw(t, "coupon"), rapid.IntRange(1, 6).Draw(t, "amount")
				m.want(t, fmt.Sprintf("create %q", name), m.Create(name, amount),
					m.post(t, "/api/coupons", fmt.Sprintf(`{"name":%q,"amount":%d}`, name, amount)))
			case "claim":
				r := claim.Draw(t, "claim")
				m.want(t, fmt.Sprintf("%+v", r), m.Claim(r.User, r.Coupon), m.post(t, "/api/coupons/claim", claimBody(r.User, r.Coupon)))
			case "claim concurrently":
				m.claimConcurrently(t, rapid.SliceOfN(claim, 2, 16).Draw(t, "claims"))
			case "read":
				m.read(t, coupon.Draw(t, "coupon"))
			}
		}
		for _, name := range names {
			m.read(t, name)
		}
	})
}

// modelTest is a client of the service and the expected state of its coupons.
type modelTest struct {
	client *client
	couponmodel.Coupons
}

func (m modelTest) post(t *rapid.T, path, body string) loadgen.Answer {
	t.Helper()
	a, err := m.client.do(http.MethodPost, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return a.Answer
}

func (m modelTest) want(t *rapid.T, what string, want couponmodel.Outcome, got loadgen.Answer) {
	t.Helper()
	if got != loadgen.AnswerFor(want) {
		t.Errorf("%s: %v, the model has %v", what, got, want)
	}
}

// claimConcurrently sends the claims at the same time. The service may process them in any order,
// so the model processes them in the order that the service shows: first the successful claims in
// the order of claimed_by, then the others. If any order explains the answers, this one does,
// because a claim that failed found the stock empty or an earlier claim of the same user.
func (m modelTest) claimConcurrently(t *rapid.T, claims []loadgen.Request) {
	t.Helper()
	var all sync.WaitGroup
	answers := make([]loadgen.Answer, len(claims))
	for i, r := range claims {
		all.Go(func() { answers[i] = m.post(t, "/api/coupons/claim", claimBody(r.User, r.Coupon)) })
	}
	all.Wait()

	position := map[loadgen.Request]int{} // in claimed_by
	shown := map[string]loadgen.Coupon{}
	for _, r := range claims {
		if _, seen := shown[r.Coupon]; seen || m.Coupons[r.Coupon].Amount == 0 {
			continue
		}
		shown[r.Coupon], _ = m.get(t, r.Coupon)
		for i, user := range shown[r.Coupon].ClaimedBy {
			position[loadgen.Request{User: user, Coupon: r.Coupon}] = i
		}
	}
	sequence := rangeOf(len(claims))
	rank := func(i int) int {
		if answers[i] == loadgen.Claimed {
			return position[claims[i]]
		}
		return math.MaxInt
	}
	slices.SortStableFunc(sequence, func(i, j int) int { return cmp.Compare(rank(i), rank(j)) })
	for _, i := range sequence {
		m.want(t, fmt.Sprintf("%+v, concurrently", claims[i]), m.Claim(claims[i].User, claims[i].Coupon), answers[i])
	}
	for name, reported := range shown {
		m.compare(t, name, reported)
	}
}

// read compares a coupon of the service with the model.
func (m modelTest) read(t *rapid.T, name string) {
	t.Helper()
	reported, answer := m.get(t, name)
	m.want(t, fmt.Sprintf("read %q", name), m.Coupons[name].Read(), answer)
	if answer == loadgen.ReadOK {
		m.compare(t, name, reported)
	}
}

func (m modelTest) compare(t *rapid.T, name string, reported loadgen.Coupon) {
	t.Helper()
	got, want := couponmodel.Coupon{Amount: reported.Amount, ClaimedBy: reported.ClaimedBy}, m.Coupons[name]
	if reported.Name != name || reported.Remaining != got.Remaining() || !got.Equal(want) {
		t.Errorf("read %q: %+v, the model has %+v", name, reported, want)
	}
}

func (m modelTest) get(t *rapid.T, name string) (coupon loadgen.Coupon, _ loadgen.Answer) {
	t.Helper()
	a, err := m.client.do(http.MethodGet, loadgen.CouponPath(name), "")
	if err == nil && a.Status == http.StatusOK {
		coupon, err = loadgen.ParseCoupon([]byte(a.body))
	}
	if err != nil {
		t.Fatal(err)
	}
	return coupon, a.Answer
}
