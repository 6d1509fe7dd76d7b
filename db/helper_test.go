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

// The labels of claim_status and create_status.
const (
	claimed        = "claimed"
	alreadyClaimed = "already_claimed"
	outOfStock     = "out_of_stock"
	couponNotFound = "coupon_not_found"

	created      = "created"
	couponExists = "coupon_exists"
)

// patience bounds what a test waits for. It is long: a laden machine is no reason for a test to fail.
const patience = 2 * time.Minute

// tester is what the helpers need of a *testing.T, or of a *rapid.T.
type tester interface {
	Helper()
	Context() context.Context
	Cleanup(f func())
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// session is one connection to the database of a test.
type session struct {
	*pgx.Conn
	t tester
}

// owner connects as the database's owner, who may look into the tables.
func owner(t testing.TB, d *pgtest.Database) *session {
	t.Helper()
	return &session{d.Connect(t), t}
}

// service connects as the service does: in the role coupon_service.
func service(t testing.TB, d *pgtest.Database) *session {
	t.Helper()
	s := owner(t, d)
	s.exec("set role coupon_service")
	return s
}

// several are n sessions of a kind.
func several(t testing.TB, n int, d *pgtest.Database, kind func(testing.TB, *pgtest.Database) *session) []*session {
	t.Helper()
	all := make([]*session, n)
	for i := range all {
		all[i] = kind(t, d)
	}
	return all
}

// together lets all sessions do something at once, and wants no error. It returns what each has brought.
func together[T any](t tester, sessions []*session, run func(ctx context.Context, i int, s *session) (T, error)) []T {
	t.Helper()
	ctx := bounded(t)
	results, failures := make([]T, len(sessions)), make([]error, len(sessions))
	var all sync.WaitGroup
	for i, s := range sessions {
		all.Go(func() { results[i], failures[i] = run(ctx, i, s) })
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	return results
}

func bounded(t tester) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// exec runs one or several statements.
func (s *session) exec(sql string) {
	s.t.Helper()
	if _, err := s.Exec(bounded(s.t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		s.t.Fatalf("%v\n%s", err, sql)
	}
}

// get asks for one value.
func get[T any](s *session, sql string, args ...any) T {
	s.t.Helper()
	value, err := ask[T](bounded(s.t), s.Conn, sql, args...)
	if err != nil {
		s.t.Fatalf("%v\n%s\n%v", err, sql, args)
	}
	return value
}

// ask is get for goroutines, which may not end the test.
func ask[T any](ctx context.Context, conn *pgx.Conn, sql string, args ...any) (value T, err error) {
	err = conn.QueryRow(ctx, sql, args...).Scan(&value)
	return value, err
}

// list asks for one column.
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
	if status := get[string](s, "select public.create_coupon($1, $2)", coupon, amount); status != created {
		s.t.Fatalf("create %q: %s", coupon, status)
	}
}

// The three ways to claim. Those that end in Err are for goroutines.

func (s *session) claim(user, coupon string) string {
	s.t.Helper()
	return get[string](s, "select public.claim_coupon($1, $2)", user, coupon)
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
	// As text[]: pgx knows nothing of our enum's array.
	statuses, err := ask[[]string](ctx, s.Conn, "select public.claim_coupons($1, $2)::pg_catalog.text[]", users, coupon)
	if err == nil && len(statuses) != len(users) {
		err = fmt.Errorf("%d answers to %d users", len(statuses), len(users))
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
	rows, err := s.Query(ctx, "select * from public.claim_batch($1, $2, $3)", users, coupons, positions)
	if err != nil {
		return nil, err
	}
	var place int32
	var status string
	var statuses []string
	_, err = pgx.ForEachRow(rows, []any{&place, &status}, func() error {
		if int(place) != len(statuses) {
			return fmt.Errorf("position %d in place %d", place, len(statuses))
		}
		statuses = append(statuses, status)
		return nil
	})
	if err == nil && len(statuses) != len(users) {
		err = fmt.Errorf("%d answers to %d claims", len(statuses), len(users))
	}
	return statuses, err
}

// claims are the users who have the coupon, in claim order. It fails the test unless claim numbers are 1 to n and stock and
// claims add up to the amount.
func (s *session) claims(coupon string) []string {
	s.t.Helper()
	users := list[string](s, "select user_id from public.claims where coupon_name = $1 order by claim_number", coupon)
	numbers := list[int](s, "select claim_number from public.claims where coupon_name = $1 order by claim_number", coupon)
	for i, number := range numbers {
		if number != i+1 {
			s.t.Fatalf("the claims of %q have the numbers %v", coupon, numbers)
		}
	}
	if rest := get[int](s, "select amount - remaining_amount from public.coupons where name = $1", coupon); rest != len(users) {
		s.t.Fatalf("%q: %d claims, but %d are missing in the stock", coupon, len(users), rest)
	}
	return users
}

// sqlstate is the code of a server's error, "" for none.
func sqlstate(t tester, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatalf("no error of the server: %v", err)
	}
	return pgErr.Code
}

// equal fails the test unless both are the same list. Of long ones it shows where they part.
func equal[T comparable](t tester, what string, got, want []T) {
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
		return fmt.Sprintf("%d, from [%d] on: %v", len(all), i, all[i:min(len(all), i+3)])
	}
	t.Errorf("%s\n got: %s\nwant: %s", what, tail(got), tail(want))
}

// names makes n names out of a pattern with one %d, from 1 on.
func names(pattern string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(pattern, i+1)
	}
	return all
}

// same repeats a name.
func same(name string, n int) []string { return slices.Repeat([]string{name}, n) }

// lines are the lines of a text without the empty ones, without white space around and comments (#).
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
