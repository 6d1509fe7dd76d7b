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

// The functions are schema-qualified because the search_path of our sessions does not contain their
// schema.
const (
	claimCouponSQL  = `select coupond.claim_coupon($1, $2)`
	claimCouponsSQL = `select coupond.claim_coupons($1, $2)`
	claimBatchSQL   = `select "position", status from coupond.claim_batch($1, $2, $3)`
)

// claim is one user's claim for one coupon. Once answered it has either a status or an err: one
// that wraps ErrUnavailable, ErrOverloaded or ErrOutcomeUnknown, or an internal error.
type claim struct {
	user, coupon string

	requestID string
	arrived   time.Time

	status ClaimStatus
	err    error
}

// Claim claims coupon for user and returns the outcome. Both names have 1 to 255
// characters of valid UTF-8, are not blank and contain no NUL; the caller checks that.
//
// If ctx ends before the claim is sent, it is not sent, and Claim returns ErrUnavailable.
// Afterwards Claim waits for the outcome, at most for ClaimTimeout. Errors: ErrUnavailable,
// ErrOverloaded, ErrOutcomeUnknown, or an internal error.
func (s *Store) Claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	status, err := s.batchers.claim(ctx, user, coupon)
	s.metrics.countClaim(status, err)
	return status, err
}

// sendBatch sends the claims in one call, with one commit. When it returns, each claim has its
// status or its err. ctx bounds all of it, retries included.
//
// A failed call says nothing about most of its claims, and one bad coupon must not fail the others.
// So after a failure the claims are sent again, once, coupon by coupon. A claim is idempotent.
func (s *Store) sendBatch(ctx context.Context, claims []*claim) {
	if len(claims) == 0 {
		return
	}
	s.metrics.batchSize.Observe(float64(len(claims)))
	defer s.logSlowCall(claims, time.Now())

	firstCtx, cancel := firstAttempt(ctx)
	first := s.attemptWrite(firstCtx, claims[0].coupon, false, func(ctx context.Context, conn *pgx.Conn) error {
		return callClaimFunction(ctx, conn, claims)
	})
	cancel()
	if first == nil {
		return
	}

	batches := groupByCoupon(claims)
	s.failures.Warn().Err(first.err).Strs("request_ids", requestIDs(claims)).Int("claims", len(claims)).Int("coupons", len(batches)).
		Bool("not_committed", first.notCommitted).Msg("a call of claims failed; retrying coupon by coupon")

	var retries errgroup.Group
	retries.SetLimit(int(s.retryLimit.Load()))
	for _, batch := range batches {
		retries.Go(func() error {
			s.retryCoupon(ctx, batch, first)
			return nil
		})
	}
	_ = retries.Wait() // outcomes are in the claims
}

// retryCoupon sends the claims of one coupon again after their first call failed.
func (s *Store) retryCoupon(ctx context.Context, claims []*claim, first *failedAttempt) {
	// If the first attempt may have been committed, wait for a server that is restarting, because only
	// a second answer resolves it. If it was not committed, the client can retry as well.
	second := s.attemptWrite(ctx, claims[0].coupon, first.ambiguous(), func(ctx context.Context, conn *pgx.Conn) error {
		return callClaimFunction(ctx, conn, claims)
	})
	if second != nil {
		err := bothFailed(first, second)
		for _, c := range claims {
			c.status, c.err = "", err
		}
		return
	}
	if first.notCommitted {
		return
	}

	// The first attempt is ambiguous (ADR 0014). "claimed" and "out_of_stock" are exact all the same:
	// the first attempt then was, or will be, "already_claimed" or "out_of_stock". "already_claimed"
	// may be the effect of the first attempt, unless this very call granted the user's claim.
	// "coupon_not_found" is ambiguous because a first attempt that is still running may find a coupon
	// that is created meanwhile.
	granted := make(map[string]bool)
	for _, c := range claims {
		switch {
		case c.status == Claimed:
			granted[c.user] = true
		case c.status == CouponNotFound, c.status == AlreadyClaimed && !granted[c.user]:
			c.status, c.err = "", outcomeUnknownAfter(first)
		}
	}
}

// callFunc makes one call on a connection.
type callFunc func(context.Context, *pgx.Conn) error

