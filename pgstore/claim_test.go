package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestClaimStatuses(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 1)
	for _, step := range []struct {
		user, coupon string
		want         ClaimStatus
	}{
		{"u1", "c", Claimed},
		{"u1", "c", AlreadyClaimed}, // told before the end of the stock
		{"u2", "c", OutOfStock},
		{"u1", "unknown", CouponNotFound},
	} {
		status, err := s.Claim(t.Context(), step.user, step.coupon)
		if status != step.want || err != nil {
			t.Errorf("%s claims %s: %q, %v; want %q", step.user, step.coupon, status, err, step.want)
		}
	}
	s.wantHolders(t, "c", "u1")
}

// What was rejected is asked anew each time: that there is no such coupon is true for a
// moment only.
func TestClaimOfACouponThatIsNew(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for _, coupon := range []string{"c", "d"} {
		if status, err := s.Claim(t.Context(), "u", coupon); status != CouponNotFound || err != nil {
			t.Errorf("before it is created: %q, %v", status, err)
		}
	}
	s.create(t, "c", 1) // past the store, as another instance does
	if _, err := s.CreateCoupon(t.Context(), "d", 1); err != nil {
		t.Error(err)
	}
	for _, coupon := range []string{"c", "d"} {
		if status, err := s.Claim(t.Context(), "u", coupon); status != Claimed || err != nil {
			t.Errorf("a coupon that was just created: %q, %v; want claimed", status, err)
		}
	}
}

// Names are carried byte for byte.
func TestClaimNames(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for _, name := range []string{
		"a/b", "%2F", " padded ", "\t tabs", `"quotes" and 'quotes'`, `back\slash`, "{a,b}", "{}", ",", "NULL", "🎟️ ❤️",
		"'; drop table claims; --", "claim", strings.Repeat("€", 255), "\u200b", "A", "a", "$1",
	} {
		if status, err := s.CreateCoupon(t.Context(), name, 3); status != Created || err != nil {
			t.Errorf("creating %q: %q, %v", name, status, err)
		}
		if status, err := s.Claim(t.Context(), name, name); status != Claimed || err != nil {
			t.Errorf("claiming %q: %q, %v", name, status, err)
		}
		// In a mixed crowd it goes by way of the other function.
		claims := crowd("somebody else", name, name, name, "u", "unknown")
		s.sendWithin(t, patience, claims)
		for i, want := range []ClaimStatus{Claimed, AlreadyClaimed, CouponNotFound} {
			if claims[i].status != want {
				t.Errorf("claim %d of %q in a crowd: %q, %v; want %q", i, name, claims[i].status, claims[i].err, want)
			}
		}
		coupon, found, err := s.Coupon(t.Context(), name)
		if err != nil || !found || coupon.Name != name {
			t.Fatalf("reading %q: %v, %v", name, found, err)
		}
		if users, _ := coupon.Whole(); users[0] != name {
			t.Errorf("%q is claimed by %q", name, users[0])
		}
	}
}

// The words of the database and of this package are the same, in the same order.
func TestEnumsEqualConstants(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	labels := func(enum string) []string {
		rows, err := s.owner.Query(t.Context(), `select unnest(enum_range(null::`+enum+`))::text`)
		if err != nil {
			t.Fatal(err)
		}
		labels, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return labels
	}
	var claims, creations []string
	for _, status := range ClaimStatuses() {
		claims = append(claims, string(status))
		if got, err := claimStatus([]byte(status)); got != status || err != nil {
			t.Errorf("the label %q is read as %q, %v", status, got, err)
		}
	}
	for _, status := range CreateStatuses() {
		creations = append(creations, string(status))
	}
	if got := labels("public.claim_status"); !slices.Equal(got, claims) {
		t.Errorf("claim_status has %q, ClaimStatuses %q", got, claims)
	}
	if got := labels("public.create_status"); !slices.Equal(got, creations) {
		t.Errorf("create_status has %q, CreateStatuses %q", got, creations)
	}
	if status, err := claimStatus([]byte("postponed")); status != "" || err == nil {
		t.Errorf("an unknown label is read as %q, %v", status, err)
	}
}

func TestSendOneCoupon(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 3)
	claims := crowd("a", "c", "b", "c", "a", "c", "d", "c", "e", "c", "b", "c")
	s.sendWithin(t, patience, claims)
	for i, want := range []ClaimStatus{Claimed, Claimed, AlreadyClaimed, Claimed, OutOfStock, AlreadyClaimed} {
		if claims[i].status != want {
			t.Errorf("claim %d, of %s: %q, %v; want %q", i, claims[i].user, claims[i].status, claims[i].err, want)
		}
	}
	s.wantHolders(t, "c", "a", "b", "d")
}

