package db_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// Somebody holds the rows of the coupons with the strongest lock there is. Whoever gets no coupon must not notice.
func TestRejectionsTakeNoLock(t *testing.T) {
	t.Parallel()
	s := newStage(t, pgtest.New(t), "holder", "caller")
	s.watcher.create("stocked", 10)
	s.watcher.create("sold", 1)
	s.watcher.claim("owner", "stocked")
	s.watcher.claim("winner", "sold")

	const (
		one   = "select public.claim_coupon('%s', '%s')::text"
		crowd = "select public.claim_coupons(array['%s', '%[1]s'], '%s')::text"
		batch = "select string_agg(status::text, ',') from public.claim_batch(array['%s', 'winner'], array['%s', 'sold'], array[7, 8])"
	)
	for _, c := range []struct {
		call, user, coupon string
		answer             string
		waits              bool
	}{
		{one, "owner", "stocked", alreadyClaimed, false},
		{one, "winner", "sold", alreadyClaimed, false},
		{one, "loser", "sold", outOfStock, false},
		{one, "loser", "none", couponNotFound, false},
		{one, "newcomer", "stocked", claimed, true},

		{crowd, "owner", "stocked", "{already_claimed,already_claimed}", false},
		{crowd, "winner", "sold", "{already_claimed,already_claimed}", false},
		{crowd, "loser", "sold", "{out_of_stock,out_of_stock}", false},
		{crowd, "loser", "none", "{coupon_not_found,coupon_not_found}", false},
		{crowd, "second newcomer", "stocked", "{claimed,already_claimed}", true},

		{batch, "owner", "stocked", "already_claimed,already_claimed", false},
		{batch, "winner", "sold", "already_claimed,already_claimed", false},
		{batch, "loser", "sold", "out_of_stock,already_claimed", false},
		{batch, "loser", "none", "coupon_not_found,already_claimed", false},
		{batch, "third newcomer", "stocked", "claimed,already_claimed", true},

		{"select amount::text || '%s' from public.get_coupon('%s')", "", "stocked", "10", false},
		{"select c || '%s' from public.coupon_claimers('%s', 0, 1) as c", "", "stocked", "owner", false},
		{"select '%s' || public.create_coupon('%s', 1)", "", "stocked", couponExists, false},
	} {
		statement := fmt.Sprintf(c.call, c.user, c.coupon)
		s.play("holder:locks", "begin", "select count(*) from (select from public.coupons for update) as c")
		s.play("caller:asks", statement)
		want := []string{"holder:locks=2", "caller:asks=" + c.answer}
		if c.waits {
			s.play("holder:commits", "commit")
			want = []string{"holder:locks=2", "caller:asks...", "holder:commits", "caller:asks=" + c.answer}
		}
		equal(t, statement, s.trace, want)
		s.clear()
	}
	equal(t, "who has it", s.watcher.claims("stocked"), []string{"owner", "newcomer", "second newcomer", "third newcomer"})
}

// A foreign key on coupons, also one of somebody else's table, locks the coupon for key share. A claim, which changes no key, goes
// on meanwhile.
func TestClaimsDoNotWaitForForeignKeys(t *testing.T) {
	t.Parallel()
	s := newStage(t, pgtest.New(t), "order", "claim")
	s.watcher.create("lamp", 10)
	s.watcher.exec("create table public.orders (coupon_name text references public.coupons (name))")

	s.play("order:refers", "begin", "insert into public.orders values ('lamp')")
	s.play("claim:one", "select public.claim_coupon('one', 'lamp')")
	s.play("claim:crowd", "select public.claim_coupons(array['crowd'], 'lamp')::text")
	s.play("claim:batch", "select status from public.claim_batch(array['batch'], array['lamp'], array[1])")
	equal(t, "what happens", s.trace, []string{"order:refers", "claim:one=claimed", "claim:crowd={claimed}", "claim:batch=claimed"})
	s.clear()
}

