package drill

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"scalable-coupon-system/bench/load"
)

func TestGapIsTheLongestTimeWithoutAGrantedClaim(t *testing.T) {
	t.Parallel()
	moment := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	granted := func(ms int) Reply { return Reply{Answer: load.Claimed, At: moment(ms)} }
	refused := func(ms int) Reply { return Reply{Answer: load.Unavailable, At: moment(ms)} }
	soldOut := func(ms int) Reply { return Reply{Answer: load.OutOfStock, At: moment(ms)} }
	tests := map[string]struct {
		told     []Reply
		from, to int
		want     int64 // ms
	}{
		// In no order: many connections note what they were told.
		"between two":                     {[]Reply{granted(5), granted(0), refused(70), granted(120), granted(20), granted(125)}, 0, 125, 100},
		"to the end, and granted later":   {[]Reply{granted(10), granted(90), granted(20)}, 0, 60, 40},
		"to the end, and refused later":   {[]Reply{granted(10), refused(90)}, 0, 60, 50},
		"from the beginning":              {[]Reply{granted(5), granted(80), granted(90)}, 30, 90, 50},
		"no longer than somebody wants":   {[]Reply{granted(10), refused(30)}, 0, 60, 20},
		"not when all is sold":            {[]Reply{granted(10), soldOut(40), soldOut(90)}, 0, 60, 10},
		"never granted":                   {[]Reply{refused(20), refused(70)}, 0, 60, 60},
		"longer ones before and after it": {[]Reply{granted(0), granted(100), granted(110), granted(120), granted(500)}, 100, 120, 10},
		"nobody came":                     {nil, 0, 60, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Gap(test.told, moment(test.from), moment(test.to)); got.Milliseconds() != test.want {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestNotClean(t *testing.T) {
	t.Parallel()
	if b := (Result{Acknowledged: 10, Unknown: 3, Failed: 5}); !b.OK() {
		t.Errorf("not clean: %s", b)
	}
	for _, b := range []Result{{Lost: 1}, {Doubled: 1}, {Oversold: 1}, {broken: []string{"a promise"}}} {
		if b.OK() {
			t.Errorf("clean: %s", b)
		}
	}
}

// shop is a service that sells, and that errs where it is told to.
type shop struct {
	mu     sync.Mutex
	stock  map[string]int
	sold   map[string][]string
	claims int
	err    func(claim int, user string) (status int, body string) // 0: serve it
	report func([]string) []string
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	var body struct {
		Name   string `json:"name"`
		Amount int    `json:"amount"`
		User   string `json:"user_id"`
		Coupon string `json:"coupon_name"`
	}
	if r.Method == http.MethodPost {
		if err := json.UnmarshalRead(r.Body, &body); err != nil {
			panic(err)
		}
	}
	say := func(status int, text string) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
	switch {
	case r.Method == http.MethodGet:
		name := strings.TrimPrefix(r.URL.Path, "/api/coupons/")
		sold := s.sold[name]
		if s.report != nil {
			sold = s.report(sold)
		}
		text, err := json.Marshal(map[string]any{"name": name, "amount": s.stock[name], "remaining_amount": s.stock[name] - len(sold), "claimed_by": sold})
		if err != nil {
			panic(err)
		}
		say(http.StatusOK, string(text))
	case r.URL.Path == "/api/coupons":
		s.stock[body.Name] = body.Amount
		say(http.StatusCreated, "")
	default:
		s.claims++
		if status, text := s.err(s.claims, body.User); status != 0 {
			say(status, text)
			return
		}
		if len(s.sold[body.Coupon]) == s.stock[body.Coupon] {
			say(http.StatusBadRequest, `{"error":"none is left","code":"OUT_OF_STOCK"}`)
			return
		}
		s.sold[body.Coupon] = append(s.sold[body.Coupon], body.User)
		say(http.StatusCreated, "")
	}
}

func TestSaleComparesWhatItsUsersWereTold(t *testing.T) {
	t.Parallel()
	const unavailable = `{"error":"not now","code":"UNAVAILABLE"}`
	never := func(int, string) (int, string) { return 0, "" }
	tests := map[string]struct {
		shop  *shop
		want  Result
		clean bool
	}{
		"exact": {&shop{err: never}, Result{Acknowledged: 36}, true},
		"refused, and served when it asks again": {
			&shop{err: func(claim int, _ string) (int, string) {
				if claim == 3 || claim == 4 {
					return http.StatusServiceUnavailable, unavailable
				}
				return 0, ""
			}},
			Result{Acknowledged: 36, Failed: 2}, true,
		},
		"told, and not listed": {
			&shop{err: never, report: func(sold []string) []string { return sold[1:] }},
			Result{Acknowledged: 36, Lost: 2}, false,
		},
		"listed twice": {
			&shop{err: never, report: func(sold []string) []string { return append([]string{sold[0]}, sold...) }},
			Result{Acknowledged: 36, Doubled: 2, Oversold: 2}, false,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.shop.stock, test.shop.sold = make(map[string]int), make(map[string][]string)
			server := httptest.NewServer(test.shop)
			defer server.Close()
			s, err := Open(t.Context(), Plan{
				Address: server.Listener.Addr().String(), Connections: 4, Rate: 400, Duration: 100 * time.Millisecond, Coupons: []string{"a", "b"},
			})
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Arriving() {
				t.Error("somebody is still to come")
			}
			got := Result{Acknowledged: b.Acknowledged, Unknown: b.Unknown, Lost: b.Lost, Doubled: b.Doubled, Oversold: b.Oversold, Failed: b.Failed}
			if got.String() != test.want.String() || got.Failed != test.want.Failed || b.OK() != test.clean {
				t.Errorf("clean: %v, %s", b.OK(), b)
			}
			if want := 40 + test.want.Failed; len(b.Replies) != want {
				t.Errorf("%d answers are kept, not %d", len(b.Replies), want)
			}
		})
	}
}

// A drill that is told to stop ends at once, and still removes what it started.
func TestSleepEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Sleep(ctx, time.Hour); err == nil {
		t.Error("no error")
	}
}
