package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scalable-coupon-system/api"
	"scalable-coupon-system/api/apitest"
	"scalable-coupon-system/bench/load"
	"scalable-coupon-system/pgstore"
)

func moment(ms int) time.Time { return time.UnixMilli(int64(ms)) }

func granted(coupon, ms int) reply    { return reply{coupon, load.Claimed, moment(ms)} }
func refused(coupon, ms int) reply    { return reply{coupon, load.Unavailable, moment(ms)} }
func unknown(coupon, ms int) reply    { return reply{coupon, load.OutcomeUnknown, moment(ms)} }
func outOfStock(coupon, ms int) reply { return reply{coupon, load.OutOfStock, moment(ms)} }

func TestGap(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		replies  []reply
		from, to int
		want     int64 // ms
	}{
		// Replies are in no particular order.
		"between two":                      {[]reply{granted(0, 5), granted(0, 0), refused(0, 70), granted(0, 120), granted(0, 20), granted(0, 125)}, 0, 125, 100},
		"to the end, and granted later":    {[]reply{granted(0, 10), granted(0, 90), granted(0, 20)}, 0, 60, 40},
		"from the beginning":               {[]reply{granted(0, 5), granted(0, 80), granted(0, 90)}, 30, 90, 50},
		"none after the sell-out":          {[]reply{granted(0, 10), outOfStock(0, 40), outOfStock(0, 90)}, 0, 60, 10},
		"longer gaps outside the interval": {[]reply{granted(0, 0), granted(0, 100), granted(0, 110), granted(0, 120), granted(0, 500)}, 100, 120, 10},
		"other coupons":                    {[]reply{granted(0, 10), granted(1, 20), granted(0, 30)}, 0, 60, 20},
		"no claims":                        {nil, 0, 60, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := gap(test.replies, func(coupon int) bool { return coupon == 0 }, moment(test.from), moment(test.to)); got.Milliseconds() != test.want {
				t.Errorf("%v, want %d ms", got, test.want)
			}
		})
	}
}

// Coupons 0 and 1 are affected, 2 and 3 are not.
func TestEvent_effect(t *testing.T) {
	t.Parallel()
	e := event{name: "shard2 killed", affects: func(coupon int) bool { return coupon < 2 }, begin: moment(2000), end: moment(4000)}
	before := []reply{granted(0, 1000), granted(3, 1500), granted(2, 1600), granted(0, 1900)}
	long := []reply{granted(0, 20_000), outOfStock(2, 20_000), refused(2, 20_000)} // after it
	tests := map[string]struct {
		event   event
		replies []reply
		want    string
		ok      bool
	}{
		"others are not affected": {
			e, []reply{unknown(0, 2500), refused(1, 2600), refused(1, 2700), granted(2, 2800), granted(3, 2900), granted(3, 3000), unknown(3, 3100), granted(1, 4500)},
			"shard2 killed in 2.0 s\n" +
				"  its coupons: no claim granted for 2.5 s; refused: 2 × 503 UNAVAILABLE, 1 × 503 OUTCOME_UNKNOWN\n" +
				"  other coupons: 1 claims per second granted before, 2 meanwhile; refused: 1 × 503 OUTCOME_UNKNOWN",
			true,
		},
		"others are affected": {
			e, []reply{refused(1, 2700), refused(2, 2800), granted(2, 4100)},
			"shard2 killed in 2.0 s\n" +
				"  its coupons: no claim granted for 3.0 s; refused: 1 × 503 UNAVAILABLE\n" +
				"  other coupons: 1 claims per second granted before, 0 meanwhile; refused: 1 × 503 UNAVAILABLE",
			false,
		},
		"a refusal that is not allowed": {
			event{name: "upgrade", affects: everyCoupon, failsNothing: true, begin: e.begin, end: e.end},
			[]reply{granted(0, 2100), refused(0, 2200), granted(0, 4900)},
			"upgrade in 2.0 s\n  its coupons: no claim granted for 2.8 s; refused: 1 × 503 UNAVAILABLE", false,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := test.event.effect(slices.Concat(before, test.replies, long), moment(0), time.Second)
			if got != test.want || ok != test.ok {
				t.Errorf("ok %v:\n%s\nwant ok %v:\n%s", ok, got, test.ok, test.want)
			}
		})
	}
}

