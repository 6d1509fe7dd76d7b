package load

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Users returns n user ids: "user-0000001" and so on.
func Users(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("user-%07d", i+1)
	}
	return ids
}

// Order returns the shuffled order of requests, as indexes of users from 0 to users-1: each user
// once, and percent of them (0 to 100) a second time.
func Order(users int, percent float64, seed uint64) []int32 {
	requests := users + int(math.Round(float64(users)*percent/100))
	first := Evenly(users, users, seed)
	return shuffle(append(first, first[:requests-users]...), seed+1)
}

// Evenly returns the coupon of each request, as indexes from 0 to coupons-1, shuffled: each coupon
// equally often (give or take one).
func Evenly(requests, coupons int, seed uint64) []int32 {
	indexes := make([]int32, requests)
	for i := range indexes {
		indexes[i] = int32(i % coupons)
	}
	return shuffle(indexes, seed)
}

func shuffle(s []int32, seed uint64) []int32 {
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}
