package db_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"scalable-coupon-system/internal/pgtest"
)

// Another session holds the strongest row lock on the coupons. Rejections must not wait for it.
func TestRejections_takeNoLock(t *testing.T) {
	t.Parallel()
	it := newIsolationTester(t, pgtest.New(t), "holder", "caller")
	it.control.create("stocked", 10)
	it.control.create("sold", 1)
	it.control.claim("owner", "stocked")
	it.control.claim("winner", "sold")

	const (
		claimCoupon  = "select coupond.claim_coupon('%s', '%s')::text"
		claimCoupons = "select coupond.claim_coupons(array['%s', '%[1]s'], '%s')::text"
		claimBatch   = "select string_agg(status::text, ',') from coupond.claim_batch(array['%s', 'winner'], array['%s', 'sold'], array[7, 8])"
	)
	for _, c := range []struct {
		call, user, coupon string
		want               string
		waits              bool
	}{
		{claimCoupon, "owner", "stocked", alreadyClaimed, false},
		{claimCoupon, "winner", "sold", alreadyClaimed, false},
		{claimCoupon, "loser", "sold", outOfStock, false},
		{claimCoupon, "loser", "none", couponNotFound, false},
		{claimCoupon, "newcomer", "stocked", claimed, true},

		{claimCoupons, "owner", "stocked", "{already_claimed,already_claimed}", false},
		{claimCoupons, "winner", "sold", "{already_claimed,already_claimed}", false},
		{claimCoupons, "loser", "sold", "{out_of_stock,out_of_stock}", false},
		{claimCoupons, "loser", "none", "{coupon_not_found,coupon_not_found}", false},
		{claimCoupons, "second newcomer", "stocked", "{claimed,already_claimed}", true},

		{claimBatch, "owner", "stocked", "already_claimed,already_claimed", false},
		{claimBatch, "winner", "sold", "already_claimed,already_claimed", false},
		{claimBatch, "loser", "sold", "out_of_stock,already_claimed", false},
		{claimBatch, "loser", "none", "coupon_not_found,already_claimed", false},
		{claimBatch, "third newcomer", "stocked", "claimed,already_claimed", true},

		{"select amount::text || '%s' from coupond.get_coupon('%s')", "", "stocked", "10", false},
		{"select c || '%s' from coupond.coupon_claimers('%s', 0, 1) as c", "", "stocked", "owner", false},
		{"select '%s' || coupond.create_coupon('%s', 1)", "", "stocked", couponExists, false},
	} {
		statement := fmt.Sprintf(c.call, c.user, c.coupon)
		it.run("holder:locks", "begin", "select count(*) from (select from coupond.coupons for update) as c")
		it.run("caller:calls", statement)
		want := []string{"holder:locks=2", "caller:calls=" + c.want}
		if c.waits {
			it.run("holder:commits", "commit")
			want = []string{"holder:locks=2", "caller:calls...", "holder:commits", "caller:calls=" + c.want}
		}
		equal(t, statement, it.trace, want)
		it.reset()
	}
	equal(t, "users of the coupon", it.control.claims("stocked"), []string{"owner", "newcomer", "second newcomer", "third newcomer"})
}

// A foreign key to coupons, from claims or any other table, takes a key share lock on the coupon. A
// claim does not change the key, so it does not wait for that lock.
func TestClaims_doNotWaitForForeignKeys(t *testing.T) {
	t.Parallel()
	it := newIsolationTester(t, pgtest.New(t), "order", "claim")
	it.control.create("lamp", 10)
	it.control.exec("create table coupond.orders (coupon_name text references coupond.coupons (name))")

	it.run("order:inserts", "begin", "insert into coupond.orders values ('lamp')")
	it.run("claim:claim_coupon", "select coupond.claim_coupon('ann', 'lamp')")
	it.run("claim:claim_coupons", "select coupond.claim_coupons(array['bob'], 'lamp')::text")
	it.run("claim:claim_batch", "select status from coupond.claim_batch(array['eve'], array['lamp'], array[1])")
	equal(t, "the trace", it.trace,
		[]string{"order:inserts", "claim:claim_coupon=claimed", "claim:claim_coupons={claimed}", "claim:claim_batch=claimed"})
	it.reset()
}