// A call of rejections only leaves PostgreSQL nothing to write down: no transaction id is taken, so there is no commit to wait
// for.
func TestRejectionsWriteNothing(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.create("stocked", 10)
	s.create("sold", 1)
	s.claim("owner", "stocked")
	s.claim("owner", "sold")
	const wrote = "select pg_catalog.pg_current_xact_id_if_assigned() is not null"

	s.exec("begin")
	equal(t, "claim_coupon", []string{s.claim("owner", "stocked"), s.claim("loser", "sold"), s.claim("loser", "none")},
		[]string{alreadyClaimed, outOfStock, couponNotFound})
	equal(t, "claim_coupons", s.claimCoupons([]string{"owner", "owner"}, "stocked"), []string{alreadyClaimed, alreadyClaimed})
	equal(t, "claim_batch", s.claimBatch([]string{"owner", "loser", "loser"}, []string{"stocked", "sold", "none"}),
		[]string{alreadyClaimed, outOfStock, couponNotFound})
	if get[bool](s, wrote) {
		t.Error("a rejection writes")
	}
	s.claim("newcomer", "stocked")
	if !get[bool](s, wrote) {
		t.Error("a claim writes nothing: this test proves nothing")
	}
	s.exec("rollback")

	// So a transaction that may only read can ask. (claim_batch cannot: PostgreSQL refuses its statements there at sight.)
	s.exec("begin read only")
	equal(t, "read only", []string{s.claim("owner", "stocked"), s.claim("loser", "sold"), s.claim("loser", "none")},
		[]string{alreadyClaimed, outOfStock, couponNotFound})
	if err := onlyError(s.Exec(bounded(t), "select public.claim_coupon('newcomer', 'stocked')")); sqlstate(t, err) != "25006" {
		t.Errorf("a claim in a read-only transaction: %v", err)
	}
	s.exec("rollback")
	equal(t, "who has it", s.claims("stocked"), []string{"owner"})
}

// Crowds over many coupons, each in an order of its own, from many sessions, with single claims and crowds of one coupon in
// between: nobody ever waits in a circle, and the numbers are exact.
func TestCrowdsOverManyCouponsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	const (
		rounds = 15
		stock  = 60
	)
	database := pgtest.New(t)
	admin := owner(t, database)
	coupons := names("c%02d", 12)
	for _, coupon := range coupons {
		admin.create(coupon, stock)
	}

	// Each session has users of its own, and some whom all sessions share.
	results := together(t, several(t, 8, database, service), func(ctx context.Context, me int, s *session) (map[string]int, error) {
		random := rand.New(rand.NewPCG(uint64(me), 4)) // drawn anew in the same way each time
		won := map[string]int{}
		count := func(statuses, coupons []string) {
			for i, status := range statuses {
				if status == claimed {
					won[coupons[i]]++
				}
			}
		}
		for round := range rounds {
			var users, wanted []string
			for range 40 {
				user := fmt.Sprintf("shared %d", random.IntN(40))
				if random.IntN(2) == 0 {
					user = fmt.Sprintf("%d of %d", random.IntN(200), me)
				}
				users = append(users, user)
				wanted = append(wanted, coupons[random.IntN(len(coupons))])
			}
			statuses, err := s.claimBatchErr(ctx, users, wanted)
			if err != nil {
				return nil, fmt.Errorf("session %d, round %d: claim_batch: %w", me, round, err)
			}
			count(statuses, wanted)

			coupon := coupons[random.IntN(len(coupons))]
			if statuses, err = s.claimCouponsErr(ctx, users[:10], coupon); err != nil {
				return nil, fmt.Errorf("session %d, round %d: claim_coupons: %w", me, round, err)
			}
			count(statuses, same(coupon, 10))
		}
		return won, nil
	})

	for _, coupon := range coupons {
		won := 0
		for _, r := range results {
			won += r[coupon]
		}
		users := admin.claims(coupon) // and the claim numbers have no gaps
		if len(users) != won {
			t.Errorf("%s: %d claims are stored, %d were answered", coupon, len(users), won)
		}
		if won != stock {
			t.Errorf("%s: %d of %d pieces are claimed: the crowd was too small to sell it out", coupon, won, stock)
		}
	}
}

// 16 sessions claim one coupon one by one, in crowds and in batches.
func TestClaimNumbersHaveNoGapsAfterASale(t *testing.T) {
	t.Parallel()
	const (
		each  = 60
		stock = 700
	)
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("hot", stock)
	won := together(t, several(t, 16, database, service), func(ctx context.Context, me int, s *session) ([]string, error) {
		var winners []string
		for i := 0; i < each; {
			users := names(fmt.Sprintf("%d/%d/%%d", me, i), 1+i%4)
			var statuses []string
			var err error
			switch i % 3 {
			case 0:
				statuses = []string{""}
				users = users[:1]
				statuses[0], err = ask[string](ctx, s.Conn, "select public.claim_coupon($1, 'hot')", users[0])
			case 1:
				statuses, err = s.claimCouponsErr(ctx, users, "hot")
			default:
				statuses, err = s.claimBatchErr(ctx, users, same("hot", len(users)))
			}
			if err != nil {
				return nil, err
			}
			for j, status := range statuses {
				if status == claimed {
					winners = append(winners, users[j])
				}
			}
			i += len(users)
		}
		return winners, nil
	})

	stored := admin.claims("hot")
	if len(stored) != stock {
		t.Errorf("%d of %d pieces are claimed", len(stored), stock)
	}
	answered := slices.Concat(won...)
	slices.Sort(answered)
	slices.Sort(stored)
	equal(t, "who was told so has it", answered, stored)
}
