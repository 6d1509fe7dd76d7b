package load

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Users returns n user ids: "user-0000001" and so on. They share one string, so that millions of
// them cost the garbage collector nothing.
func Users(n int) []string {
	digits := max(7, len(strconv.Itoa(n)))
	size := len("user-") + digits
	var b strings.Builder
	b.Grow(n * size)
	for i := range n {
		fmt.Fprintf(&b, "user-%0*d", digits, i+1)
	}
	ids, all := make([]string, n), b.String()
	for i := range ids {
		ids[i] = all[i*size : (i+1)*size]
	}
	return ids
}

// Order returns the shuffled order of requests, as indexes of users from 0 to users-1: each user
// once, and percent of them (0 to 100) a second time.
func Order(users int, percent float64, seed uint64) []int32 {
	random := newRandom(seed)
	repeating := int(math.Round(float64(users) * percent / 100))
	order := make([]int32, users, users+repeating)
	for i := range order {
		order[i] = int32(i)
	}
	shuffle(random, order)
	order = append(order, order[:repeating]...)
	shuffle(random, order)
	return order
}

// Evenly returns the coupon of each request, as indexes from 0 to coupons-1, shuffled: each coupon
// equally often (give or take one).
func Evenly(requests, coupons int, seed uint64) []int32 {
	indexes := make([]int32, requests)
	for i := range indexes {
		indexes[i] = int32(i % coupons)
	}
	shuffle(newRandom(seed), indexes)
	return indexes
}

// Zipf returns the coupon of each request, as indexes from 0 to coupons-1, where some coupons are
// far more popular than others: coupon k has a probability proportional to 1/(k+1)^exponent. The
// exponent must be more than 1; 1.1 is the long tail of a shop.
func Zipf(requests, coupons int, exponent float64, seed uint64) []int32 {
	zipf := rand.NewZipf(newRandom(seed), exponent, 1, uint64(coupons-1))
	indexes := make([]int32, requests)
	for i := range indexes {
		indexes[i] = int32(zipf.Uint64())
	}
	return indexes
}

func newRandom(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, 0xc0ffee))
}

func shuffle(random *rand.Rand, s []int32) {
	random.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}
