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

// tally counts answers by their outcome: "201", "400 OUT_OF_STOCK" and so on.
type tally map[string]int

func (t tally) total() int {
	n := 0
	for _, count := range t {
		n += count
	}
	return n
}

// outcome returns the status and, for an error, the code of an answer.
func outcome(a answer) string {
	if a.code == "" {
		return strconv.Itoa(a.status)
	}
	return fmt.Sprintf("%d %s", a.status, a.code)
}

// claimRequest is a claim and its outcome.
type claimRequest struct {
	user, coupon string
	outcome      string
}

// claimAll sends the requests concurrently and sets their outcomes. Each of the clients sends the
// next request when it has the answer to its last one. The services get requests in turn.
func claimAll(t *testing.T, requests []claimRequest, clients int, services ...*client) tally {
	t.Helper()
	var wg sync.WaitGroup
	next := make(chan int)
	start := make(chan struct{})
	for range clients {
		wg.Go(func() {
			<-start
			for i := range next {
				r := &requests[i]
				a, err := services[i%len(services)].claim(r.user, r.coupon)
				if err != nil {
					t.Errorf("%s claims %s: %v", r.user, r.coupon, err)
					continue
				}
				r.outcome = outcome(a)
			}
		})
	}
	close(start)
	for i := range requests {
		next <- i
	}
	close(next)
	wg.Wait()

	counts := tally{}
	for _, r := range requests {
		counts[r.outcome]++
	}
	return counts
}

func (t tally) expect(tb testing.TB, want tally) {
	tb.Helper()
	maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(t, want) {
		tb.Errorf("answers: %v, want %v", t, want)
	}
}

// winners returns the users that got a 201 for the coupon, sorted.
func winners(requests []claimRequest, coupon string) []string {
	var users []string
	for _, r := range requests {
		if r.coupon == coupon && r.outcome == "201" {
			users = append(users, r.user)
		}
	}
	slices.Sort(users)
	return users
}

// checkCoupon compares the coupon returned by GET with the remaining amount and the sorted list of
// users that are expected.
func checkCoupon(t *testing.T, c *client, coupon string, remaining int, claimedBy []string) {
	t.Helper()
	s := c.get(t, coupon)
	slices.Sort(s.ClaimedBy)
	if s.RemainingAmount != remaining || !slices.Equal(s.ClaimedBy, claimedBy) {
		t.Errorf("%s: %d remain, want %d; %d users in claimed_by, %d got a 201", coupon, s.RemainingAmount, remaining, len(s.ClaimedBy), len(claimedBy))
	}
}

// startSale starts a service with a new database, and returns a client with the given number of
// connections.
func startSale(t *testing.T, clients int) *client {
	t.Helper()
	p := start(t, environ(pgtest.New(t).URL), "serve").listening(t)
	return newClient(t, p.url, clients)
}

func TestSale_5CouponsFor50Users(t *testing.T) {
	t.Parallel()
	c := startSale(t, 50)
	c.create(t, "SALE", 5)
	requests := make([]claimRequest, 50)
	for i := range requests {
		requests[i] = claimRequest{user: fmt.Sprintf("user %d", i), coupon: "SALE"}
	}
	claimAll(t, requests, 50, c).expect(t, tally{"201": 5, "400 OUT_OF_STOCK": 45})
	checkCoupon(t, c, "SALE", 0, winners(requests, "SALE"))
}

func TestSale_oneUserClaims10Times(t *testing.T) {
	t.Parallel()
	c := startSale(t, 10)
	c.create(t, "SALE", 5)
	requests := slices.Repeat([]claimRequest{{user: "greedy", coupon: "SALE"}}, 10)
	claimAll(t, requests, 10, c).expect(t, tally{"201": 1, "409 ALREADY_CLAIMED": 9})
	checkCoupon(t, c, "SALE", 4, []string{"greedy"})
}

