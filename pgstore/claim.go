package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"
	"golang.org/x/sync/errgroup"
)

// The calls of claims, and nothing else about them, in SQL. Names are qualified:
// the search_path of our sessions knows PostgreSQL's own schema only.
const (
	claimCouponsSQL = `select public.claim_coupons($1, $2)`
	claimBatchSQL   = `select "position", status from public.claim_batch($1, $2, $3)`
)

// claim is one user's wish for one coupon and, once answered, its outcome: a
// status, or an err that wraps ErrUnavailable or ErrOutcomeUnknown or is a fault of
// ours.
type claim struct {
	user, coupon string

	request string    // the id of the request that it came with
	since   time.Time // when it came

	status ClaimStatus
	err    error
}

// Claim gives user one piece of coupon, or tells why not. Both are 1 to 255
// characters of valid UTF-8, not blank, without NUL: the caller refuses the rest.
// A caller who leaves (ctx ends) before his claim was sent takes it with him; after
// that the claim stands, and Claim waits for its outcome, for ClaimTimeout at most.
func (s *Store) Claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	status, err := s.lanes.claim(ctx, user, coupon)
	s.metrics.claimed(status, err)
	return status, err
}

// send asks PostgreSQL for a crowd, in one call and one commit. When it returns,
// each of the claims has its status or its err. ctx bounds all of it; the claims
// belong to send until then.
//
// A call that fails says nothing about most of its claims, and one bad coupon must
// not fail its neighbours. So the claims are asked again, once, coupon by coupon,
// in the time that ctx leaves. A claim is safe to repeat.
func (s *Store) send(ctx context.Context, claims []*claim) {
	if len(claims) == 0 {
		return
	}
	s.metrics.crowd.Observe(float64(len(claims)))
	defer s.tellSlow(claims, time.Now())

	try, cancel := firstTry(ctx)
	first := s.commit(try, claims[0].coupon, false, func(ctx context.Context, conn *pgx.Conn) error {
		return ask(ctx, conn, claims)
	})
	cancel()
	if first == nil {
		return
	}

	crowds := byCoupon(claims)
	s.failures.Warn().Err(first.cause).Strs("request_ids", requestIDs(claims)).Int("claims", len(claims)).Int("coupons", len(crowds)).
		Bool("surely_not_committed", first.surely).Msg("a call of claims failed; asking again, coupon by coupon")

	var asking errgroup.Group
	asking.SetLimit(int(s.askers.Load()))
	for _, crowd := range crowds {
		asking.Go(func() error {
			s.askAgain(ctx, crowd, first)
			return nil
		})
	}
	_ = asking.Wait() // outcomes are in the claims
}

// askAgain asks for the claims of one coupon whose first call failed.
func (s *Store) askAgain(ctx context.Context, crowd []*claim, first *failure) {
	// Where the first try may have been committed, the answer is worth waiting for a
	// server that is coming back. Where it surely was not, the caller can ask again as
	// well as we can.
	second := s.commit(ctx, crowd[0].coupon, !first.surely, func(ctx context.Context, conn *pgx.Conn) error {
		return ask(ctx, conn, crowd)
	})
	if second != nil {
		err := verdict(first, second)
		for _, c := range crowd {
			c.status, c.err = "", err
		}
		return
	}
	if first.surely {
		return
	}

	// "claimed" and "out_of_stock" are exact: the first try can only have been, or can
	// only still become, "already_claimed" and "out_of_stock". "already_claimed" may be
	// our own first try, unless the user's claim was granted just now, beside this one.
	// "coupon_not_found" says nothing about a first try that is still under way: it
	// can meet a coupon that is created meanwhile.
	granted := make(map[string]bool)
	for _, c := range crowd {
		switch {
		case c.status == Claimed:
			granted[c.user] = true
		case c.status == CouponNotFound, c.status == AlreadyClaimed && !granted[c.user]:
			c.status, c.err = "", unknownAfter(first)
		}
	}
}

// call is what is done with a connection.
type call func(context.Context, *pgx.Conn) error

