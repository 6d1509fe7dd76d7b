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

// serve runs a contestant behind the HTTP layer of the service.
func serve(t *testing.T, contestant contestants.Contestant) load.Service {
	t.Helper()
	cfg := contestants.Config{MaxConns: 8, ClaimConcurrency: 1}
	switch contestant.Name {
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
	store, stop, err := contestant.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	server := httptest.NewServer(api.New(store, api.Options{}))
	t.Cleanup(server.Close)
	return load.Service{Address: strings.TrimPrefix(server.URL, "http://"), Timeout: time.Minute}
}

// claim sends concurrent claims of users for coupon, and returns how often each answer came.
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

// Speed can be compared only between contestants that do the same work.
func TestContestants_sameAnswers(t *testing.T) {
	for _, contestant := range contestants.All() {
		t.Run(contestant.Name, func(t *testing.T) {
			if contestant.Name == "ceiling" {
				t.Skip("it answers every claim as claimed: see TestCeiling_answersEveryClaim")
			}
			if contestant.Name == "Redis" && contestants.FindRedis(t.Context()) == "" {
				t.Skip("this machine has no redis-server, and no Docker engine with " + contestants.RedisImage)
			}
			service := serve(t, contestant)
			const coupon = "fünf/🎟"
			if err := service.Create(t.Context(), coupon, 5); err != nil {
				t.Fatal(err)
			}
			if err := service.Create(t.Context(), coupon, 6); !errors.Is(err, load.ErrCouponExists) {
				t.Errorf("second creation: %v", err)
			}
			empty, err := service.Coupon(t.Context(), coupon)
			if err != nil || empty.Amount != 5 || empty.Remaining != 5 || len(empty.ClaimedBy) != 0 {
				t.Errorf("before the sale: %+v, %v", empty, err)
			}

			if got, want := claim(t, service, coupon, load.Users(50)...), "45 × 400 OUT_OF_STOCK, 5 × 201"; got != want {
				t.Errorf("50 users for 5 coupons: %s, want %s", got, want)
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
				t.Errorf("second claims of the winners, after the stock is gone: %s, want %s", got, want)
			}
			if got, want := claim(t, service, coupon, "late"), "1 × 400 OUT_OF_STOCK"; got != want {
				t.Errorf("a user without a coupon, after the stock is gone: %s, want %s", got, want)
			}
			if got, want := claim(t, service, "unknown", "late"), "1 × 404 COUPON_NOT_FOUND"; got != want {
				t.Errorf("an unknown coupon: %s, want %s", got, want)
			}
			if _, err := service.Coupon(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "COUPON_NOT_FOUND") {
				t.Errorf("reading an unknown coupon: %v", err)
			}

			if err := service.Create(t.Context(), "plenty", 1000); err != nil {
				t.Fatal(err)
			}
			if got, want := claim(t, service, "plenty", slices.Repeat([]string{"greedy"}, 30)...), "1 × 201, 29 × 409 ALREADY_CLAIMED"; got != want {
				t.Errorf("30 concurrent claims of one user: %s, want %s", got, want)
			}
			for _, user := range []string{"c", "a", "b"} {
				claim(t, service, "plenty", user)
			}
			plenty, err := service.Coupon(t.Context(), "plenty")
			if err != nil || plenty.Remaining != 996 || !slices.Equal(plenty.ClaimedBy, []string{"greedy", "c", "a", "b"}) {
				t.Errorf("after three more claims in sequence: %+v, %v", plenty, err)
			}
		})
	}
}

func TestCeiling_answersEveryClaim(t *testing.T) {
	contestant, err := contestants.Find("ceiling")
	if err != nil {
		t.Fatal(err)
	}
	service := serve(t, contestant)
	if got, want := claim(t, service, "any", "a", "a", "b"), "3 × 201"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestFind(t *testing.T) {
	for _, contestant := range contestants.All() {
		if found, err := contestants.Find(contestant.Name); err != nil || found.Method != contestant.Method {
			t.Errorf("%s: %+v, %v", contestant.Name, found, err)
		}
	}
	if _, err := contestants.Find("MySQL"); err == nil {
		t.Error("no error for an unknown name")
	}
}