// locked_coupons returns the coupons that a claim would wait for. It waits for no row lock itself,
// nor for one that others wait for. It keeps none, not even until its transaction ends: claims
// would wait for it, and other calls would report it.
func TestLockedCoupons(t *testing.T) {
	t.Parallel()
	it := newIsolationTester(t, pgtest.New(t), "first", "second", "asker", "waiter", "next asker", "claimer")
	const ask = `select coalesce(string_agg(c, ',' order by c), 'nothing')
		from coupond.locked_coupons(array['none', 'held', 'sold', 'free', 'own', 'held']) as c`
	lock := func(mode string) string {
		return "select count(*) from (select from coupond.coupons where name in ('held', 'sold') for " + mode + ") as c"
	}
	for _, c := range []struct {
		first, second string // what the sessions do in their transactions
		locked        bool
	}{
		{"", "", false},
		{lock("update"), "", true},
		{lock("no key update"), "", true},
		{lock("share"), "", true},
		{lock("key share"), "", false}, // a foreign key
		{lock("share"), lock("share"), true},
		{lock("key share"), lock("no key update"), true},
		{lock("key share"), lock("key share"), false},
		{"savepoint s; " + lock("update") + "; release s", "", true},
		{"savepoint s; " + lock("update") + "; rollback to s", "", false},
		{"select coupond.claim_coupon('ann', 'held')", "", true},
		{"select coupond.claim_coupon('ann', 'sold')", "", false},
		{"select coupond.claim_batch(array['ann', 'ann'], array['held', 'sold'], array[1, 2])", "", true},
		{"update coupond.coupons set amount = 2, remaining_amount = 2 where name = 'held'", "", true},
		{"update coupond.coupons set name = 'renamed' where name = 'held'", "", true},
		{"delete from coupond.coupons where name = 'held'", "", true},
		{"select coupond.create_coupon('none', 1)", "", false},
	} {
		it.control.exec("truncate coupond.claims, coupond.coupons")
		for _, coupon := range []string{"held", "free", "own", "sold"} {
			it.control.create(coupon, 1)
		}
		it.control.claim("winner", "sold")

		want := []string{"asker:asks=nothing", "waiter:claims=claimed", "next asker:asks=held", "claimer:claims=claimed"}
		if c.locked {
			want[0], want[1] = "asker:asks=held", "waiter:claims..."
		}
		it.run("first:locks", append([]string{"begin"}, strings.Split(c.first, "; ")...)...)
		it.run("second:locks", append([]string{"begin"}, strings.Split(c.second, "; ")...)...)
		it.run("asker:asks", "begin", ask)
		it.run("waiter:claims", "begin", "select coupond.claim_coupon('eve', 'held')")
		it.run("next asker:asks", "begin", "select coupond.claim_coupon('joe', 'own')", ask)
		it.run("claimer:claims", "select coupond.claim_coupon('joe', 'free')")
		equal(t, fmt.Sprintf("first: %s; second: %s", c.first, c.second), it.trace[2:], want)
		it.reset()
	}
}

// A call gives back only the locks that it has taken itself, not those of its transaction.
func TestLockedCoupons_keepsTheLocksOfItsTransaction(t *testing.T) {
	t.Parallel()
	it := newIsolationTester(t, pgtest.New(t), "caller", "claimer")
	it.control.create("lamp", 10)
	for _, mode := range []string{"share", "no key update", "update"} {
		it.run("caller:locks", "begin", "select name from coupond.coupons for "+mode)
		it.run("caller:asks", "select coupond.locked_coupons(array['lamp'])")
		it.run("claimer:claims", "select coupond.claim_coupon('for "+mode+"', 'lamp')")
		it.run("caller:commits", "commit")
		equal(t, "for "+mode, it.trace, []string{
			"caller:locks=lamp", "caller:asks", "claimer:claims...", "caller:commits", "claimer:claims=claimed",
		})
		it.reset()
	}
}

