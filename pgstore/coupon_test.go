package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"scalable-coupon-system/internal/faultproxy"
	"scalable-coupon-system/internal/wait"
)

func TestCreateCoupon_statuses(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.wantCreate(t, "a", 1, Created)
	s.wantCreate(t, "a", 2, CouponExists)
	s.wantCreate(t, "most", 2147483647, Created)
	coupon, found, err := s.Coupon(t.Context(), "a")
	if err != nil || !found || coupon.Amount != 1 || coupon.RemainingAmount != 1 {
		t.Errorf("coupon a: %v, %v, %v; want it as first created", coupon, found, err)
	}
}

func TestCoupon_notFound(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if coupon, found, err := s.Coupon(t.Context(), "nothing"); coupon != nil || found || err != nil {
		t.Errorf("%v, %v, %v", coupon, found, err)
	}
}

// fill creates a coupon that the users 1 to count have claimed.
func (s *testStore) fill(t *testing.T, coupon string, amount, count int) {
	t.Helper()
	s.exec(t, `insert into coupond.coupons (name, amount, remaining_amount) values ($1, $2::int, $2::int - $3::int)`, coupon, amount, count)
	s.exec(t, `
insert into coupond.claims (coupon_name, claim_number, user_id)
select $1, i, 'user ' || i
from generate_series(1, $2::int) as i`, coupon, count)
}

// readAll returns all user ids of a coupon, and the sizes of their pages.
func readAll(t *testing.T, c *Coupon) (users []string, pages []int) {
	t.Helper()
	for page, err := range c.Claimers(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		users = append(users, page...)
		pages = append(pages, len(page))
	}
	return users, pages
}

func TestCoupon_pages(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	for _, test := range []struct {
		count int
		whole bool
		pages []int
	}{
		{0, true, nil},
		{1, true, []int{1}},
		{pageSize, true, []int{pageSize}},
		{pageSize + 1, false, []int{firstPage, pageSize - firstPage + 1}},
		{firstPage + 2*pageSize + 5, false, []int{firstPage, pageSize, pageSize, 5}},
	} {
		name := fmt.Sprint("with ", test.count)
		s.fill(t, name, test.count+100, test.count)
		coupon, found, err := s.Coupon(t.Context(), name)
		if err != nil || !found {
			t.Fatal(found, err)
		}
		if coupon.Amount != test.count+100 || coupon.RemainingAmount != 100 {
			t.Errorf("%s: %d of %d remain", name, coupon.RemainingAmount, coupon.Amount)
		}
		if _, whole := coupon.Whole(); whole != test.whole {
			t.Errorf("%s: whole %v", name, whole)
		}

		// Later claims are not part of this state of the coupon.
		s.exec(t, `select coupond.claim_coupon('late', $1)`, name)
		users, pages := readAll(t, coupon)
		if !slices.Equal(pages, test.pages) {
			t.Errorf("%s: pages have %v ids, want %v", name, pages, test.pages)
		}
		for i, user := range users {
			if want := fmt.Sprint("user ", i+1); user != want {
				t.Fatalf("%s: claimer %d is %q, want %q", name, i+1, user, want)
			}
		}
		if len(users) != test.count {
			t.Errorf("%s: %d claimers, want %d", name, len(users), test.count)
		}
	}
}

// Pages of long ids are smaller: only the ids of a page and their number are bounded, not the
// coupon.
func TestCoupon_pagesOfLongIDs(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	const count = 9_000
	s.exec(t, `insert into coupond.coupons (name, amount, remaining_amount) values ('long', $1::int, 0)`, count)
	s.exec(t, `
insert into coupond.claims (coupon_name, claim_number, user_id)
select 'long', i, lpad(i::text, 255, 'ü')
from generate_series(1, $1::int) as i`, count)
	coupon, _, err := s.Coupon(t.Context(), "long")
	if err != nil {
		t.Fatal(err)
	}
	if _, whole := coupon.Whole(); whole {
		t.Error("the coupon is in memory as a whole")
	}
	read := 0
	for page, err := range coupon.Claimers(t.Context()) {
		size := 0
		for _, user := range page {
			size += len(user)
		}
		if err != nil || size > pageBytes {
			t.Errorf("a page has %d bytes, %v; want at most %d", size, err, pageBytes)
		}
		read += len(page)
	}
	if read != count {
		t.Errorf("read %d ids, want %d", read, count)
	}
}

// Readers hold no connection between two pages, and can stop at any page.
func TestCoupon_slowReadersHoldNoConnection(t *testing.T) {
	t.Parallel()
	s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = 2 })
	s.fill(t, "big", 3*pageSize, 3*pageSize)
	coupon, _, err := s.Coupon(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	var depth func(int)
	depth = func(n int) { // n more readers, each between two pages
		for page, err := range coupon.Claimers(t.Context()) {
			if err != nil || len(page) != firstPage {
				t.Errorf("%d ids, %v", len(page), err)
			}
			if acquired := s.pool.Stat().AcquiredConns(); acquired != 0 {
				t.Errorf("%d connections are held by readers, want 0", acquired)
			}
			if n > 0 {
				depth(n - 1)
			}
			return
		}
	}
	depth(5)
}

