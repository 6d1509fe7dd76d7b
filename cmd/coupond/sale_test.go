package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"scalable-coupon-system/internal/pgtest"
)

// tally counts answers by what they were, "201" or "400 OUT_OF_STOCK".
type tally map[string]int

func (t tally) total() int {
	n := 0
	for _, count := range t {
		n += count
	}
	return n
}

func outcome(a answer) string {
	if a.code == "" {
		return strconv.Itoa(a.status)
	}
	return fmt.Sprintf("%d %s", a.status, a.code)
}

// order is one claim of a crowd, and what came of it.
type order struct {
	user, coupon string
	outcome      string
}

// rush lets clients claim orders, all at once: each client takes the next order when it has the answer to its last one.
// Which client asks which of the services is for the order's number to decide.
func rush(t *testing.T, orders []order, clients int, services ...*client) tally {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	gate := make(chan struct{})
	for range clients {
		wg.Go(func() {
			<-gate
			for i := range next {
				o := &orders[i]
				a, err := services[i%len(services)].claim(o.user, o.coupon)
				if err != nil {
					t.Errorf("%s claims %s: %v", o.user, o.coupon, err)
					continue
				}
				o.outcome = outcome(a)
			}
		})
	}
	close(gate)
	for i := range orders {
		next <- i
	}
	close(next)
	wg.Wait()

	counts := tally{}
	for _, o := range orders {
		counts[o.outcome]++
	}
	return counts
}

func (t tally) expect(tb testing.TB, want tally) {
	tb.Helper()
	maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(t, want) {
		tb.Errorf("the answers are %v, want %v", t, want)
	}
}

// winners lists the users who were told that they have the coupon.
func winners(orders []order, coupon string) []string {
	var users []string
	for _, o := range orders {
		if o.coupon == coupon && o.outcome == "201" {
			users = append(users, o.user)
		}
	}
	slices.Sort(users)
	return users
}

// checkCoupon holds what GET says of a coupon against what the users were told.
func checkCoupon(t *testing.T, c *client, coupon string, remaining int, claimedBy []string) {
	t.Helper()
	s := c.get(t, coupon)
	slices.Sort(s.ClaimedBy)
	if s.RemainingAmount != remaining || !slices.Equal(s.ClaimedBy, claimedBy) {
		t.Errorf("%s: %d remain, want %d; %d users have it, %d were told so", coupon, s.RemainingAmount, remaining, len(s.ClaimedBy), len(claimedBy))
	}
}

// sale starts a service on a database of its own, with clients keep-alive connections to it.
func sale(t *testing.T, clients int) *client {
	t.Helper()
	p := start(t, environ(pgtest.New(t).URL), "serve").listening(t)
	return newClient(t, p.url, clients)
}

func TestSaleOf5For50AtOnce(t *testing.T) {
	t.Parallel()
	c := sale(t, 50)
	c.create(t, "SALE", 5)
	orders := make([]order, 50)
	for i := range orders {
		orders[i] = order{user: fmt.Sprintf("user %d", i), coupon: "SALE"}
	}
	rush(t, orders, 50, c).expect(t, tally{"201": 5, "400 OUT_OF_STOCK": 45})
	checkCoupon(t, c, "SALE", 0, winners(orders, "SALE"))
}

func TestSaleToOneUser10TimesAtOnce(t *testing.T) {
	t.Parallel()
	c := sale(t, 10)
	c.create(t, "SALE", 5)
	orders := slices.Repeat([]order{{user: "greedy", coupon: "SALE"}}, 10)
	rush(t, orders, 10, c).expect(t, tally{"201": 1, "409 ALREADY_CLAIMED": 9})
	checkCoupon(t, c, "SALE", 4, []string{"greedy"})
}

