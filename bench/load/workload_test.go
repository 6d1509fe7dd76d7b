package load

import (
	"slices"
	"testing"
)

func TestUsers(t *testing.T) {
	users := Users(1234)
	if len(users) != 1234 || users[0] != "user-0000001" || users[1233] != "user-0001234" {
		t.Errorf("%d users from %q to %q", len(users), users[0], users[len(users)-1])
	}
	if len(Users(0)) != 0 {
		t.Error("0 users are not empty")
	}
}

func TestOrder(t *testing.T) {
	const users = 1000
	order := Order(users, 5.04, 7)
	if len(order) != 1050 {
		t.Fatalf("%d requests, want 1,050", len(order))
	}
	times := make([]int, users)
	for _, u := range order {
		times[u]++
	}
	slices.Sort(times)
	if times[0] != 1 || times[949] != 1 || times[950] != 2 || times[999] != 2 {
		t.Errorf("requests by user: %v, want 950 users with one and 50 with two", times)
	}
	if slices.IsSorted(order) {
		t.Error("not shuffled")
	}
	if !slices.Equal(order, Order(users, 5.04, 7)) {
		t.Error("the same seed gave a different order")
	}
	if slices.Equal(order, Order(users, 5.04, 8)) {
		t.Error("another seed gave the same order")
	}
	if all := Order(users, 100, 7); len(all) != 2*users {
		t.Errorf("%d requests, want two for each user", len(all))
	}
}

func TestEvenly(t *testing.T) {
	indexes := Evenly(1001, 100, 7)
	times := make([]int, 100)
	for _, c := range indexes {
		times[c]++
	}
	slices.Sort(times)
	if times[0] != 10 || times[98] != 10 || times[99] != 11 {
		t.Errorf("requests by coupon: %v, want 10 or 11", times)
	}
	if !slices.Equal(indexes, Evenly(1001, 100, 7)) || slices.Equal(indexes, Evenly(1001, 100, 8)) {
		t.Error("the result does not depend on the seed alone")
	}
}
