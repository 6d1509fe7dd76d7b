package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
)

// The functions are schema-qualified because the search_path of our sessions does not contain
// their schema. A solo call raises the lock_timeout of its transaction ($3), which PostgreSQL does
// before it calls the function.
const (
	claimCouponSQL   = `select coupond.claim_coupon($1, $2)`
	claimCouponsSQL  = `select coupond.claim_coupons($1, $2)`
	claimBatchSQL    = `select "position", status from coupond.claim_batch($1, $2, $3)`
	setLockTimeout   = ` from pg_catalog.set_config('lock_timeout', $3, true)`
	lockedCouponsSQL = `select coupond.locked_coupons($1)`
)

// claim is one user's claim for one coupon. Once answered it has either a status or an err: one
// that wraps ErrUnavailable, ErrOverloaded or ErrOutcomeUnknown, or an internal error.
type claim struct {
	user, coupon string

	requestID string
	arrived   time.Time
	sent      time.Time // for the first time

	failed *failedAttempt // the first attempt, if it failed; nil: there was none, or it was answered
	status ClaimStatus
	err    error
}

func (c *claim) answered() bool { return c.status != "" || c.err != nil }

// toSendAgain reports whether a call that has ended left the claim for a solo call.
func (c *claim) toSendAgain() bool { return c.failed != nil && !c.answered() }

// expired returns the error of a claim that was queued for too long.
func (c *claim) expired() error {
	if c.failed == nil {
		return fmt.Errorf("%w: the claim was queued for half of the time-out", ErrOverloaded)
	}
	kind := ErrUnavailable
	if c.failed.ambiguous() {
		kind = ErrOutcomeUnknown
	}
	return fmt.Errorf("%w: %w; it was not sent again in time", kind, c.failed.err)
}

// Claim claims coupon for user and returns the outcome. Both names have 1 to 255
// characters of valid UTF-8, are not blank and contain no NUL; the caller checks that.
//
// If ctx ends before the claim is sent, it is not sent, and Claim returns ErrUnavailable.
// Afterwards Claim waits for the outcome, at most for ClaimTimeout. Errors: ErrUnavailable,
// ErrOverloaded, ErrOutcomeUnknown, or an internal error.
func (s *Store) Claim(ctx context.Context, user, coupon string) (ClaimStatus, error) {
	for {
		status, err := s.serverOf(coupon).batcher.claim(ctx, user, coupon)
		if errors.Is(err, errBatcherClosed) {
			if !s.closing.Load() {
				continue // the map of partitions has changed: the coupon has another server now
			}
			err = fmt.Errorf("%w: the service is stopping", ErrUnavailable)
		}
		s.metrics.countClaim(status, err)
		return status, err
	}
}

// sendShared makes one call for the claims, with one commit. A failed call says nothing about most
// of its claims, and one bad coupon must not fail the others, so it leaves them to solo calls.
//
// Coupons become locked together. So for a fifth of the time-out after a call has waited for a lock
// in vain, the next ones first ask which of their coupons are locked.
func (s *server) sendShared(ctx context.Context, claims []*claim) {
	s.begin(claims)
	defer s.logSlowCall(claims)
	ctx, cancel := firstAttempt(ctx)
	defer cancel()

	if time.Now().UnixNano() < s.locksUntil.Load() {
		if free, known := s.unlocked(ctx, claims); known {
			leaveForSolo(claims, &failedAttempt{err: errLocked, notCommitted: true, lockTimeout: true})
			leaveForSolo(free, nil) // not yet: they are sent now
			claims = free
		}
		if len(claims) == 0 {
			return
		}
	}
	failed := s.attempt(ctx, callKind{write: true, shared: true}, s.claimCall(claims, false))
	if failed == nil {
		return
	}
	leaveForSolo(claims, failed)
	if failed.refused { // and would be again
		for _, c := range claims {
			c.err = bothFailed(failed, failed)
		}
		return
	}
	s.logFailed(claims, failed, "a call of claims failed; its coupons are sent alone")
	if !failed.lockTimeout {
		return
	}
	s.locksUntil.Store(time.Now().Add(s.timeout / 5).UnixNano())
	if !sameCoupon(claims) {
		s.sendUnlocked(ctx, claims)
	}
}

// begin notes that claims are sent, if it is for the first time.
func (s *server) begin(claims []*claim) {
	if claims[0].failed != nil {
		return
	}
	now := time.Now()
	for _, c := range claims {
		c.sent = now
	}
}

// errLocked is why claims are left for solo calls that were not sent.
var errLocked = errors.New("another transaction has locked the coupon")

// unlocked returns the claims of coupons that are not locked by other transactions, and whether
// that could be found out.
func (s *server) unlocked(ctx context.Context, claims []*claim) (free []*claim, known bool) {
	coupons := make([]string, len(claims))
	for i, c := range claims {
		coupons[i] = c.coupon
	}
	var locked []string
	if failed := s.attempt(ctx, callKind{write: true, shared: true}, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, lockedCouponsSQL, coupons)
		if err != nil {
			return err
		}
		locked, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	}); failed != nil {
		return nil, false
	}
	if len(locked) > 0 {
		s.sampled.Warn().Strs("coupons", locked[:min(len(locked), maxLoggedIDs)]).Msg("coupons are locked by other transactions: their claims are sent alone")
	}
	return slices.DeleteFunc(slices.Clone(claims), func(c *claim) bool { return slices.Contains(locked, c.coupon) }), true
}

