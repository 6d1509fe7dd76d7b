package contestants_test

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/bench/race/contestants"
	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// serve runs a rival behind the HTTP layer of the service.
func serve(t *testing.T, rival contestants.Contestant) load.Service {
	t.Helper()
	cfg := contestants.Config{MaxConns: 8, Lanes: 1}
	switch rival.Name {
	default:
		cfg.PostgresURL = pgtest.New(t).URL
	case "ceiling":
	case "Redis":
		server, err := contestants.StartRedis(t.Context(), t.TempDir(), "always")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Stop)
		cfg.RedisAddress = server.Address
	}
	store, stop, err := rival.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	server := httptest.NewServer(api.New(store, api.Options{}))
	t.Cleanup(server.Close)
	return load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute}
}

// claim lets users claim coupon at once, and returns how often each answer came.
func claim(t *testing.T, service load.Service, coupon string, users ...string) string {
	t.Helper()
	run, err := load.Start(t.Context(), load.Plan{
		Address:     service.Address,
		Connections: 16,
		Requests:    len(users),
		Request:     func(i int) load.Request { return load.Request{User: users[i], Coupon: coupon} },
		Timeout:     time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	var answers []string
	for _, c := range run.Wait().Claims.Answers {
		answers = append(answers, fmt.Sprintf("%d × %v", c.Times, c.Answer))
	}
	slices.Sort(answers)
	return strings.Join(answers, ", ")
}

// Whatever a rival is faster or slower at, it must be at the same work.
func TestAllAnswerTheSame(t *testing.T) {
	for _, rival := range contestants.All() {
		t.Run(rival.Name, func(t *testing.T) {
			if rival.Name == "ceiling" {
				t.Skip("it gives to everybody, on purpose: see TestCeiling")
			}
			if rival.Name == "Redis" && contestants.FindRedis(t.Context()) == "" {
				t.Skip("this machine has no redis-server, and no Docker engine with " + contestants.RedisImage)
			}
			service := serve(t, rival)
			const coupon = "fünf/🎟"
			if err := service.Create(t.Context(), coupon, 5); err != nil {
				t.Fatal(err)
			}
			if err := service.Create(t.Context(), coupon, 6); !errors.Is(err, load.ErrCouponExists) {
				t.Errorf("creating it again: %v", err)
			}
			empty, err := service.Coupon(t.Context(), coupon)
			if err != nil || empty.Amount != 5 || empty.Remaining != 5 || len(empty.ClaimedBy) != 0 {
				t.Errorf("before the sale: %+v, %v", empty, err)
			}

			if got, want := claim(t, service, coupon, load.Users(50)...), "45 × 400 OUT_OF_STOCK, 5 × 201"; got != want {
				t.Errorf("50 users for 5: %s, want %s", got, want)
			}
			sold, err := service.Coupon(t.Context(), coupon)
			if err != nil {
				t.Fatal(err)
			}
			winners := slices.Compact(slices.Sorted(slices.Values(sold.ClaimedBy)))
			if sold.Name != coupon || sold.Amount != 5 || sold.Remaining != 0 || len(sold.ClaimedBy) != 5 || len(winners) != 5 {
				t.Fatalf("after the sale: %+v", sold)
			}

			if got, want := claim(t, service, coupon, winners...), "5 × 409 ALREADY_CLAIMED"; got != want {
				t.Errorf("the winners once more, now that nothing is left: %s, want %s", got, want)
			}
			if got, want := claim(t, service, coupon, "nobody"), "1 × 400 OUT_OF_STOCK"; got != want {
				t.Errorf("one who came too late: %s, want %s", got, want)
			}
			if got, want := claim(t, service, "unknown", "nobody"), "1 × 404 COUPON_NOT_FOUND"; got != want {
				t.Errorf("an unknown coupon: %s, want %s", got, want)
			}
			if _, err := service.Coupon(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "COUPON_NOT_FOUND") {
				t.Errorf("reading an unknown coupon: %v", err)
			}

			if err := service.Create(t.Context(), "plenty", 1000); err != nil {
				t.Fatal(err)
			}
			if got, want := claim(t, service, "plenty", slices.Repeat([]string{"greedy"}, 30)...), "1 × 201, 29 × 409 ALREADY_CLAIMED"; got != want {
				t.Errorf("one user 30 times at once: %s, want %s", got, want)
			}
			for _, user := range []string{"c", "a", "b"} {
				claim(t, service, "plenty", user)
			}
			plenty, err := service.Coupon(t.Context(), "plenty")
			if err != nil || plenty.Remaining != 996 || !slices.Equal(plenty.ClaimedBy, []string{"greedy", "c", "a", "b"}) {
				t.Errorf("after that, and three who came one after the other: %+v, %v", plenty, err)
			}
		})
	}
}

func TestCeiling(t *testing.T) {
	rival, err := contestants.Find("ceiling")
	if err != nil {
		t.Fatal(err)
	}
	service := serve(t, rival)
	if got, want := claim(t, service, "any", "a", "a", "b"), "3 × 201"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFind(t *testing.T) {
	for _, rival := range contestants.All() {
		if found, err := contestants.Find(rival.Name); err != nil || found.Method != rival.Method {
			t.Errorf("%s: %+v, %v", rival.Name, found, err)
		}
	}
	if _, err := contestants.Find("MySQL"); err == nil {
		t.Error("found a rival that is not there")
	}
}
