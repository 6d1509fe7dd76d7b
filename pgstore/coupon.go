package pgstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	createCouponSQL = `select coupond.create_coupon($1, $2)` + setLockTimeout
	getCouponSQL    = `select amount, remaining_amount from coupond.get_coupon($1)`
	claimersSQL     = `select coupond.coupon_claimers($1, $2, $3)`
)

// The claimers of a coupon are read in pages (ADR 0011). The first has firstPage user ids, the
// others up to pageSize: as many as fit into pageBytes if they are as long as those of the page
// before.
const (
	firstPage = 1_000
	pageSize  = 10_000
	pageBytes = 1 << 20
)

// rowsAfter returns the number of user ids to read after a page.
func rowsAfter(page []string) int {
	size := 0
	for _, user := range page {
		size += len(user)
	}
	return max(firstPage, min(pageBytes*len(page)/max(1, size), pageSize))
}

// CreateCoupon creates a coupon with a stock of amount, 1 or more. name has 1 to 255 characters of
// valid UTF-8, is not blank and contains no NUL; the caller checks that.
//
// If ctx ends before the call is sent, nothing is sent, and CreateCoupon returns ErrUnavailable.
// Afterwards it waits for the outcome, at most for ClaimTimeout. A failed call is repeated once.
// Errors: ErrUnavailable, ErrOverloaded, ErrOutcomeUnknown, or an internal error.
func (s *Store) CreateCoupon(ctx context.Context, name string, amount int32) (CreateStatus, error) {
	if ctx.Err() != nil {
		return "", contextEnded(ctx)
	}
	deadline := time.Now().Add(s.timeout)
	if err := s.creating.enter(ctx, name); err != nil {
		return "", err
	}
	defer s.creating.exit(name)
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()

	var status CreateStatus
	lockWait := milliseconds(lockTimeout(s.timeout)) // for a concurrent creation of the same name
	first, err := s.serverOf(name).execute(ctx, true, nil, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, createCouponSQL, name, int64(amount), lockWait).Scan(&status)
	})
	if first != nil {
		s.sampled.Warn().Err(first.err).Func(withID(requestID(ctx))).Bool("not_committed", first.notCommitted).Msg("creating a coupon failed once")
	}
	switch {
	case err != nil:
		return "", err
	case status == CouponExists && first != nil && first.ambiguous():
		return "", outcomeUnknownAfter(first) // perhaps the first attempt created it
	case status == Created, status == CouponExists:
		return status, nil
	}
	return "", fmt.Errorf("create status %q: not known to this program", status)
}

// Coupon reads one consistent state of a coupon. The state contains every claim that was answered
// before the call. found is false if no coupon has that name. Callers that ask for the same coupon
// at the same time may get the same *Coupon, so it must not be changed. Coupon returns when ctx
// ends, and after ClaimTimeout at the latest. Errors: ErrUnavailable, ErrOverloaded, or an internal
// error.
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
// of the coupon's row alive. A coupon that fits into one page is read at once.
func (s *Store) readCoupon(ctx context.Context, name string) (*Coupon, error) {
	var coupon *Coupon
	err := s.executeRead(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
		coupon = nil
		var amount, remaining int
		err := conn.QueryRow(ctx, getCouponSQL, name).Scan(&amount, &remaining)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}

		count := amount - remaining
		users, err := queryWhole(ctx, conn, name, count)
		switch {
		case err != nil:
			return err
		case len(users) < count:
			coupon = &Coupon{Name: name, Amount: amount, RemainingAmount: remaining, Claimers: s.pages(name, count)}
		default:
			coupon = NewCoupon(name, amount, users)
		}
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

// Whole returns all user ids in claim order if they are in memory, which is the case for at most
// one page of them. They must not be changed. Each reader of a larger coupon reads them with
// Claimers.
func (c *Coupon) Whole() (claimers []string, ok bool) {
	return c.claimers, c.whole
}

// queryWhole reads the count claimers of a coupon on a connection, or fewer if they do not fit
// into one page.
func queryWhole(ctx context.Context, conn *pgx.Conn, name string, count int) ([]string, error) {
	if count == 0 || count > pageSize {
		return nil, nil
	}
	users, err := queryPage(ctx, conn, name, 0, min(count, firstPage))
	if err != nil || count == len(users) || count > rowsAfter(users) {
		return users, err
	}
	rest, err := queryPage(ctx, conn, name, len(users), count)
	return append(users, rest...), err
}

// pages returns an iterator over the first count claimers of a coupon. It releases its connection
// before it yields a page, so a slow reader holds the memory of one page and no connection.
func (s *Store) pages(name string, count int) func(context.Context) iter.Seq2[[]string, error] {
	return func(ctx context.Context) iter.Seq2[[]string, error] {
		return pacedPages(ctx, s.serverOf(name).batcher.busy, count, func(after, upto int) ([]string, error) {
			return s.readPage(ctx, name, after, upto)
		})
	}
}

// pacedPages reads page after page. While claims are in flight it pauses between two pages for as
// long as the last page took, so that a large read does not slow claims down (ADR 0011).
func pacedPages(ctx context.Context, claimsInFlight func() bool, count int, read func(after, upto int) ([]string, error)) iter.Seq2[[]string, error] {
	return func(yield func([]string, error) bool) {
		var took time.Duration
		rows := firstPage
		for after := 0; after < count; {
			if after > 0 && claimsInFlight() {
				select {
				case <-time.After(took):
				case <-ctx.Done(): // read returns its error
				}
			}
			began := time.Now()
			upto := min(after+rows, count)
			page, err := read(after, upto)
			took = time.Since(began)
			after, rows = upto, rowsAfter(page)
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
	err = s.executeRead(ctx, name, func(ctx context.Context, conn *pgx.Conn) error {
		users, err = queryPage(ctx, conn, name, after, upto)
		return err
	})
	return users, err
}

// queryPage reads a page on a connection. The ids share one string: a page is kept or freed as a
// whole.
func queryPage(ctx context.Context, conn *pgx.Conn, name string, after, upto int) ([]string, error) {
	// int32 is the type of the function's parameters: some exec modes of pgx do not ask PostgreSQL
	// for it.
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

// executeRead makes a call that changes nothing.
func (s *Store) executeRead(ctx context.Context, name string, call callFunc) error {
	if err := s.reading.enter(ctx, ""); err != nil {
		return err
	}
	defer s.reading.exit("")
	_, err := s.serverOf(name).execute(ctx, false, nil, call)
	return err
}