// 50,000 users claim 1,000 coupons; one user in twenty claims twice.
func TestSale_1000CouponsFor50000Users(t *testing.T) {
	const users, amount, repeats = 50_000, 1_000, 2_500
	c := startSale(t, 128)
	c.create(t, "SALE", amount)
	requests := make([]claimRequest, 0, users+repeats)
	for i := range users {
		requests = append(requests, claimRequest{user: fmt.Sprintf("user %d", i), coupon: "SALE"})
		if i%(users/repeats) == 0 {
			requests = append(requests, requests[len(requests)-1])
		}
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same order of requests in every run
	random.Shuffle(len(requests), func(i, j int) { requests[i], requests[j] = requests[j], requests[i] })

	started := time.Now()
	counts := claimAll(t, requests, 128, c)
	took := time.Since(started)
	t.Logf("%d claims in %.1f s, %.0f a second: %v", len(requests), took.Seconds(), float64(len(requests))/took.Seconds(), counts)

	// Two claims of one user are answered with "claimed" and "already claimed", or both with "out
	// of stock".
	outcomes := map[string]tally{}
	for _, r := range requests {
		if outcomes[r.user] == nil {
			outcomes[r.user] = tally{}
		}
		outcomes[r.user][r.outcome]++
	}
	again := 0 // repeated claims of winners
	for user, got := range outcomes {
		switch {
		case got["201"] == 1 && got["409 ALREADY_CLAIMED"] == got.total()-1:
			again += got.total() - 1
		case got["400 OUT_OF_STOCK"] == got.total():
		default:
			t.Errorf("%s got %v", user, got)
		}
	}
	counts.expect(t, tally{"201": amount, "409 ALREADY_CLAIMED": again, "400 OUT_OF_STOCK": users + repeats - amount - again})
	checkCoupon(t, c, "SALE", 0, winners(requests, "SALE"))
}

// 64 users claim 50 coupons, each in a different order. Calls that lock several coupons must lock
// them in one order.
func TestSale_manyCouponsInRandomOrder(t *testing.T) {
	t.Parallel()
	const clients, coupons, amount = 64, 50, 20
	c := startSale(t, clients)
	for n := range coupons {
		c.create(t, fmt.Sprintf("coupon %d", n), amount)
	}
	requests := make([]claimRequest, 0, clients*coupons)
	for i := range clients {
		for _, n := range rand.Perm(coupons) {
			requests = append(requests, claimRequest{user: fmt.Sprintf("user %d", i), coupon: fmt.Sprintf("coupon %d", n)})
		}
	}
	// First the first claim of every user, then the second claim of every user, and so on.
	interleaved := make([]claimRequest, 0, len(requests))
	for n := range coupons {
		for i := range clients {
			interleaved = append(interleaved, requests[i*coupons+n])
		}
	}
	claimAll(t, interleaved, clients, c).expect(t, tally{"201": coupons * amount, "400 OUT_OF_STOCK": coupons * (clients - amount)})
	for n := range coupons {
		coupon := fmt.Sprintf("coupon %d", n)
		checkCoupon(t, c, coupon, 0, winners(interleaved, coupon))
	}
}

// Two services share a database. Their batchers are independent of each other.
func TestSale_twoServices(t *testing.T) {
	t.Parallel()
	const clients, users, amount = 64, 1_000, 300
	database := pgtest.New(t)
	services := make([]*client, 2)
	for i := range services {
		p := start(t, environ(database.URL), "serve").listening(t)
		services[i] = newClient(t, p.url, clients)
	}
	services[0].create(t, "SALE", amount)
	// Every user claims from both services at about the same time.
	requests := make([]claimRequest, 0, 2*users)
	for i := range users {
		r := claimRequest{user: fmt.Sprintf("user %d", i), coupon: "SALE"}
		requests = append(requests, r, r)
	}
	counts := claimAll(t, requests, clients, services...)
	winning := 0
	for i := 0; i < len(requests); i += 2 {
		pair := []string{requests[i].outcome, requests[i+1].outcome}
		slices.Sort(pair)
		switch {
		case slices.Equal(pair, []string{"201", "409 ALREADY_CLAIMED"}):
			winning++
		case slices.Equal(pair, []string{"400 OUT_OF_STOCK", "400 OUT_OF_STOCK"}):
		default:
			t.Errorf("%s got %v", requests[i].user, pair)
		}
	}
	if winning != amount {
		t.Errorf("%d users have the coupon, want %d", winning, amount)
	}
	counts.expect(t, tally{"201": amount, "409 ALREADY_CLAIMED": amount, "400 OUT_OF_STOCK": 2 * (users - amount)})
	for _, c := range services {
		checkCoupon(t, c, "SALE", 0, winners(requests, "SALE"))
	}
}