// The big sale: 50,000 users for 1,000 pieces, one user in twenty asks twice.
func TestSaleOf1000To50000(t *testing.T) {
	const users, amount, repeats = 50_000, 1_000, 2_500
	c := sale(t, 128)
	c.create(t, "SALE", amount)
	orders := make([]order, 0, users+repeats)
	for i := range users {
		orders = append(orders, order{user: fmt.Sprintf("user %d", i), coupon: "SALE"})
		if i%(users/repeats) == 0 {
			orders = append(orders, orders[len(orders)-1])
		}
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same crowd each time; who comes first is the race's own matter
	random.Shuffle(len(orders), func(i, j int) { orders[i], orders[j] = orders[j], orders[i] })

	started := time.Now()
	counts := rush(t, orders, 128, c)
	took := time.Since(started)
	t.Logf("%d claims in %.1f s, %.0f a second: %v", len(orders), took.Seconds(), float64(len(orders))/took.Seconds(), counts)

	// A user who asked twice was told either that he has it and that he has it already, or twice that there is nothing left.
	outcomes := map[string]tally{}
	for _, o := range orders {
		if outcomes[o.user] == nil {
			outcomes[o.user] = tally{}
		}
		outcomes[o.user][o.outcome]++
	}
	lucky := 0
	for user, got := range outcomes {
		switch {
		case got["201"] == 1 && got["409 ALREADY_CLAIMED"] == got.total()-1:
			lucky += got.total() - 1
		case got["400 OUT_OF_STOCK"] == got.total():
		default:
			t.Errorf("%s was told %v", user, got)
		}
	}
	counts.expect(t, tally{"201": amount, "409 ALREADY_CLAIMED": lucky, "400 OUT_OF_STOCK": users + repeats - amount - lucky})
	checkCoupon(t, c, "SALE", 0, winners(orders, "SALE"))
}

// 64 clients go through 50 coupons, each in an order of its own: whoever locks several coupons must do so in one order.
func TestSaleOfManyCouponsInRandomOrder(t *testing.T) {
	t.Parallel()
	const clients, coupons, amount = 64, 50, 20
	c := sale(t, clients)
	for n := range coupons {
		c.create(t, fmt.Sprintf("coupon %d", n), amount)
	}
	orders := make([]order, 0, clients*coupons)
	for i := range clients {
		for _, n := range rand.Perm(coupons) {
			orders = append(orders, order{user: fmt.Sprintf("user %d", i), coupon: fmt.Sprintf("coupon %d", n)})
		}
	}
	// In turn: the first wish of everybody, the second of everybody, …
	turns := make([]order, 0, len(orders))
	for n := range coupons {
		for i := range clients {
			turns = append(turns, orders[i*coupons+n])
		}
	}
	rush(t, turns, clients, c).expect(t, tally{"201": coupons * amount, "400 OUT_OF_STOCK": coupons * (clients - amount)})
	for n := range coupons {
		coupon := fmt.Sprintf("coupon %d", n)
		checkCoupon(t, c, coupon, 0, winners(turns, coupon))
	}
}

// Two services share a database: their lanes know nothing of each other.
func TestSaleByTwoServices(t *testing.T) {
	t.Parallel()
	const clients, users, amount = 64, 1_000, 300
	database := pgtest.New(t)
	services := make([]*client, 2)
	for i := range services {
		p := start(t, environ(database.URL), "serve").listening(t)
		services[i] = newClient(t, p.url, clients)
	}
	services[0].create(t, "SALE", amount)
	// Everybody asks both, at about the same time.
	orders := make([]order, 0, 2*users)
	for i := range users {
		o := order{user: fmt.Sprintf("user %d", i), coupon: "SALE"}
		orders = append(orders, o, o)
	}
	counts := rush(t, orders, clients, services...)
	lucky := 0
	for i := 0; i < len(orders); i += 2 {
		pair := []string{orders[i].outcome, orders[i+1].outcome}
		slices.Sort(pair)
		switch {
		case slices.Equal(pair, []string{"201", "409 ALREADY_CLAIMED"}):
			lucky++
		case slices.Equal(pair, []string{"400 OUT_OF_STOCK", "400 OUT_OF_STOCK"}):
		default:
			t.Errorf("%s was told %v", orders[i].user, pair)
		}
	}
	if lucky != amount {
		t.Errorf("%d users have the coupon, want %d", lucky, amount)
	}
	counts.expect(t, tally{"201": amount, "409 ALREADY_CLAIMED": amount, "400 OUT_OF_STOCK": 2 * (users - amount)})
	for _, c := range services {
		checkCoupon(t, c, "SALE", 0, winners(orders, "SALE"))
	}
}
