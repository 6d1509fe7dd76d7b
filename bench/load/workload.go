package load

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Users returns n user ids, "user-0000001" and so on. They share one piece of memory, so that millions cost the garbage
// collector nothing.
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

// Order returns in which order users come, as indexes from 0 to users-1: everybody once, and as many again as percent
// of the users say (0 to 100), different ones, at any later or earlier place.
func Order(users int, percent float64, seed uint64) []int32 {
	random := source(seed)
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

// Evenly returns which of so many coupons each request is for, as indexes from 0 to coupons-1: each as often as the
// others (give or take one), shuffled.
func Evenly(requests, coupons int, seed uint64) []int32 {
	which := make([]int32, requests)
	for i := range which {
		which[i] = int32(i % coupons)
	}
	shuffle(source(seed), which)
	return which
}

// Zipf returns which of so many coupons each request is for when some are far more popular than others: coupon k (from
// 0) with a likelihood proportional to 1/(k+1)^exponent. The exponent is more than 1; 1.1 is a shop's long tail.
func Zipf(requests, coupons int, exponent float64, seed uint64) []int32 {
	zipf := rand.NewZipf(source(seed), exponent, 1, uint64(coupons-1))
	which := make([]int32, requests)
	for i := range which {
		which[i] = int32(zipf.Uint64())
	}
	return which
}

func source(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, 0xc0ffee))
}

func shuffle(random *rand.Rand, s []int32) {
	random.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}
