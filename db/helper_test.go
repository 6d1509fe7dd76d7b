package db_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The labels of the enums claim_status and create_status.
const (
	claimed        = "claimed"
	alreadyClaimed = "already_claimed"
	outOfStock     = "out_of_stock"
	couponNotFound = "coupon_not_found"

	created      = "created"
	couponExists = "coupon_exists"
)

// testTimeout bounds every wait of a test. It is long, so that tests do not fail on a busy machine.
const testTimeout = 2 * time.Minute

// testingTB is what the helpers need of a *testing.T or *rapid.T.
type testingTB interface {
	Helper()
	Context() context.Context
	Cleanup(f func())
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// session is a connection to the database of a test.
type session struct {
	*pgx.Conn
	t testingTB
}

// owner connects as the database's owner, which may read the tables.
func owner(t testing.TB, d *pgtest.Database) *session {
	t.Helper()
	return &session{d.Connect(t), t}
}

// service connects like the service: with the role coupon_service.
func service(t testing.TB, d *pgtest.Database) *session {
	t.Helper()
	s := owner(t, d)
	s.exec("set role coupon_service")
	return s
}

// several opens n sessions with connect, which is owner or service.
func several(t testing.TB, n int, d *pgtest.Database, connect func(testing.TB, *pgtest.Database) *session) []*session {
	t.Helper()
	all := make([]*session, n)
	for i := range all {
		all[i] = connect(t, d)
	}
	return all
}

// concurrently calls run for all sessions at the same time and returns the results. An error fails
// the test.
func concurrently[T any](t testingTB, sessions []*session, run func(ctx context.Context, i int, s *session) (T, error)) []T {
	t.Helper()
	ctx := bounded(t)
	results, errs := make([]T, len(sessions)), make([]error, len(sessions))
	var wg sync.WaitGroup
	for i, s := range sessions {
		wg.Go(func() { results[i], errs[i] = run(ctx, i, s) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return results
}

// bounded returns the test's context with testTimeout.
func bounded(t testingTB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// exec executes one or several statements.
func (s *session) exec(sql string) {
	s.t.Helper()
	if _, err := s.Exec(bounded(s.t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		s.t.Fatalf("%v\n%s", err, sql)
	}
}

// get returns the single value of a query.
func get[T any](s *session, sql string, args ...any) T {
	s.t.Helper()
	value, err := getErr[T](bounded(s.t), s.Conn, sql, args...)
	if err != nil {
		s.t.Fatalf("%v\n%s\n%v", err, sql, args)
	}
	return value
}

// getErr is get for goroutines, which may not end the test.
func getErr[T any](ctx context.Context, conn *pgx.Conn, sql string, args ...any) (value T, err error) {
	err = conn.QueryRow(ctx, sql, args...).Scan(&value)
	return value, err
}

// list returns the single column of a query.
func list[T any](s *session, sql string, args ...any) []T {
	s.t.Helper()
	rows, err := s.Query(bounded(s.t), sql, args...)
	if err != nil {
		s.t.Fatalf("%v\n%s\n%v", err, sql, args)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		s.t.Fatalf("%v\n%s\n%v", err, sql, args)
	}
	return values
}

func (s *session) create(coupon string, amount int) {
	s.t.Helper()
	if status := get[string](s, "select coupond.create_coupon($1, $2)", coupon, amount); status != created {
		s.t.Fatalf("create %q: %s", coupon, status)
	}
}

// The three claim functions. Methods that end in Err are for goroutines.

func (s *session) claim(user, coupon string) string {
	s.t.Helper()
	return get[string](s, "select coupond.claim_coupon($1, $2)", user, coupon)
}

func (s *session) claimCoupons(users []string, coupon string) []string {
	s.t.Helper()
	statuses, err := s.claimCouponsErr(bounded(s.t), users, coupon)
	if err != nil {
		s.t.Fatalf("claim_coupons: %v", err)
	}
	return statuses
}

func (s *session) claimCouponsErr(ctx context.Context, users []string, coupon string) ([]string, error) {
	// As text[], because pgx does not know the array type of our enum.
	statuses, err := getErr[[]string](ctx, s.Conn, "select coupond.claim_coupons($1, $2)::pg_catalog.text[]", users, coupon)
	if err == nil && len(statuses) != len(users) {
		err = fmt.Errorf("%d statuses for %d users", len(statuses), len(users))
	}
	return statuses, err
}

func (s *session) claimBatch(users, coupons []string) []string {
	s.t.Helper()
	statuses, err := s.claimBatchErr(bounded(s.t), users, coupons)
	if err != nil {
		s.t.Fatalf("claim_batch: %v", err)
	}
	return statuses
}

func (s *session) claimBatchErr(ctx context.Context, users, coupons []string) ([]string, error) {
	positions := make([]int32, len(users))
	for i := range positions {
		positions[i] = int32(i)
	}
	rows, err := s.Query(ctx, "select * from coupond.claim_batch($1, $2, $3)", users, coupons, positions)
	if err != nil {
		return nil, err
	}
	var position int32
	var status string
	var statuses []string
	_, err = pgx.ForEachRow(rows, []any{&position, &status}, func() error {
		if int(position) != len(statuses) {
			return fmt.Errorf("row %d has position %d", len(statuses), position)
		}
		statuses = append(statuses, status)
		return nil
	})
	if err == nil && len(statuses) != len(users) {
		err = fmt.Errorf("%d statuses for %d claims", len(statuses), len(users))
	}
	return statuses, err
}

// claims returns the users that have the coupon, in claim order. It fails the test unless claim
// numbers are 1 to n and the remaining amount is the amount minus n.
func (s *session) claims(coupon string) []string {
	s.t.Helper()
	var users []string
	var last, taken int
	err := s.QueryRow(bounded(s.t), `
		select
		  coalesce(array_agg(k.user_id::text order by k.claim_number), '{}'),
		  coalesce(max(k.claim_number)::integer, 0),
		  (select c.amount - c.remaining_amount from coupond.coupons as c where c.name = $1)
		from coupond.claims as k
		where k.coupon_name = $1`, coupon).Scan(&users, &last, &taken)
	if err != nil {
		s.t.Fatalf("claims of %q: %v", coupon, err)
	}
	if last != len(users) || taken != len(users) { // the numbers are positive and unique
		s.t.Fatalf("%q: %d claims, the last has number %d, but the stock was decremented by %d", coupon, len(users), last, taken)
	}
	return users
}

// sqlstate returns the SQLSTATE of an error of the server, "" for nil.
func sqlstate(t testingTB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatalf("not an error of the server: %v", err)
	}
	return pgErr.Code
}

// equal fails the test unless the lists are equal. Of long lists it prints the first difference.
func equal[T comparable](t testingTB, what string, got, want []T) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	tail := func(all []T) string {
		if len(want) <= 20 {
			return fmt.Sprint(all)
		}
		return fmt.Sprintf("%d elements, from [%d] on: %v", len(all), i, all[i:min(len(all), i+3)])
	}
	t.Errorf("%s\n got: %s\nwant: %s", what, tail(got), tail(want))
}

// names returns n names, from a pattern with one %d that counts from 1.
func names(pattern string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(pattern, i+1)
	}
	return all
}

// same returns n times the same name.
func same(name string, n int) []string { return slices.Repeat([]string{name}, n) }

// lines returns the lines of a text, trimmed, without comments (#) and empty lines.
func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}