// sendUnlocked is called when a shared call of many coupons has waited for a lock in vain. It sends
// the claims of the other coupons again, in one call.
func (s *server) sendUnlocked(ctx context.Context, claims []*claim) {
	free, known := s.unlocked(ctx, claims)
	if !known || len(free) == 0 {
		return
	}
	if failed := s.attempt(ctx, callKind{write: true, shared: true}, s.claimCall(free, false)); failed == nil {
		judge(free)
	} else if failed.ambiguous() || free[0].failed.notCommitted {
		leaveForSolo(free, failed)
	}
}

// leaveForSolo leaves claims without an outcome.
func leaveForSolo(claims []*claim, failed *failedAttempt) {
	for _, c := range claims {
		c.status, c.err, c.failed = "", nil, failed
	}
}

// sendSolo makes one call for claims of one coupon. If they were not sent before, a failed call is
// repeated once. It returns true if the lock could not be had, or if PostgreSQL rejected the call.
func (s *server) sendSolo(ctx context.Context, claims []*claim) (keepSolo bool) {
	s.begin(claims)
	defer s.logSlowCall(claims)
	before := claims[0].failed
	failed, err := s.execute(ctx, true, before, s.claimCall(claims, true))
	if failed != before {
		s.logFailed(claims, failed, "a solo call of claims failed once")
	}
	for _, c := range claims {
		if c.failed = failed; err != nil {
			c.status, c.err = "", err
		}
	}
	judge(claims)
	return err != nil && (sqlState(err) == pgerrcode.LockNotAvailable || !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrOutcomeUnknown))
}

// judge decides what the answers of a second attempt say about the claims, if the first attempt is
// ambiguous (ADR 0014).
//
// "claimed" and "out_of_stock" are exact all the same: the first attempt then was, or will be,
// "already_claimed" or "out_of_stock". "already_claimed" may be the effect of the first attempt,
// unless this very call granted the user's claim. "coupon_not_found" is ambiguous because a first
// attempt that is still running may find a coupon that is created meanwhile.
func judge(claims []*claim) {
	type key struct{ user, coupon string }
	granted := make(map[key]bool)
	for _, c := range claims {
		if c.failed == nil || c.failed.notCommitted {
			continue
		}
		switch k := (key{c.user, c.coupon}); {
		case c.status == Claimed:
			granted[k] = true
		case c.status == CouponNotFound, c.status == AlreadyClaimed && !granted[k]:
			c.status, c.err = "", outcomeUnknownAfter(c.failed)
		}
	}
}

// claimCall returns a call of the function for claims: claim_coupon for one, claim_coupons for
// several of one coupon, else claim_batch. It sets the status of each claim. After an error no
// claim has a status: rows arrive before the commit, so only a call without an error is committed.
func (s *server) claimCall(claims []*claim, solo bool) callFunc {
	return func(ctx context.Context, conn *pgx.Conn) error {
		sql, args := claimStatement(claims)
		if solo {
			sql, args = sql+setLockTimeout, append(args, milliseconds(lockTimeout(s.timeout)))
		}
		s.metrics.batchSize.Observe(float64(len(claims)))
		rows, err := conn.Query(ctx, sql, args...)
		if err == nil {
			err = readStatuses(rows, claims)
		}
		for _, c := range claims {
			switch {
			case err != nil:
				c.status, c.err = "", nil
			case !c.answered():
				c.err = fmt.Errorf("PostgreSQL did not answer a claim for coupon %q", c.coupon)
			}
		}
		if err != nil && !sameCoupon(claims) {
			return manyCouponsError{err}
		}
		return err
	}
}

func claimStatement(claims []*claim) (sql string, args []any) {
	if len(claims) == 1 {
		return claimCouponSQL, []any{claims[0].user, claims[0].coupon}
	}
	users := make([]string, len(claims))
	coupons := make([]string, len(claims))
	positions := make([]int32, len(claims))
	for i, c := range claims {
		users[i], coupons[i], positions[i] = c.user, c.coupon, int32(i)
	}
	if sameCoupon(claims) {
		return claimCouponsSQL, []any{users, coupons[0]}
	}
	return claimBatchSQL, []any{users, coupons, positions}
}

// readStatuses reads the answer of one of the three functions. It parses labels without a copy of
// each; an enum array arrives as text, {claimed,out_of_stock}, and its labels are never quoted.
func readStatuses(rows pgx.Rows, claims []*claim) error {
	defer rows.Close()
	for rows.Next() {
		if len(rows.FieldDescriptions()) == 1 {
			labels := bytes.Trim(rows.RawValues()[0], "{}")
			for _, c := range claims {
				var label []byte
				label, labels, _ = bytes.Cut(labels, []byte{','})
				c.status, c.err = parseClaimStatus(label)
			}
			continue
		}
		var position int32
		var label []byte
		if err := rows.Scan(&position, &label); err != nil {
			return err
		}
		if position < 0 || int(position) >= len(claims) {
			return fmt.Errorf("%w: position %d for %d claims", errInconsistent, position, len(claims))
		}
		claims[position].status, claims[position].err = parseClaimStatus(label)
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