func TestSendManyCoupons(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "x", 1)
	s.create(t, "y", 2)
	claims := crowd("a", "y", "a", "x", "b", "x", "a", "y", "b", "y", "c", "y", "a", "nothing", "a", "x")
	s.sendWithin(t, patience, claims)
	for i, want := range []ClaimStatus{
		Claimed, Claimed, OutOfStock, AlreadyClaimed, Claimed, OutOfStock, CouponNotFound, AlreadyClaimed,
	} {
		if claims[i].status != want {
			t.Errorf("claim %d, of %s for %s: %q, %v; want %q",
				i, claims[i].user, claims[i].coupon, claims[i].status, claims[i].err, want)
		}
	}
	s.wantHolders(t, "x", "a")
	s.wantHolders(t, "y", "a", "b")
}

func TestSendNobody(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	sent := s.noticeCalls()
	s.send(t.Context(), nil)
	if sent() {
		t.Error("an empty crowd was sent")
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	var mu sync.Mutex
	counts := make(map[ClaimStatus]int)
	var clients sync.WaitGroup
	for i := range 50 {
		clients.Go(func() {
			status, err := s.Claim(t.Context(), fmt.Sprint("u", i), "c")
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			counts[status]++
		})
	}
	clients.Wait()
	if counts[Claimed] != 5 || counts[OutOfStock] != 45 {
		t.Errorf("50 users for 5: %v", counts)
	}
	if holders := s.holders(t, "c"); len(holders) != 5 {
		t.Errorf("held by %q", holders)
	}
}

// A caller who is gone before his claim is sent takes it with him.
func TestClaimOfACallerWhoHasLeft(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	sent := s.noticeCalls()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Claim(ctx, "u", "c"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("claim: %v", err)
	}
	if _, err := s.CreateCoupon(ctx, "d", 1); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("creation: %v", err)
	}
	s.wantHolders(t, "c")
	if sent() {
		t.Error("something was sent")
	}
}

// The server's functions guard themselves; what they refuse is a fault of ours.
func TestClaimThatPostgreSQLRefuses(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	claims := crowd("u1", "c", "", "c", "u2", "d", " ", "d")
	s.sendWithin(t, patience, claims)
	for _, c := range claims {
		if c.err == nil || errors.Is(c.err, ErrUnavailable) || errors.Is(c.err, ErrOutcomeUnknown) {
			t.Errorf("%q for %q: %q, %v; want a fault", c.user, c.coupon, c.status, c.err)
		}
	}
	if _, err := s.CreateCoupon(t.Context(), "e", 0); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("an amount of 0: %v; want a fault", err)
	}
	if _, _, err := s.Coupon(t.Context(), ""); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("an empty name: %v; want a fault", err)
	}
	s.wantHolders(t, "c")
}

// Every exec mode of pgx will do: which one is wanted depends on what stands between
// us and PostgreSQL (a pooler of transactions, say).
func TestExecModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, func(cfg *Config) { cfg.URL = withParam(cfg.URL, "default_query_exec_mode", mode) })
			wantReady(t, s.Store)
			for _, coupon := range []string{"x", "y"} {
				if status, err := s.CreateCoupon(t.Context(), coupon, 2); status != Created {
					t.Errorf("creating: %q, %v", status, err)
				}
			}
			for _, claims := range [][]*claim{
				crowd("a", "x", `b,"}`, "x", "c", "x"),
				crowd("a", "y", "c", "x", "a", "x", "a", "no"),
			} {
				s.sendWithin(t, patience, claims)
				want := []ClaimStatus{Claimed, Claimed, OutOfStock}
				if len(claims) == 4 {
					want = []ClaimStatus{Claimed, OutOfStock, AlreadyClaimed, CouponNotFound}
				}
				for i, c := range claims {
					if c.status != want[i] {
						t.Errorf("%s claims %s: %q, %v; want %q", c.user, c.coupon, c.status, c.err, want[i])
					}
				}
			}
			coupon, _, err := s.Coupon(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			if users, _ := coupon.Whole(); !slices.Equal(users, []string{"a", `b,"}`}) {
				t.Errorf("claimed by %q", users)
			}
		})
	}
}

// A function that was re-installed, or answers with too little, does not upset us.
func TestClaimAnswers(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 5)
	if status, err := s.Claim(t.Context(), "u1", "c"); status != Claimed {
		t.Fatal(status, err)
	}
	// The plan that the connection has cached is of no use any more.
	s.exec(t, `drop function public.claim_coupons(text[], text) cascade`)
	s.exec(t, `create function public.claim_coupons(p_users text[], p_coupon text) returns public.claim_status[]
		language sql as $$ select array['claimed']::public.claim_status[] $$`)
	claims := crowd("u2", "c", "u3", "c")
	s.sendWithin(t, patience, claims)
	if claims[0].status != Claimed || claims[0].err != nil {
		t.Errorf("the claim that was answered: %q, %v", claims[0].status, claims[0].err)
	}
	if claims[1].err == nil || claims[1].status != "" {
		t.Errorf("the claim that was not answered: %q, %v", claims[1].status, claims[1].err)
	}
}
