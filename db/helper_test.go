package db_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
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

// concurrently calls run for all sessions at the same time and returns the results. If one fails,
// the test ends when all have returned.
func concurrently[T any](t testing.TB, sessions []*session, run func(i int, s *session) T) []T {
	t.Helper()
	results := make([]T, len(sessions))
	var wg sync.WaitGroup
	for i, s := range sessions {
		wg.Go(func() { results[i] = run(i, &session{s.Conn, inGoroutine{t}}) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return results
}

// inGoroutine is a test in one of several goroutines, of which Fatal ends only this one.
type inGoroutine struct{ testing.TB }

func (t inGoroutine) Fatal(args ...any) {
	t.Helper()
	t.Error(args...)
	runtime.Goexit()
}

func (t inGoroutine) Fatalf(format string, args ...any) {
	t.Helper()
	t.Errorf(format, args...)
	runtime.Goexit()
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

// fails executes a statement that must fail with this SQLSTATE.
func (s *session) fails(state, sql string, args ...any) {
	s.t.Helper()
	if err := onlyError(s.Exec(bounded(s.t), sql, args...)); sqlstate(s.t, err) != state {
		s.t.Errorf("%s %q: %v, want SQLSTATE %s", sql, args, err, state)
	}
}

// get returns the single value of a query.
func get[T any](s *session, sql string, args ...any) (value T) {
	s.t.Helper()
	if err := s.QueryRow(bounded(s.t), sql, args...).Scan(&value); err != nil {
		s.t.Fatalf("%v\n%s\n%v", err, sql, args)
	}
	return value
}

// list returns the single column of a query.
func list[T any](s *session, sql string, args ...any) []T {
	s.t.Helper()
	rows, _ := s.Query(bounded(s.t), sql, args...) // CollectRows returns the error
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

// The three claim functions.

func (s *session) claim(user, coupon string) string {
	s.t.Helper()
	return get[string](s, "select coupond.claim_coupon($1, $2)", user, coupon)
}

// mustClaim fails the test unless the claim is successful.
func (s *session) mustClaim(user, coupon string) {
	s.t.Helper()
	if status := s.claim(user, coupon); status != claimed {
		s.t.Fatalf("a claim on %q by %q: %s", coupon, user, status)
	}
}

func (s *session) claimCoupons(users []string, coupon string) []string {
	s.t.Helper()
	// As text[], because pgx does not know the array type of our enum.
	statuses := get[[]string](s, "select coupond.claim_coupons($1, $2)::pg_catalog.text[]", users, coupon)
	if len(statuses) != len(users) {
		s.t.Fatalf("claim_coupons: %d statuses for %d users", len(statuses), len(users))
	}
	return statuses
}

// claimBatch gives the claims random positions, and checks that the rows have these positions and
// are in the order of the claims.
func (s *session) claimBatch(users, coupons []string) []string {
	s.t.Helper()
	positions := rand.Perm(len(users))
	rows, _ := s.Query(bounded(s.t), "select * from coupond.claim_batch($1, $2, $3)", users, coupons, positions)
	var position int
	var status string
	returned, statuses := []int{}, []string{}
	if _, err := pgx.ForEachRow(rows, []any{&position, &status}, func() error {
		returned, statuses = append(returned, position), append(statuses, status)
		return nil
	}); err != nil {
		s.t.Fatalf("claim_batch: %v", err)
	}
	equal(s.t, "the positions", returned, positions)
	return statuses
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
