package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/couponmodel"
	"scalable-coupon-system/internal/pgtest"
)

// Random sequences of creations, claims, crowds that claim at once, and reads get the answers of the model, over HTTP from a
// real service on a real PostgreSQL. rapid shrinks a sequence that does not to the shortest it finds, and prints its seed.
func TestModel(t *testing.T) {
	t.Parallel()
	p := start(t, environ(pgtest.New(t).URL), "serve").ready(t)
	c := newClient(t, p.url, 16)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		// Names that need care on their way, and each sequence has coupons of its own.
		names := []string{fmt.Sprintf("%d a/b", run), fmt.Sprintf("%d ünï 🎟", run), fmt.Sprintf("%d claim", run)}
		coupon, user := rapid.SampledFrom(names), rapid.SampledFrom([]string{"ann", "bob", "eve", " eve", "Eve", "%65ve", "joe", "名前"})
		m := modelled{c, couponmodel.Coupons{}}
		wish := rapid.Custom(func(t *rapid.T) order { return order{user: user.Draw(t, "user"), coupon: coupon.Draw(t, "coupon")} })
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				name, amount := coupon.Draw(t, "coupon"), rapid.IntRange(1, 6).Draw(t, "amount")
				m.want(t, fmt.Sprintf("create %q", name), m.Create(name, amount),
					m.post(t, "/api/coupons", fmt.Sprintf(`{"name":%q,"amount":%d}`, name, amount)))
			},
			"claim": func(t *rapid.T) {
				w := wish.Draw(t, "wish")
				m.want(t, fmt.Sprintf("%+v", w), m.Claim(w.user, w.coupon), m.post(t, "/api/coupons/claim", claimBody(w.user, w.coupon)))
			},
			"crowd": func(t *rapid.T) { m.crowd(t, rapid.SliceOfN(wish, 2, 16).Draw(t, "crowd")) },
			"read":  func(t *rapid.T) { m.read(t, coupon.Draw(t, "coupon")) },
		})
		for _, name := range names {
			m.read(t, name)
		}
	})
}

// modelled is the service beside its couponmodel.
type modelled struct {
	client *client
	couponmodel.Coupons
}

func (m modelled) post(t *rapid.T, path, body string) loadgen.Answer {
	t.Helper()
	a, err := m.client.do(http.MethodPost, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return loadgen.Answer{Status: a.status, Code: a.code}
}

func (m modelled) want(t *rapid.T, what string, want, got loadgen.Answer) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, and the model says %v", what, got, want)
	}
}

// crowd lets all of them claim at once. Any order may be theirs, so the model follows the one that the service shows: those who
// were granted a piece, in the order in which they stand in claimed_by, and then all the others. If any order at all explains
// the answers, this one does: who got none was told so when nothing was left, or when he had it.
func (m modelled) crowd(t *rapid.T, crowd []order) {
	t.Helper()
	var all sync.WaitGroup
	answers := make([]loadgen.Answer, len(crowd))
	for i, w := range crowd {
		all.Go(func() { answers[i] = m.post(t, "/api/coupons/claim", claimBody(w.user, w.coupon)) })
	}
	all.Wait()

	place := map[order]int{}
	shown := map[string]state{}
	for _, w := range crowd {
		if _, seen := shown[w.coupon]; seen || m.Coupons[w.coupon].Amount == 0 {
			continue
		}
		shown[w.coupon], _ = m.get(t, w.coupon)
		for i, user := range shown[w.coupon].ClaimedBy {
			place[order{user: user, coupon: w.coupon}] = i
		}
	}
	turns := make([]int, len(crowd))
	for i := range turns {
		turns[i] = i
	}
	granted := func(i int) bool { return answers[i] == loadgen.Claimed }
	slices.SortStableFunc(turns, func(i, j int) int {
		switch {
		case granted(i) && granted(j):
			return place[crowd[i]] - place[crowd[j]]
		case granted(i):
			return -1
		case granted(j):
			return 1
		}
		return 0
	})
	for _, i := range turns {
		m.want(t, fmt.Sprintf("%+v in a crowd", crowd[i]), m.Claim(crowd[i].user, crowd[i].coupon), answers[i])
	}
	for name, reported := range shown {
		m.compare(t, name, reported)
	}
}

// read holds what the service reports against the couponmodel.
func (m modelled) read(t *rapid.T, name string) {
	t.Helper()
	reported, answer := m.get(t, name)
	m.want(t, fmt.Sprintf("read %q", name), m.Coupons[name].Read(), answer)
	if answer == loadgen.ReadOK {
		m.compare(t, name, reported)
	}
}

func (m modelled) compare(t *rapid.T, name string, reported state) {
	t.Helper()
	got, want := couponmodel.Coupon{Amount: reported.Amount, ClaimedBy: reported.ClaimedBy}, m.Coupons[name]
	if reported.Name != name || reported.RemainingAmount != got.Remaining() || !got.Equal(want) {
		t.Errorf("read %q: %+v, and the model says %+v", name, reported, want)
	}
}

func (m modelled) get(t *rapid.T, name string) (state, loadgen.Answer) {
	t.Helper()
	a, err := m.client.do(http.MethodGet, loadgen.CouponPath(name), "")
	if err != nil {
		t.Fatal(err)
	}
	var body state
	if a.status == http.StatusOK {
		if err := json.Unmarshal([]byte(a.body), &body); err != nil {
			t.Fatal(err)
		}
	}
	return body, loadgen.Answer{Status: a.status, Code: a.code}
}
