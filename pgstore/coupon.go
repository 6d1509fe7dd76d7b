package pgstore

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	createCouponSQL = `select coupond.create_coupon($1, $2)`
	getCouponSQL    = `select name, amount, remaining_amount from coupond.get_coupon($1)`
	claimersSQL     = `select coupond.coupon_claimers($1, $2, $3)`
)

// pageSize is the largest number of user ids that one statement reads (ADR 0011).
const pageSize = 10_000

// CreateCoupon creates a coupon with a stock of amount, 1 or more. name has 1 to 255 characters of
// valid UTF-8, is not blank and contains no NUL; the caller checks that.
//
// If ctx ends before the call is sent, nothing is sent, and CreateCoupon returns ErrUnavailable.
// Afterwards it waits for the outcome, at most for ClaimTimeout. A failed call is repeated once.
// Errors: ErrUnavailable, ErrOutcomeUnknown, or an internal error.
func (s *Store) CreateCoupon(ctx context.Context, name string, amount int32) (CreateStatus, error) {
	if ctx.Err() != nil {
		return "", contextEnded(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timeout)
	defer cancel()

	var status CreateStatus
	create := func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, createCouponSQL, name, int64(amount)).Scan(&status)
	}

	firstCtx, cancelFirst := firstAttempt(ctx)
	first := s.attemptWrite(firstCtx, name, false, create)
	cancelFirst()
	if first != nil {
		s.failures.Warn().Err(first.err).Func(withRequestID(ctx)).Bool("not_committed", first.notCommitted).
			Msg("creating a coupon failed; retrying")
		if second := s.attemptWrite(ctx, name, first.ambiguous(), create); second != nil {
			return "", bothFailed(first, second)
		}
	}

	switch status {
	case Created:
		return status, nil
	case CouponExists:
		if first != nil && first.ambiguous() {
			return "", outcomeUnknownAfter(first) // perhaps the first attempt created it
		}
		return status, nil
	}
	return "", fmt.Errorf("create status %q: not known to this program", status)
}

// Coupon reads one consistent state of a coupon. The state contains every claim that was answered
// before the call. found is false if no coupon has that name. Callers that ask for the same coupon
// at the same time may get the same *Coupon, so it must not be changed. Coupon returns when ctx
// ends, and after ClaimTimeout at the latest. Errors: ErrUnavailable, or an internal error.
func (s *Store) Coupon(ctx context.Context, name string) (coupon *Coupon, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	coupon, err = s.reads.get(ctx, name)
	return coupon, coupon != nil, err
}

// readCoupon reads a coupon for all callers of a shared read; nil: it does not exist.
//
// Its claims are those numbered 1 to amount - remaining_amount as of now. They exist and never
// change, so they can be read later, page by page, without a snapshot that would keep old versions
// of the coupon's row alive. If there is only one page, it is read at once.
func (s *Store) readCoupon(ctx context.Context, name string) (*Coupon, error) {
	var coupon *Coupon
	err := s.readWithRetry(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
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
				break // rows.Err returns it
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
			if users, err = queryPage(ctx, conn, name, 0, count); err != nil {
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

// NewCoupon returns a coupon that has all of its claimers, in claim order, in memory.
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

// pages returns an iterator over the first count claimers of a coupon. It releases its connection
// before it yields a page, so a slow reader holds the memory of one page and no connection.
func (s *Store) pages(name string, count int) func(context.Context) iter.Seq2[[]string, error] {
	return func(ctx context.Context) iter.Seq2[[]string, error] {
		return pacedPages(ctx, s.batchers.anyBusy, count, func(after, upto int) ([]string, error) {
			return s.readPage(ctx, name, after, upto)
		})
	}
}

// pacedPages reads page after page. While claims are in flight it pauses between two pages for as
// long as the last page took, so that a large read does not slow claims down (ADR 0011).
func pacedPages(ctx context.Context, claimsInFlight func() bool, count int, read func(after, upto int) ([]string, error)) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		var took time.Duration
		for after := 0; after < count; after += pageSize {
			if after > 0 && claimsInFlight() {
				select {
				case <-time.After(took):
				case <-ctx.Done(): // read returns its error
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

// readPage reads the claimers with the claim numbers after+1 to upto.
func (s *Store) readPage(ctx context.Context, name string, after, upto int) (users []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err = s.readWithRetry(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
		users, err = queryPage(ctx, conn, name, after, upto)
		return err
	})
	return users, err
}

// queryPage reads a page on a connection. The ids share one string: a page is kept or freed as a
// whole.
func queryPage(ctx context.Context, conn *pgx.Conn, name string, after, upto int) ([]string, error) {
	// int32 is the type of the function's parameters: some exec modes of pgx do not ask PostgreSQL for
	// it.
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
		return nil, fmt.Errorf("%w: %d rows for claims %d to %d", errInconsistent, len(ends), after+1, upto)
	}

	all, start := string(text), 0
	users := make([]string, wanted)
	for i, end := range ends {
		users[i], start = all[start:end], end
	}
	return users, nil
}

// readWithRetry makes a call that changes nothing, and repeats it once if it fails. It waits for a
// read slot first.
func (s *Store) readWithRetry(ctx context.Context, name string, call callFunc) error {
	select {
	case s.readSlots <- struct{}{}:
		defer func() { <-s.readSlots }()
	case <-ctx.Done():
		return contextEnded(ctx)
	}

	firstCtx, cancel := firstAttempt(ctx)
	failed := s.attempt(firstCtx, name, false, call)
	cancel()
	if failed != nil && !failed.rejected {
		failed = s.attempt(ctx, name, false, call)
	}
	if failed != nil {
		return readFailed(failed)
	}
	return nil
}
