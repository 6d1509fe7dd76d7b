package load

import (
	"slices"
	"testing"
)

func TestUsers(t *testing.T) {
	if users := Users(1234); len(users) != 1234 || users[0] != "user-0000001" || users[1233] != "user-0001234" {
		t.Errorf("%d users from %q to %q", len(users), users[0], users[len(users)-1])
	}
}

// frequencies returns how often each index below n occurs, sorted.
func frequencies(indexes []int32, n int) []int {
	times := make([]int, n)
	for _, i := range indexes {
		times[i]++
	}
	slices.Sort(times)
	return times
}

func TestOrder(t *testing.T) {
	const users = 1000
	order := Order(users, 5.04, 7)
	if want := append(slices.Repeat([]int{1}, 950), slices.Repeat([]int{2}, 50)...); !slices.Equal(frequencies(order, users), want) {
		t.Errorf("%d requests, want 950 users with one and 50 with two", len(order))
	}
	if slices.IsSorted(order) {
		t.Error("not shuffled")
	}
	if !slices.Equal(order, Order(users, 5.04, 7)) || slices.Equal(order, Order(users, 5.04, 8)) {
		t.Error("the order does not depend on the seed alone")
	}
	if all := Order(users, 100, 7); len(all) != 2*users {
		t.Errorf("%d requests, want two for each user", len(all))
	}
}

func TestEvenly(t *testing.T) {
	indexes := Evenly(1001, 100, 7)
	if want := append(slices.Repeat([]int{10}, 99), 11); !slices.Equal(frequencies(indexes, 100), want) {
		t.Error("the coupons do not get 10 or 11 requests each")
	}
	if !slices.Equal(indexes, Evenly(1001, 100, 7)) || slices.Equal(indexes, Evenly(1001, 100, 8)) {
		t.Error("the result does not depend on the seed alone")
	}
}
