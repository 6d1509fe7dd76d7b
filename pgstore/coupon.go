package pgstore

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	createCouponSQL = `select public.create_coupon($1, $2)`
	getCouponSQL    = `select name, amount, remaining_amount from public.get_coupon($1)`
	claimersSQL     = `select public.coupon_claimers($1, $2, $3)`
)

// pageSize is the number of user ids that one statement reads, at most: some
// hundred KiB, in some 3 ms. (Pages of 10,000 read a coupon of 1,000,000 claims
// faster than one big result does.)
const pageSize = 10_000

// CreateCoupon puts amount pieces (1 or more) of a coupon on sale, under a name of
// 1 to 255 characters of valid UTF-8, not blank, without NUL. Like a claim, once
// sent it stands although ctx ends, and it is asked again once when the call fails.
// Errors: ErrUnavailable, ErrOutcomeUnknown, or a fault of ours.
func (s *Store) CreateCoupon(ctx context.Context, name string, amount int32) (CreateStatus, error) {
	if ctx.Err() != nil {
		return "", gaveUp(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
	defer cancel()

	var status CreateStatus
	create := func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, createCouponSQL, name, int64(amount)).Scan(&status)
	}

	try, cancelTry := firstTry(ctx)
	first := s.commit(try, name, false, create)
	cancelTry()
	if first != nil {
		s.failures.Warn().Err(first.cause).Func(withRequestID(ctx)).Bool("surely_not_committed", first.surely).
			Msg("creating a coupon failed; asking again")
		if second := s.commit(ctx, name, !first.surely, create); second != nil {
			return "", verdict(first, second)
		}
	}

	switch status {
	case Created:
		return status, nil
	case CouponExists:
		if first != nil && !first.surely {
			return "", unknownAfter(first) // it may be the one that we made
		}
		return status, nil
	}
	return "", fmt.Errorf("PostgreSQL answered create_coupon with %q, which this program does not know", status)
}

// Coupon reads one consistent state of a coupon, which shows every claim that was
// answered before the call; found is false when there is none of that name. Callers
// who ask for the same coupon at the same time may get the same *Coupon: it is not
// to be changed. A caller who leaves (ctx ends) is released at once; nobody waits
// longer than ClaimTimeout. Errors: ErrUnavailable, or a fault of ours.
func (s *Store) Coupon(ctx context.Context, name string) (coupon *Coupon, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	coupon, err = s.reads.join(ctx, name)
	return coupon, coupon != nil, err
}

// readCoupon reads a coupon for all who joined the read; nil: there is none. Its
// claims are those with the numbers 1 to amount - remaining_amount as of now. They
// exist and stay, so that they can be read later, page by page, without a snapshot
// that would keep old versions of the coupon's row alive. A single page is read
// right away.
func (s *Store) readCoupon(ctx context.Context, name string) (*Coupon, error) {
	var coupon *Coupon
	err := s.read(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
		coupon = nil
		var amount, remaining int
		rows, err := conn.Query(ctx, getCouponSQL, name)
		if err != nil {
			return err
		}
		found := false
		for rows.Next() {
			found = true
			if err := rows.Scan(nil, &amount, &remaining); err != nil {
				break // rows has it
			}
		}
		if rows.Err() != nil || !found {
			return rows.Err()
		}

		count := amount - remaining
		if count > pageSize {
			coupon = &Coupon{Name: name, Amount: amount, RemainingAmount: remaining, Claimers: s.pages(name, count)}
			return nil
		}
		var users []string
		if count > 0 {
			if users, err = readPage(ctx, conn, name, 0, count); err != nil {
				return err
			}
		}
		coupon = NewCoupon(name, amount, users)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return coupon, nil
}

// NewCoupon is a coupon whose claimers, in claim order, are all at hand.
func NewCoupon(name string, amount int, claimers []string) *Coupon {
	return &Coupon{
		Name:            name,
		Amount:          amount,
		RemainingAmount: amount - len(claimers),
		Claimers: func(context.Context) iter.Seq2[[]string, error] {
			return func(yield func([]string, error) bool) {
				if len(claimers) > 0 {
					yield(claimers, nil)
				}
			}
		},
		whole:    true,
		claimers: claimers,
	}
}

// pages reads the first count claimers of a coupon, page by page, for one reader. A
// page is read whole and its connection given back before the reader has it: a slow
// reader holds memory for one page, and nothing of the database's.
func (s *Store) pages(name string, count int) func(context.Context) iter.Seq2[[]string, error] {
	return func(ctx context.Context) iter.Seq2[[]string, error] {
		return givingWay(ctx, s.lanes.busy, count, func(after, upto int) ([]string, error) {
			return s.page(ctx, name, after, upto)
		})
	}
}

// givingWay reads page after page, and rests between two of them for as long as the
// last one took, if claims are under way: a million claims are half a second of CPU,
// which a sale would miss. With a coupon of 1,000,000 claims read again and again,
// others claim at 0.88 of their speed instead of 0.74.
func givingWay(ctx context.Context, busy func() bool, count int, read func(after, upto int) ([]string, error)) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		var took time.Duration
		for after := 0; after < count; after += pageSize {
			if after > 0 && busy() {
				select {
				case <-time.After(took):
				case <-ctx.Done(): // read says so
				}
			}
			began := time.Now()
			page, err := read(after, min(after+pageSize, count))
			took = time.Since(began)
			if !yield(page, err) || err != nil {
				return
			}
		}
	}
}

// page reads the claimers with the claim numbers after+1 to upto.
func (s *Store) page(ctx context.Context, name string, after, upto int) (users []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.read(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
		users, err = readPage(ctx, conn, name, after, upto)
		return err
	})
	return users, err
}

// readPage is page on a connection. The ids share one piece of memory: a page is
// kept or dropped as a whole.
func readPage(ctx context.Context, conn *pgx.Conn, name string, after, upto int) ([]string, error) {
	// int32, which is what the function takes: not every exec mode of pgx asks PostgreSQL.
	rows, err := conn.Query(ctx, claimersSQL, name, int32(after), int32(upto))
	if err != nil {
		return nil, err
	}
	wanted := upto - after
	ends := make([]int, 0, wanted)
	text := make([]byte, 0, 16*wanted)
	for rows.Next() {
		text = append(text, rows.RawValues()[0]...)
		ends = append(ends, len(text))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(ends) != wanted {
		return nil, fmt.Errorf("%w: it has %d of the %d claims %d to %d", errContradiction, len(ends), wanted, after+1, upto)
	}

	all, start := string(text), 0
	users := make([]string, wanted)
	for i, end := range ends {
		users[i], start = all[start:end], end
	}
	return users, nil
}

// read makes a call that changes nothing, and once more when it fails.
func (s *Store) read(ctx context.Context, name string, call call) error {
	select {
	case s.readers <- struct{}{}:
		defer func() { <-s.readers }()
	case <-ctx.Done():
		return gaveUp(ctx)
	}

	try, cancel := firstTry(ctx)
	f := s.try(try, name, false, call)
	cancel()
	if f != nil && !f.fault {
		f = s.try(ctx, name, false, call)
	}
	if f != nil {
		return readVerdict(f)
	}
	return nil
}