func TestCoupon_canceled(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.fill(t, "big", 3*pageSize, 3*pageSize)
	coupon, _, err := s.Coupon(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	pages := 0
	var last error
	for _, err := range coupon.Claimers(ctx) {
		pages, last = pages+1, err
		cancel()
	}
	if pages != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d pages, the last with %v; want the second to fail", pages, last)
	}

	// Canceled while the first page is read.
	s.proxy.Freeze()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	if _, _, err := s.Coupon(ctx, "big"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled read: %v", err)
	}
	if took := time.Since(start); took > s.timeout/2 {
		t.Errorf("the canceled read returned after %v", took)
	}
	s.proxy.Thaw()
}

// A gap in the claims is an internal error.
func TestCoupon_missingClaim(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.fill(t, "c", 100, 10)
	s.exec(t, `delete from coupond.claims where coupon_name = 'c' and claim_number = 5`)
	s.wantReadError(t, "c", internal)
}

// Concurrent reads are shared, and each of them contains the claims answered before it started.
func TestCoupon_sharedReads(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	s.create(t, "c", 1000)
	var reading sync.Mutex
	queries := 0
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "get_coupon") {
			reading.Lock()
			queries++
			reading.Unlock()
			time.Sleep(5 * time.Millisecond) // long enough for other reads to join
		}
		return faultproxy.Pass
	})
	const clients, rounds = 16, 5
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for round := range rounds {
				user := fmt.Sprint(i, "/", round)
				s.wantClaim(t, user, "c", Claimed)
				if users := s.claimers(t, "c"); !slices.Contains(users, user) {
					t.Errorf("user %s is not among the claimers after their claim", user)
				}
			}
		})
	}
	all.Wait()
	if queries >= clients*rounds {
		t.Errorf("%d queries for %d reads; want fewer", queries, clients*rounds)
	}
}

// Many readers leave connections for claims, and the pool does not exceed its limit.
func TestPool_limit(t *testing.T) {
	t.Parallel()
	const maxConns = 4
	s := newTestStore(t, func(cfg *Config) { cfg.MaxConns = maxConns })
	s.create(t, "c", 1000)
	for i := range 50 {
		s.create(t, fmt.Sprint("r", i), 1)
	}
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "get_coupon") {
			time.Sleep(20 * time.Millisecond)
		}
		return faultproxy.Pass
	})
	stop := concurrently(t, 50, func(client, _ int) {
		if _, _, err := s.Coupon(t.Context(), fmt.Sprint("r", client)); err != nil {
			t.Error(err)
		}
		if client < 5 { // Ready uses one connection, and waits for it 1.5 s at most
			if _, err := s.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wait.For(t, "reads that use all read slots", func() bool { return len(s.reading.slots) == cap(s.reading.slots) })
	for i := range 30 {
		s.wantClaim(t, fmt.Sprint(i), "c", Claimed)
		if n := s.sessions(t); n > maxConns {
			t.Errorf("%d sessions, want at most %d", n, maxConns)
		}
		if held := int(s.pool.Stat().AcquiredConns()); held > maxConns-2 {
			t.Errorf("%d connections of the pool are in use, want at most %d", held, maxConns-2)
		}
	}
	stop()
}

// Between two pages a read pauses for as long as the last page took, but only while claims are in
// flight.
func TestPacedPages(t *testing.T) {
	t.Parallel()
	const pages, count, each = 5, firstPage + 4*pageSize, 10 * time.Millisecond
	for _, c := range []struct {
		name string
		busy bool
		want time.Duration
	}{
		{"no claims in flight", false, pages * each},
		{"claims in flight", true, (2*pages - 1) * each},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				upto, began := 0, time.Now()
				for _, err := range pacedPages(t.Context(), func() bool { return c.busy }, count, func(from, to int) ([]string, error) {
					if from != upto || to-from > pageSize {
						t.Errorf("page from %d to %d, want one from %d with at most %d ids", from, to, upto, pageSize)
					}
					upto = to
					time.Sleep(each)
					return make([]string, to-from), nil
				}) {
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Hour) // the time of the reader does not count
				}
				if took := time.Since(began) - pages*time.Hour; upto != count || took != c.want {
					t.Errorf("%d claimers in %v; want %d in %v", upto, took, count, c.want)
				}
			})
		})
	}

	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), each+each/2)
			defer cancel()
			began := time.Now()
			var last error
			for _, err := range pacedPages(ctx, func() bool { return true }, 2*pageSize, func(int, int) ([]string, error) {
				if ctx.Err() == nil {
					time.Sleep(each)
				}
				return nil, ctx.Err()
			}) {
				last = err
			}
			if took := time.Since(began); took != each+each/2 || !errors.Is(last, context.DeadlineExceeded) {
				t.Errorf("ended after %v with %v; want it to end when ctx ends, with its error", took, last)
			}
		})
	})
}
