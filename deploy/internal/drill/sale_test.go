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

func TestGap(t *testing.T) {
	t.Parallel()
	moment := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	granted := func(ms int) Reply { return Reply{Answer: load.Claimed, At: moment(ms)} }
	refused := func(ms int) Reply { return Reply{Answer: load.Unavailable, At: moment(ms)} }
	soldOut := func(ms int) Reply { return Reply{Answer: load.OutOfStock, At: moment(ms)} }
	tests := map[string]struct {
		replies  []Reply
		from, to int
		want     int64 // ms
	}{
		// Replies are in no particular order.
		"between two":                      {[]Reply{granted(5), granted(0), refused(70), granted(120), granted(20), granted(125)}, 0, 125, 100},
		"to the end, and granted later":    {[]Reply{granted(10), granted(90), granted(20)}, 0, 60, 40},
		"to the end, and refused later":    {[]Reply{granted(10), refused(90)}, 0, 60, 50},
		"from the beginning":               {[]Reply{granted(5), granted(80), granted(90)}, 30, 90, 50},
		"to the last refused claim":        {[]Reply{granted(10), refused(30)}, 0, 60, 20},
		"none after the sell-out":          {[]Reply{granted(10), soldOut(40), soldOut(90)}, 0, 60, 10},
		"never granted":                    {[]Reply{refused(20), refused(70)}, 0, 60, 60},
		"longer gaps outside the interval": {[]Reply{granted(0), granted(100), granted(110), granted(120), granted(500)}, 100, 120, 10},
		"no claims":                        {nil, 0, 60, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Gap(test.replies, moment(test.from), moment(test.to)); got.Milliseconds() != test.want {
				t.Errorf("%v, want %d ms", got, test.want)
			}
		})
	}
}

func TestResult_OK(t *testing.T) {
	t.Parallel()
	if r := (Result{Acknowledged: 10, Ambiguous: 3, Failed: 5}); !r.OK() {
		t.Errorf("not OK without a violation: %s", r)
	}
	for _, r := range []Result{{Lost: 1}, {Duplicates: 1}, {Oversold: 1}, {violations: []string{"of a guarantee"}}} {
		if r.OK() {
			t.Errorf("OK despite a violation: %s", r)
		}
	}
}

// fakeService is a coupon service in memory that returns errors, or reports claims, as a test
// wants.
type fakeService struct {
	mu     sync.Mutex
	stock  map[string]int
	sold   map[string][]string
	claims int
	err    func(claim int, user string) (status int, body string) // 0: serve it
	report func([]string) []string
}

func (s *fakeService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	respond := func(status int, text string) {
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
		respond(http.StatusOK, string(text))
	case r.URL.Path == "/api/coupons":
		s.stock[body.Name] = body.Amount
		respond(http.StatusCreated, "")
	default:
		s.claims++
		if status, text := s.err(s.claims, body.User); status != 0 {
			respond(status, text)
			return
		}
		if len(s.sold[body.Coupon]) == s.stock[body.Coupon] {
			respond(http.StatusBadRequest, `{"error":"out of stock","code":"OUT_OF_STOCK"}`)
			return
		}
		s.sold[body.Coupon] = append(s.sold[body.Coupon], body.User)
		respond(http.StatusCreated, "")
	}
}

func TestSale_checksAnswersAgainstStoredClaims(t *testing.T) {
	t.Parallel()
	const unavailable = `{"error":"unavailable","code":"UNAVAILABLE"}`
	noError := func(int, string) (int, string) { return 0, "" }
	tests := map[string]struct {
		service *fakeService
		want    Result
		ok      bool
	}{
		"exact": {&fakeService{err: noError}, Result{Acknowledged: 36}, true},
		"refused, granted when repeated": {
			&fakeService{err: func(claim int, _ string) (int, string) {
				if claim == 3 || claim == 4 {
					return http.StatusServiceUnavailable, unavailable
				}
				return 0, ""
			}},
			Result{Acknowledged: 36, Failed: 2}, true,
		},
		"answered, not stored": {
			&fakeService{err: noError, report: func(sold []string) []string { return sold[1:] }},
			Result{Acknowledged: 36, Lost: 2}, false,
		},
		"stored twice": {
			&fakeService{err: noError, report: func(sold []string) []string { return append([]string{sold[0]}, sold...) }},
			Result{Acknowledged: 36, Duplicates: 2, Oversold: 2}, false,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.service.stock, test.service.sold = make(map[string]int), make(map[string][]string)
			server := httptest.NewServer(test.service)
			defer server.Close()
			s, err := Open(t.Context(), Plan{
				Address: server.Listener.Addr().String(), Connections: 4, Rate: 400, Duration: 100 * time.Millisecond, Coupons: []string{"a", "b"},
			})
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.Running() {
				t.Error("the sale is running after Close")
			}
			got := Result{
				Acknowledged: r.Acknowledged, Ambiguous: r.Ambiguous, Failed: r.Failed,
				Lost: r.Lost, Duplicates: r.Duplicates, Oversold: r.Oversold,
			}
			if got.String() != test.want.String() || got.Failed != test.want.Failed || r.OK() != test.ok {
				t.Errorf("OK %v, %s; want OK %v, %s", r.OK(), r, test.ok, test.want)
			}
			if want := 40 + test.want.Failed; len(r.Replies) != want {
				t.Errorf("%d replies, want %d", len(r.Replies), want)
			}
		})
	}
}

// An interrupted drill must stop at once, to remove its containers.
func TestSleep_endsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Sleep(ctx, time.Hour); err == nil {
		t.Error("no error")
	}
}