// try makes one call about a coupon on a connection of the pool, unless the coupon's
// shard does not even answer. nil: it was answered, and what it did is committed. With patience it
// waits, as long as ctx lets it, for a server that no connection can be made to.
func (s *Store) try(ctx context.Context, coupon string, patience bool, call call) *failure {
	if away := s.lanes.whyAway(coupon); away != nil && !errors.Is(away, errNotSent) {
		return notSent(away)
	}
	conn, err := s.acquire(ctx, patience)
	if err != nil {
		return notSent(err)
	}
	var executed, inDoubt bool
	err = func() error {
		defer conn.Release() // before we ask who it was, and in a panic
		w := wireOf(conn.Conn())
		err := call(ctx, conn.Conn())
		executed, inDoubt = !w.unprepared, w.inDoubt
		return err
	}()
	if err != nil {
		return failed(err, executed, func() bool { return s.proxied(ctx) })
	}
	if inDoubt {
		return &failure{cause: errInDoubt}
	}
	return nil
}

// acquire gets a connection of the pool, and with patience tries for one until ctx
// ends.
func (s *Store) acquire(ctx context.Context, patience bool) (*pgxpool.Conn, error) {
	const longestPause = 250 * time.Millisecond
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, longestPause) {
		conn, err := s.pool.Acquire(ctx)
		if err == nil || !patience || errors.Is(err, puddle.ErrClosedPool) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// ask makes the call for claims and reads its answers into them. After an error,
// none of them has a status: rows come before the commit, and only a call that
// ended well was committed.
func ask(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
	var err error
	if oneCoupon(claims) {
		err = askCoupons(ctx, conn, claims)
	} else {
		if err = askBatch(ctx, conn, claims); err != nil {
			err = batchError{err}
		}
	}
	if err == nil {
		for _, c := range claims {
			if c.status == "" && c.err == nil {
				c.err = fmt.Errorf("PostgreSQL did not answer a claim for coupon %q", c.coupon)
			}
		}
		return nil
	}
	for _, c := range claims {
		c.status, c.err = "", nil
	}
	return err
}

// askCoupons asks for a crowd that wants one coupon.
func askCoupons(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
	users := make([]string, len(claims))
	for i, c := range claims {
		users[i] = c.user
	}
	rows, err := conn.Query(ctx, claimCouponsSQL, users, claims[0].coupon)
	if err != nil {
		return err
	}
	for rows.Next() {
		// An enum's array comes as text, {claimed,out_of_stock}: its labels need no quotes.
		// Reading it here spares a copy of each label.
		labels := bytes.Trim(rows.RawValues()[0], "{}")
		for _, c := range claims {
			var label []byte
			label, labels, _ = bytes.Cut(labels, []byte{','})
			c.status, c.err = claimStatus(label)
		}
	}
	return rows.Err()
}

// askBatch asks for a crowd that wants many coupons.
func askBatch(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
	users := make([]string, len(claims))
	coupons := make([]string, len(claims))
	positions := make([]int32, len(claims))
	for i, c := range claims {
		users[i], coupons[i], positions[i] = c.user, c.coupon, int32(i)
	}
	rows, err := conn.Query(ctx, claimBatchSQL, users, coupons, positions)
	if err != nil {
		return err
	}
	var position int32
	var label []byte
	for rows.Next() {
		if err := rows.Scan(&position, &label); err != nil {
			break // rows has it
		}
		c := claims[position]
		c.status, c.err = claimStatus(label)
	}
	return rows.Err()
}

// claimStatus is the status of an enum's label. A label that this program does not
// know comes from a newer schema.
func claimStatus(label []byte) (ClaimStatus, error) {
	switch string(label) { // compared without a copy
	case string(Claimed):
		return Claimed, nil
	case string(AlreadyClaimed):
		return AlreadyClaimed, nil
	case string(OutOfStock):
		return OutOfStock, nil
	case string(CouponNotFound):
		return CouponNotFound, nil
	}
	return "", fmt.Errorf("PostgreSQL answered a claim with %q, which this program does not know", label)
}

// oneCoupon: all of the claims want the same coupon.
func oneCoupon(claims []*claim) bool {
	for _, c := range claims[1:] {
		if c.coupon != claims[0].coupon {
			return false
		}
	}
	return true
}

// byCoupon divides a crowd into those who want the same coupon, in their order.
func byCoupon(claims []*claim) [][]*claim {
	var crowds [][]*claim
	place := make(map[string]int)
	for _, c := range claims {
		i, ok := place[c.coupon]
		if !ok {
			i = len(crowds)
			place[c.coupon] = i
			crowds = append(crowds, nil)
		}
		crowds[i] = append(crowds[i], c)
	}
	return crowds
}