// A call that rejects every claim writes nothing: it takes no transaction id, so it does not wait
// for a commit.
func TestRejections_writeNothing(t *testing.T) {
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
		t.Error("a successful claim writes nothing: this test proves nothing")
	}
	s.exec("rollback")

	// So a rejection works in a read-only transaction. (Not in claim_batch, because PostgreSQL refuses
	// its statements before it executes them.)
	s.exec("begin read only")
	equal(t, "read only", []string{s.claim("owner", "stocked"), s.claim("loser", "sold"), s.claim("loser", "none")},
		[]string{alreadyClaimed, outOfStock, couponNotFound})
	s.fails("25006", "select coupond.claim_coupon('newcomer', 'stocked')")
	s.exec("rollback")
	equal(t, "users of the coupon", s.claims("stocked"), []string{"owner"})
}

// Many sessions send batches over many coupons, each in a random order, alternating with batches
// for one coupon, and ask which coupons are locked. They never deadlock, and claims and stock are
// exact.
func TestClaimBatch_noDeadlock(t *testing.T) {
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

	// Each session has its own users, and some users are in all sessions.
	results := concurrently(t, several(t, 8, database, service), func(self int, s *session) map[string]int {
		random := rand.New(rand.NewPCG(uint64(self), 4)) // the same in every run
		won := map[string]int{}
		count := func(statuses, coupons []string) {
			for i, status := range statuses {
				if status == claimed {
					won[coupons[i]]++
				}
			}
		}
		for range rounds {
			var users, wanted []string
			for range 40 {
				user := fmt.Sprintf("shared %d", random.IntN(40))
				if random.IntN(2) == 0 {
					user = fmt.Sprintf("%d of %d", random.IntN(200), self)
				}
				users = append(users, user)
				wanted = append(wanted, coupons[random.IntN(len(coupons))])
			}
			count(s.claimBatch(users, wanted), wanted)
			coupon := coupons[random.IntN(len(coupons))]
			count(s.claimCoupons(users[:10], coupon), same(coupon, 10))
			list[string](s, "select coupond.locked_coupons($1)", wanted)
		}
		return won
	})

	for _, coupon := range coupons {
		won := 0
		for _, r := range results {
			won += r[coupon]
		}
		users := admin.claims(coupon) // which also checks the claim numbers
		if len(users) != won {
			t.Errorf("%s: %d claims are stored, but %d calls returned claimed", coupon, len(users), won)
		}
		if won != stock {
			t.Errorf("%s: only %d of %d were claimed: too few claims for this test", coupon, won, stock)
		}
	}
}

// 16 sessions claim one coupon with all three functions.
func TestClaimNumbers_noGaps(t *testing.T) {
	t.Parallel()
	const (
		each  = 60
		stock = 700
	)
	database := pgtest.New(t)
	admin := owner(t, database)
	admin.create("hot", stock)
	won := concurrently(t, several(t, 16, database, service), func(self int, s *session) (winners []string) {
		for i := 0; i < each; {
			users := names(fmt.Sprintf("%d/%d/%%d", self, i), 1+i%4)
			var statuses []string
			switch i % 3 {
			case 0:
				users = users[:1]
				statuses = []string{s.claim(users[0], "hot")}
			case 1:
				statuses = s.claimCoupons(users, "hot")
			default:
				statuses = s.claimBatch(users, same("hot", len(users)))
			}
			for j, status := range statuses {
				if status == claimed {
					winners = append(winners, users[j])
				}
			}
			i += len(users)
		}
		return winners
	})

	stored := admin.claims("hot")
	if len(stored) != stock {
		t.Errorf("%d of %d were claimed", len(stored), stock)
	}
	returned := slices.Concat(won...)
	slices.Sort(returned)
	slices.Sort(stored)
	equal(t, "users that got claimed, and stored users", returned, stored)
}