// attempt makes one call about a coupon on a connection of the pool, unless the coupon's shard is
// unreachable. It returns nil if the call was answered and its effects are committed. With
// waitForServer it retries until ctx ends if no connection can be made.
func (s *Store) attempt(ctx context.Context, coupon string, waitForServer bool, call callFunc) *failedAttempt {
	if err := s.batchers.refusal(coupon); err != nil && !errors.Is(err, errNotCommitting) {
		return notSent(err)
	}
	conn, err := s.acquire(ctx, waitForServer)
	if err != nil {
		return notSent(err)
	}
	var executed, ambiguous bool
	err = func() error {
		defer conn.Release() // before mayBeProxy needs a connection, and also in a panic
		sc := beginCall(conn.Conn())
		err := call(ctx, conn.Conn())
		executed, ambiguous = sc.executed(), sc.ambiguous
		return err
	}()
	if err != nil {
		return classify(err, executed, func() bool { return s.mayBeProxy(ctx) })
	}
	if ambiguous {
		return &failedAttempt{err: errNotReplicated}
	}
	return nil
}

// acquire returns a connection of the pool. With waitForServer it retries until ctx ends.
func (s *Store) acquire(ctx context.Context, waitForServer bool) (*pgxpool.Conn, error) {
	const maxPause = 250 * time.Millisecond
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, maxPause) {
		conn, err := s.pool.Acquire(ctx)
		if err == nil || !waitForServer || errors.Is(err, puddle.ErrClosedPool) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// callClaimFunction calls claim_coupon for one claim, claim_coupons for claims that are all for one
// coupon, else claim_batch, and sets the status of each claim. After an error no claim has a
// status: rows arrive before the commit, so only a call that returned without error is committed.
func callClaimFunction(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
	var err error
	switch {
	case len(claims) == 1:
		err = callClaimCoupon(ctx, conn, claims[0])
	case sameCoupon(claims):
		err = callClaimCoupons(ctx, conn, claims)
	default:
		if err = callClaimBatch(ctx, conn, claims); err != nil {
			err = manyCouponsError{err}
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

// callClaimCoupon sends one claim.
func callClaimCoupon(ctx context.Context, conn *pgx.Conn, c *claim) error {
	rows, err := conn.Query(ctx, claimCouponSQL, c.user, c.coupon)
	if err != nil {
		return err
	}
	for rows.Next() {
		c.status, c.err = parseClaimStatus(rows.RawValues()[0])
	}
	return rows.Err()
}

// callClaimCoupons sends claims that are all for one coupon.
func callClaimCoupons(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
	users := make([]string, len(claims))
	for i, c := range claims {
		users[i] = c.user
	}
	rows, err := conn.Query(ctx, claimCouponsSQL, users, claims[0].coupon)
	if err != nil {
		return err
	}
	for rows.Next() {
		// An enum array arrives as text, {claimed,out_of_stock}, and its labels are never quoted. Parsing
		// it here avoids a copy of each label.
		labels := bytes.Trim(rows.RawValues()[0], "{}")
		for _, c := range claims {
			var label []byte
			label, labels, _ = bytes.Cut(labels, []byte{','})
			c.status, c.err = parseClaimStatus(label)
		}
	}
	return rows.Err()
}

// callClaimBatch sends claims for many coupons.
func callClaimBatch(ctx context.Context, conn *pgx.Conn, claims []*claim) error {
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
			break // rows.Err returns it
		}
		c := claims[position]
		c.status, c.err = parseClaimStatus(label)
	}
	return rows.Err()
}

// parseClaimStatus converts a label of the enum claim_status. An unknown label comes from a newer
// schema.
func parseClaimStatus(label []byte) (ClaimStatus, error) {
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
	return "", fmt.Errorf("claim status %q: not known to this program", label)
}

// sameCoupon reports whether all claims are for the same coupon.
func sameCoupon(claims []*claim) bool {
	for _, c := range claims[1:] {
		if c.coupon != claims[0].coupon {
			return false
		}
	}
	return true
}

// groupByCoupon splits claims by coupon and keeps their order.
func groupByCoupon(claims []*claim) [][]*claim {
	var groups [][]*claim
	index := make(map[string]int)
	for _, c := range claims {
		i, ok := index[c.coupon]
		if !ok {
			i = len(groups)
			index[c.coupon] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], c)
	}
	return groups
}
