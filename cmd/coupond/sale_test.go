package main

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"scalable-coupon-system/bench/check"
	loadgen "scalable-coupon-system/bench/load"
	"scalable-coupon-system/internal/pgtest"
)

// claim is a claim of the user with this index.
type claim struct {
	user   int
	coupon string
}

// sell creates the coupons with the given stock, and sends all claims to each of the services over
// that number of connections. Every user claims every coupon at least once. It checks the answers
// with each other and with the coupons as each service reports them.
func sell(t *testing.T, stock, users, connections int, claims []claim, services ...*program) {
	t.Helper()
	checkers := map[string]*check.Checker{}
	for _, c := range claims {
		if checkers[c.coupon] == nil {
			checkers[c.coupon] = check.New(c.coupon, stock, loadgen.Users(users))
			services[0].client(t).create(t, c.coupon, stock)
		}
	}
	names := loadgen.Users(users)
	var runs []*loadgen.Run
	for _, p := range services {
		runs = append(runs, startPlan(t.Context(), t, loadgen.Plan{
			Address: p.address, Connections: connections, Requests: len(claims), Timeout: time.Minute,
			Request: func(i int) loadgen.Request {
				return loadgen.Request{User: names[claims[i].user], Coupon: claims[i].coupon}
			},
			Answered: func(i int, answer loadgen.Answer, r loadgen.Response) (bool, time.Duration) {
				checkers[claims[i].coupon].Record(names[claims[i].user], answer, r.Sent, r.Answered)
				return false, 0
			},
		}))
	}
	for _, run := range runs {
		report := run.Wait()
		t.Logf("%.0f claims a second: %v", float64(report.Total())/report.Elapsed.Seconds(), report.Answers)
		expectOnly(t, report, loadgen.Claimed, loadgen.AlreadyClaimed, loadgen.OutOfStock)
	}
	for coupon, checker := range checkers {
		for _, p := range services {
			if err := checker.Check(p.coupon(t, coupon)).Err(); err != nil {
				t.Errorf("%s: %v", coupon, err)
			}
		}
	}
}

// claimsOf returns a claim of coupon SALE for each user of the list.
func claimsOf[User int | int32](users []User) []claim {
	claims := make([]claim, len(users))
	for i, user := range users {
		claims[i] = claim{int(user), saleCoupon}
	}
	return claims
}

func TestSale_5CouponsFor50Users(t *testing.T) {
	t.Parallel()
	p, _ := serve(t)
	sell(t, 5, 50, 50, claimsOf(rand.Perm(50)), p)
}

func TestSale_oneUserClaims10Times(t *testing.T) {
	t.Parallel()
	p, _ := serve(t)
	sell(t, 5, 1, 10, claimsOf(make([]int, 10)), p)
}

// 50,000 users claim 1,000 coupons; one user in twenty claims twice. This service is built without
// the race detector, which the smaller sales have.
func TestSale_1000CouponsFor50000Users(t *testing.T) {
	t.Parallel()
	p := startCommand(t, environ(pgtest.New(t).URL, longTimeout), exec.Command(plainBinary(t), "serve")).ready(t)
	sell(t, 1_000, 50_000, 128, claimsOf(loadgen.Order(50_000, 5, 1)), p)
}

// 64 users claim 50 coupons, each in a different order. Calls that lock several coupons must lock
// them in one order.
func TestSale_manyCouponsInRandomOrder(t *testing.T) {
	t.Parallel()
	const users, coupons = 64, 50
	var orders [][]int
	for range users {
		orders = append(orders, rand.Perm(coupons))
	}
	// First the first claim of every user, then the second claim of every user, and so on.
	var claims []claim
	for i := range coupons {
		for user, order := range orders {
			claims = append(claims, claim{user, fmt.Sprint("coupon ", order[i])})
		}
	}
	p, _ := serve(t)
	sell(t, 20, users, users, claims, p)
}

// Two services share a database. Their batchers are independent of each other. Every user claims
// from both services at about the same time.
func TestSale_twoServices(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	var services []*program
	for range 2 {
		services = append(services, start(t, environ(database.URL), "serve").ready(t))
	}
	sell(t, 300, 1_000, 64, claimsOf(rand.Perm(1_000)), services...)
}
