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
)

func TestCreateCoupon(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for _, step := range []struct {
		name   string
		amount int32
		want   CreateStatus
	}{
		{"a", 1, Created},
		{"a", 2, CouponExists},
		{"most", 2147483647, Created},
	} {
		status, err := s.CreateCoupon(t.Context(), step.name, step.amount)
		if status != step.want || err != nil {
			t.Errorf("creating %d of %s: %q, %v; want %q", step.amount, step.name, status, err, step.want)
		}
	}
	coupon, found, err := s.Coupon(t.Context(), "a")
	if err != nil || !found || coupon.Amount != 1 || coupon.RemainingAmount != 1 {
		t.Errorf("a: %v, %v, %v; want what the first creation made", coupon, found, err)
	}
}

func TestCouponNotThere(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	if coupon, found, err := s.Coupon(t.Context(), "nothing"); coupon != nil || found || err != nil {
		t.Errorf("%v, %v, %v", coupon, found, err)
	}
}

// fill puts a coupon on sale, of which the users 1 to count have a piece.
func (s *stand) fill(t *testing.T, coupon string, amount, count int) {
	t.Helper()
	s.exec(t, `insert into public.coupons (name, amount, remaining_amount) values ($1, $2::int, $2::int - $3::int)`, coupon, amount, count)
	s.exec(t, `insert into public.claims (coupon_name, claim_number, user_id)
		select $1, i, 'user ' || i from generate_series(1, $2::int) as i`, coupon, count)
}

// readAll reads all of a coupon's user ids, and the sizes of their pages.
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

func TestCouponPages(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	for _, test := range []struct {
		count int
		whole bool
		pages []int
	}{
		{0, true, nil},
		{1, true, []int{1}},
		{pageSize, true, []int{pageSize}},
		{pageSize + 1, false, []int{pageSize, 1}},
		{2*pageSize + 5, false, []int{pageSize, pageSize, 5}},
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

		// What is claimed from here on is not in this state of the coupon.
		s.exec(t, `select public.claim_coupon('late', $1)`, name)
		users, pages := readAll(t, coupon)
		if !slices.Equal(pages, test.pages) {
			t.Errorf("%s: pages of %v, want %v", name, pages, test.pages)
		}
		for i, user := range users {
			if want := fmt.Sprint("user ", i+1); user != want {
				t.Fatalf("%s: claimer %d is %q, want %q", name, i+1, user, want)
			}
		}
		if len(users) != test.count {
			t.Errorf("%s: %d claimers", name, len(users))
		}
	}
}

// Readers hold no connection while they do not read, and stop when they like.
func TestCouponSlowReaders(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = 2 })
	s.fill(t, "big", 3*pageSize, 3*pageSize)
	coupon, _, err := s.Coupon(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	var depth func(int)
	depth = func(n int) { // many readers, each in the middle of his reading
		for page, err := range coupon.Claimers(t.Context()) {
			if err != nil || len(page) != pageSize {
				t.Errorf("%d ids, %v", len(page), err)
			}
			if acquired := s.pool.Stat().AcquiredConns(); acquired != 0 {
				t.Errorf("%d connections are held for readers", acquired)
			}
			if n > 0 {
				depth(n - 1)
			}
			return
		}
	}
	depth(5)
}

func TestCouponReaderLeaves(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.fill(t, "big", 3*pageSize, 3*pageSize)
	coupon, _, err := s.Coupon(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	pages := 0
	var last error
	for _, err := range coupon.Claimers(ctx) {
		pages, last = pages+1, err
		leave()
	}
	if pages != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d pages, the last with %v; want the second to fail", pages, last)
	}

	// One who leaves while his first page is read.
	s.proxy.Freeze()
	ctx, leave = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, leave)
	start := time.Now()
	if _, _, err := s.Coupon(ctx, "big"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a reader who left: %v", err)
	}
	if took := time.Since(start); took > s.timeout/2 {
		t.Errorf("he was released after %v", took)
	}
	s.proxy.Thaw()
}

// Claims that are missing in the table are told, not hidden.
func TestCouponWithAGap(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.fill(t, "c", 100, 10)
	s.exec(t, `delete from public.claims where coupon_name = 'c' and claim_number = 5`)
	if _, _, err := s.Coupon(t.Context(), "c"); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v; want a fault", err)
	}
}