// store refuses the claims with the numbers in refuse, and reports what report makes of the stored
// claims.
type store struct {
	*apitest.Store
	refuse []int64
	report func([]string) []string
	claims atomic.Int64
}

func (s *store) Claim(ctx context.Context, user, coupon string) (pgstore.ClaimStatus, error) {
	if slices.Contains(s.refuse, s.claims.Add(1)) {
		return "", pgstore.ErrUnavailable
	}
	return s.Store.Claim(ctx, user, coupon)
}

func (s *store) Coupon(ctx context.Context, name string) (*pgstore.Coupon, bool, error) {
	c, found, err := s.Store.Coupon(ctx, name)
	if !found || s.report == nil {
		return c, found, err
	}
	users, _ := c.Whole()
	return pgstore.NewCoupon(name, c.Amount, s.report(users)), true, nil
}

// newDrill returns a drill of 40 claims.
func newDrill(t *testing.T, s *store, out io.Writer) *drill {
	t.Helper()
	s.Store = apitest.NewStore()
	server := httptest.NewServer(api.New(s, api.Options{}))
	t.Cleanup(server.Close)
	return &drill{options{Rate: 400, Duration: 100 * time.Millisecond}, deployment{address: server.Listener.Addr().String()}, out}
}

func TestDrill_sell(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		store  *store
		want   string // in the output
		failed bool
	}{
		"exact":                          {&store{}, "all answers: 36 × 201, 4 × 400 OUT_OF_STOCK\nlost 0, duplicates 0, oversold 0\n", false},
		"refused, granted when repeated": {&store{refuse: []int64{3, 4}}, "all answers: 36 × 201, 4 × 400 OUT_OF_STOCK, 2 × 503 UNAVAILABLE\nlost 0, duplicates 0, oversold 0\n", false},
		"answered, not stored":           {&store{report: func(sold []string) []string { return sold[1:] }}, "lost 2, duplicates 0, oversold 0\n", true},
		"stored twice":                   {&store{report: func(sold []string) []string { return append([]string{sold[0]}, sold...) }}, "lost 0, duplicates 2, oversold 2\n", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			err := newDrill(t, test.store, &out).sell(t.Context(), []string{"a", "b"})
			if !strings.Contains(out.String(), test.want) || errors.Is(err, errFailed) != test.failed || !test.failed && err != nil {
				t.Errorf("%v\n%s\nwant in it\n%s", err, out.String(), test.want)
			}
		})
	}
}

// A sale that ends before an event does not show its effect.
func TestDrill_letHappen_tooLate(t *testing.T) {
	t.Parallel()
	d := newDrill(t, &store{}, io.Discard)
	s, err := d.open(t.Context(), []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	late := event{name: "too late", happen: func() error { <-s.run.Done(); return nil }}
	if err := d.letHappen(t.Context(), s, []event{late}); err == nil || !strings.Contains(err.Error(), "use a --duration longer than 100ms") {
		t.Error(err)
	}
}

// An interrupted drill stops at once, to remove its containers.
func TestWaitFor_endsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := waitFor(ctx, time.Hour, "nothing", func() bool { return false }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestLeader(t *testing.T) {
	t.Parallel()
	list := []member{{"pg1", "Quorum Standby", "streaming"}, {"pg2", "Leader", "running"}, {"pg3", "Sync Standby", "stopped"}}
	if primary, synchronous := leader(list); primary != "pg2" || synchronous != 1 {
		t.Errorf("%q with %d standbys, want pg2 with 1", primary, synchronous)
	}
	list[1].State = "starting"
	if primary, _ := leader(list); primary != "" {
		t.Errorf("%q, want none: the leader is still starting", primary)
	}
}
