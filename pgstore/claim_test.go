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

func TestClaim_statuses(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 1)
	s.wantClaim(t, "u1", "c", Claimed)
	s.wantClaim(t, "u1", "c", AlreadyClaimed) // takes precedence over out_of_stock
	s.wantClaim(t, "u2", "c", OutOfStock)
	s.wantClaim(t, "u1", "unknown", CouponNotFound)
	s.wantHolders(t, "c", "u1")
}

// A rejection is not cached: a coupon that does not exist may be created at any moment.
func TestClaim_rejectionIsNotCached(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	for _, coupon := range []string{"c", "d"} {
		s.wantClaim(t, "u", coupon, CouponNotFound)
	}
	s.create(t, "c", 1) // directly in the database, as another instance would
	s.wantCreate(t, "d", 1, Created)
	for _, coupon := range []string{"c", "d"} {
		s.wantClaim(t, "u", coupon, Claimed)
	}
}

func TestClaim_keepsNamesByteForByte(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	for _, name := range []string{
		"a/b", "%2F", " padded ", "\t tabs", `"quotes" and 'quotes'`, `back\slash`, "{a,b}", "{}", ",", "NULL", "🎟️ ❤️",
		"'; drop table claims; --", "claim", strings.Repeat("€", 255), "\u200b", "A", "a", "$1",
	} {
		s.wantCreate(t, name, 3, Created)
		s.wantClaim(t, name, name, Claimed)
		// A batch for many coupons uses the other function.
		claims := newClaims("another user", name, name, name, "u", "unknown")
		s.sendWithin(t, longTimeout, claims)
		wantStatuses(t, claims, Claimed, AlreadyClaimed, CouponNotFound)
		if users := s.claimers(t, name); users[0] != name {
			t.Errorf("%q: claimed by %q", name, users[0])
		}
	}
}

// The constants of this package and the enums of the database have the same labels in the same
// order.
func TestStatuses_equalEnums(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
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
		if got, err := parseClaimStatus([]byte(status)); got != status || err != nil {
			t.Errorf("label %q: parsed as %q, %v", status, got, err)
		}
	}
	for _, status := range CreateStatuses() {
		creations = append(creations, string(status))
	}
	if got := labels("coupond.claim_status"); !slices.Equal(got, claims) {
		t.Errorf("claim_status has the labels %q, ClaimStatuses returns %q", got, claims)
	}
	if got := labels("coupond.create_status"); !slices.Equal(got, creations) {
		t.Errorf("create_status has the labels %q, CreateStatuses returns %q", got, creations)
	}
	if status, err := parseClaimStatus([]byte("postponed")); status != "" || err == nil {
		t.Errorf("unknown label: parsed as %q, %v; want an error", status, err)
	}
}

func TestSendBatch_oneCoupon(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 3)
	claims := newClaims("a", "c", "b", "c", "a", "c", "d", "c", "e", "c", "b", "c")
	s.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, Claimed, Claimed, AlreadyClaimed, Claimed, OutOfStock, AlreadyClaimed)
	s.wantHolders(t, "c", "a", "b", "d")
}

func TestSendBatch_manyCoupons(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "x", 1)
	s.create(t, "y", 2)
	claims := newClaims("a", "y", "a", "x", "b", "x", "a", "y", "b", "y", "c", "y", "a", "nothing", "a", "x")
	s.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, Claimed, Claimed, OutOfStock, AlreadyClaimed, Claimed, OutOfStock, CouponNotFound, AlreadyClaimed)
	s.wantHolders(t, "x", "a")
	s.wantHolders(t, "y", "a", "b")
}

func TestClaim_concurrent(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	var answers recorder
	var clients sync.WaitGroup
	for i := range 50 {
		clients.Go(func() {
			user := fmt.Sprint("u", i)
			status, err := s.Claim(t.Context(), user, "c")
			record(&answers, user, status, err)
		})
	}
	clients.Wait()
	answers.wantTrue(t, s.holders(t, "c"), 5)
	if n := answers.count(string(Claimed)); n != 5 {
		t.Errorf("%d users have claimed a stock of 5", n)
	}
}

func TestClaim_canceledBeforeSending(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	sent := s.watchWrites()
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
		t.Error("a claim or a creation was sent")
	}
}

// The functions check their arguments. What they reject is an internal error, because the caller
// has checked the arguments before.
func TestClaim_rejectedByPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	claims := newClaims("u1", "c", "", "c", "u2", "d", " ", "d")
	s.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, internal, internal, internal, internal)
	s.wantCreate(t, "e", 0, internal)
	s.wantReadError(t, "", internal)
	s.wantHolders(t, "c")
}

// Every exec mode of pgx works. A transaction pooler between the store and PostgreSQL may need
// another than the default.
func TestStore_execModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newTestStore(t, func(cfg *Config) { cfg.URL = withParam(cfg.URL, "default_query_exec_mode", mode) })
			wantReady(t, s.Store)
			for _, coupon := range []string{"x", "y"} {
				s.wantCreate(t, coupon, 2, Created)
			}
			one := newClaims("a", "x", `b,"}`, "x", "c", "x")
			s.sendWithin(t, longTimeout, one)
			wantStatuses(t, one, Claimed, Claimed, OutOfStock)
			many := newClaims("a", "y", "c", "x", "a", "x", "a", "no")
			s.sendWithin(t, longTimeout, many)
			wantStatuses(t, many, Claimed, OutOfStock, AlreadyClaimed, CouponNotFound)
			if users := s.claimers(t, "x"); !slices.Equal(users, []string{"a", `b,"}`}) {
				t.Errorf("claimers are %q", users)
			}
		})
	}
}

// A function that was reinstalled, or that returns too few statuses, does not affect the claims
// that it answered.
func TestSendBatch_incompleteAnswer(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 5)
	s.wantClaim(t, "u1", "c", Claimed)
	// Invalidates the statement that the connection has prepared.
	s.exec(t, `drop function coupond.claim_coupons(text[], text) cascade`)
	s.exec(t, `
create function coupond.claim_coupons(p_users text[], p_coupon text)
returns coupond.claim_status[]
language sql
as $$ select array['claimed']::coupond.claim_status[] $$`)
	claims := newClaims("u2", "c", "u3", "c")
	s.sendWithin(t, longTimeout, claims)
	wantStatuses(t, claims, Claimed, internal)
}