// Reads go together, and each shows what was claimed before it.
func TestCouponReadsTogether(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.create(t, "c", 1000)
	var reading sync.Mutex
	queries := 0
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "get_coupon") {
			reading.Lock()
			queries++
			reading.Unlock()
			time.Sleep(5 * time.Millisecond) // a read takes long enough to be joined
		}
		return faultproxy.Pass
	})
	const clients, rounds = 16, 5
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for round := range rounds {
				user := fmt.Sprint(i, "/", round)
				if status, err := s.Claim(t.Context(), user, "c"); status != Claimed {
					t.Error(status, err)
				}
				coupon, _, err := s.Coupon(t.Context(), "c")
				if err != nil {
					t.Error(err)
					continue
				}
				users, _ := coupon.Whole()
				if !slices.Contains(users, user) {
					t.Errorf("%s does not see his own claim", user)
				}
				if len(users)+coupon.RemainingAmount != coupon.Amount {
					t.Errorf("%d claimed and %d remain of %d", len(users), coupon.RemainingAmount, coupon.Amount)
				}
			}
		})
	}
	all.Wait()
	if queries >= clients*rounds {
		t.Errorf("%d queries for %d reads: none was shared", queries, clients*rounds)
	}
}

// A rush of readers leaves connections to claims, and the pool keeps its bound.
func TestPoolBound(t *testing.T) {
	t.Parallel()
	const maxConns = 4
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = maxConns })
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
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := s.Coupon(t.Context(), fmt.Sprint("r", i)); err != nil {
					t.Error(err)
				}
				if i >= 5 { // they share one connection, and each waits 1.5 s for it at most
					continue
				}
				if err := s.Ready(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	eventually(t, "readers fill their half", func() bool { return len(s.readers) == cap(s.readers) })
	for i := range 30 {
		if status, err := s.Claim(t.Context(), fmt.Sprint(i), "c"); status != Claimed {
			t.Error(status, err)
		}
		if n := s.sessions(t); n > maxConns {
			t.Errorf("%d sessions, %d are allowed", n, maxConns)
		}
		if held := int(s.pool.Stat().AcquiredConns()); held > maxConns-1 {
			t.Errorf("%d connections of the pool are in use", held)
		}
	}
	close(stop)
	all.Wait()
}

// Readers whom the database keeps waiting hold no more than their half of the
// connections: a claim finds one.
func TestReadersLeaveConnectionsToClaims(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(cfg *Config) { cfg.MaxConns = 4 })
	s.create(t, "c", 10)
	release := make(chan struct{})
	s.proxy.Inject(func(sql string) faultproxy.Fault {
		if strings.Contains(sql, "get_coupon") {
			<-release
		}
		return faultproxy.Pass
	})
	var readers sync.WaitGroup
	for i := range 10 {
		readers.Go(func() { _, _, _ = s.Coupon(t.Context(), fmt.Sprint("r", i)) })
	}
	eventually(t, "readers have all that they may have", func() bool {
		return int(s.pool.Stat().AcquiredConns()) == cap(s.readers)
	})
	asked := time.Now()
	status, err := s.Claim(t.Context(), "u", "c")
	// Readers give their connections back after half of the time-out: nobody is to wait for that.
	if took := time.Since(asked); status != Claimed || err != nil || took > patience/3 {
		t.Errorf("a claim beside readers who wait: %q, %v, after %v", status, err, took)
	}
	close(release)
	readers.Wait()
}

// A big read rests between two pages for as long as the last one took, while claims are under way, and only then.
func TestBigReadGivesWay(t *testing.T) {
	t.Parallel()
	const pages, each = 5, 10 * time.Millisecond
	for _, c := range []struct {
		name string
		busy bool
		want time.Duration
	}{
		{"nobody claims", false, pages * each},
		{"claims are under way", true, (2*pages - 1) * each},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				upto, began := 0, time.Now()
				for _, err := range givingWay(t.Context(), func() bool { return c.busy }, pages*pageSize-1, func(from, to int) ([]string, error) {
					if from != upto || to-from > pageSize {
						t.Errorf("a page from %d to %d, after %d", from, to, upto)
					}
					upto = to
					time.Sleep(each)
					return nil, nil
				}) {
					if err != nil {
						t.Error(err)
					}
					time.Sleep(time.Hour) // a slow reader is no work to rest from
				}
				if took := time.Since(began) - pages*time.Hour; upto != pages*pageSize-1 || took != c.want {
					t.Errorf("%d claimers in %v; want %d in %v", upto, took, pages*pageSize-1, c.want)
				}
			})
		})
	}

	t.Run("the reader leaves", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), each+each/2)
			defer cancel()
			began := time.Now()
			var last error
			for _, err := range givingWay(ctx, func() bool { return true }, 2*pageSize, func(int, int) ([]string, error) {
				if ctx.Err() == nil {
					time.Sleep(each)
				}
				return nil, ctx.Err()
			}) {
				last = err
			}
			if took := time.Since(began); took != each+each/2 || !errors.Is(last, context.DeadlineExceeded) {
				t.Errorf("the rest ended after %v, not with the reader, and then: %v", took, last)
			}
		})
	})
}
