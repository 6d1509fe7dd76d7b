package db_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5/pgconn"

	"scalable-coupon-system/internal/pgtest"
)

// whiteSpace is every character with Unicode's property White_Space, from Go's tables.
var whiteSpace = func() (all []rune) {
	for r := rune(1); r <= unicode.MaxRune; r++ {
		if unicode.Is(unicode.White_Space, r) {
			all = append(all, r)
		}
	}
	return all
}()

// Every function refuses an invalid argument with SQLSTATE 22023 and a message that begins with the
// argument's name, and stores nothing.
func TestGuards(t *testing.T) {
	t.Parallel()
	database := pgtest.New(t)
	admin, s := owner(t, database), service(t, database)
	admin.create("good", 5)
	contents := func() []string {
		return list[string](admin, "select c::text from coupond.coupons as c union all select k::text from coupond.claims as k order by 1")
	}
	before := contents()

	refused := func(message, sql string, args ...any) {
		t.Helper()
		err := onlyError(s.Exec(bounded(t), sql, args...))
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pgErr.Code != "22023" || pgErr.Message != message {
			t.Errorf("%s %q\n got: %v\nwant: %s (SQLSTATE 22023)", sql, args, err, message)
		}
	}
	const (
		null    = " must not be null"
		invalid = " must have 1 to 255 characters that are not all white space"
	)

	// Invalid names and user ids, in every argument.
	values := []string{"", strings.Repeat("x", 256), strings.Repeat("🎫", 256), strings.Repeat(" ", 256), string(whiteSpace)}
	for _, r := range whiteSpace {
		values = append(values, string(r))
	}
	for _, value := range values {
		refused("p_user"+invalid, "select coupond.claim_coupon($1, 'good')", value)
		refused("p_coupon"+invalid, "select coupond.claim_coupon('u', $1)", value)
		refused("p_users[1]"+invalid, "select coupond.claim_coupons(array[$1, 'u'], 'good')", value)
		refused("p_users[3]"+invalid, "select coupond.claim_coupons(array['u', 'v', $1, $1], 'good')", value)
		refused("p_coupon"+invalid, "select coupond.claim_coupons(array['u'], $1)", value)
		refused("p_users[2]"+invalid, "select coupond.claim_batch(array['u', $1], array['good', 'good'], array[1, 2])", value)
		refused("p_coupons[2]"+invalid, "select coupond.claim_batch(array['u', 'v'], array['good', $1], array[1, 2])", value)
		refused("p_coupon"+invalid, "select coupond.create_coupon($1, 1)", value)
		refused("p_coupon"+invalid, "select coupond.get_coupon($1)", value)
		refused("p_coupon"+invalid, "select coupond.coupon_claimers($1, 0, 1)", value)
		refused("p_coupons[2]"+invalid, "select coupond.locked_coupons(array['good', $1])", value)
	}

	for _, c := range []struct{ message, sql string }{
		{"p_user" + null, "coupond.claim_coupon(null, 'good')"},
		{"p_user" + null, "coupond.claim_coupon(null, null)"},
		{"p_coupon" + null, "coupond.claim_coupon('u', null)"},
		{"p_users" + null, "coupond.claim_coupons(null, 'good')"},
		{"p_users[2]" + null, "coupond.claim_coupons(array['u', null, ''], 'good')"},
		{"p_coupon" + null, "coupond.claim_coupons(array['u'], null)"},
		{"p_coupon" + null, "coupond.claim_coupons(array[]::text[], null)"},
		{"p_users" + null, "coupond.claim_batch(null, array['good'], array[1])"},
		{"p_coupons" + null, "coupond.claim_batch(array['u'], null, array[1])"},
		{"p_users[1]" + null, "coupond.claim_batch(array[null], array['good'], array[1])"},
		{"p_coupons[1]" + null, "coupond.claim_batch(array['u'], array[null], array[1])"},
		{"p_coupon" + null, "coupond.create_coupon(null, 1)"},
		{"p_coupon" + null, "coupond.get_coupon(null)"},
		{"p_coupon" + null, "coupond.coupon_claimers(null, 0, 1)"},
		{"p_coupons" + null, "coupond.locked_coupons(null)"},
		{"p_coupons[2]" + null, "coupond.locked_coupons(array['good', null])"},

		// The index counts from 1, whatever the lower bound of the array.
		{"p_users[2]" + null, "coupond.claim_coupons('[5:6]={u,null}', 'good')"},
		{"p_users must be an array of one dimension", "coupond.claim_coupons(array[['u', 'v']], 'good')"},
		{"p_users must be an array of one dimension", "coupond.claim_batch(array[['u'], ['v']], array['good', 'good'], array[1, 2])"},
		{"p_coupons must be an array of one dimension", "coupond.claim_batch(array['u', 'v'], array[['good', 'good']], array[1, 2])"},
		{"p_coupons must be an array of one dimension", "coupond.locked_coupons(array[['good'], ['good']])"},
		{"p_positions must be an array of one dimension without nulls", "coupond.claim_batch(array['u', 'v'], array['good', 'good'], array[[1, 2]])"},
		{"p_positions must be an array of one dimension without nulls", "coupond.claim_batch(array['u', 'v'], array['good', 'good'], array[1, null])"},
		{"p_positions must be an array of one dimension without nulls", "coupond.claim_batch(array['u'], array['good'], null)"},
		{"p_users, p_coupons and p_positions must have the same length", "coupond.claim_batch(array['u'], array['good', 'good'], array[1, 2])"},
		{"p_users, p_coupons and p_positions must have the same length", "coupond.claim_batch(array['u', 'v'], array['good'], array[1, 2])"},
		{"p_users, p_coupons and p_positions must have the same length", "coupond.claim_batch(array['u', 'v'], array['good', 'good'], array[1])"},
		{"p_users, p_coupons and p_positions must have the same length", "coupond.claim_batch('{}', '{}', array[1])"},
		{"p_users, p_coupons and p_positions must have the same length", "coupond.claim_batch(array['u'], array['good'], '{}')"},

		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('new', null)"},
		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('new', 0)"},
		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('new', -1)"},
		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('new', 2147483648)"},
		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('new', 9223372036854775807)"},
		{"p_amount must be a whole number from 1 to 2147483647", "coupond.create_coupon('good', 0)"},

		{"p_after must be a claim number of 0 or more", "coupond.coupon_claimers('good', null, 1)"},
		{"p_after must be a claim number of 0 or more", "coupond.coupon_claimers('good', -1, 1)"},
		{"p_upto must be a claim number not below p_after", "coupond.coupon_claimers('good', 0, null)"},
		{"p_upto must be a claim number not below p_after", "coupond.coupon_claimers('good', 3, 2)"},
	} {
		refused(c.message, "select "+c.sql)
	}
	equal(t, "the rows afterwards", contents(), before)
}

// Every valid name is stored byte by byte, and the longest fit the indexes.
func TestGuards_validNames(t *testing.T) {
	t.Parallel()
	s := service(t, pgtest.New(t))
	for _, name := range []string{
		"x",
		strings.Repeat("x", 255),
		strings.Repeat("🎫", 255), // four bytes each
		string(whiteSpace) + "x",
		"x" + string(whiteSpace),
		string(whiteSpace) + "\u00e4",
		"\u200b", // zero width space, which is not White_Space
		"\x01",
		`a/b%2Fc'"; drop table claims; --{{.}}\`,
		"e\u0301 is not \u00e9",
		"\U0010ffff",
	} {
		s.create(name, 3)
		equal(t, fmt.Sprintf("claims of %q", name),
			slices.Concat([]string{s.claim(name, name)}, s.claimCoupons([]string{name, "second"}, name), s.claimBatch([]string{name, "third"}, same(name, 2))),
			[]string{claimed, alreadyClaimed, claimed, alreadyClaimed, claimed})
		equal(t, fmt.Sprintf("users of %q", name), list[string](s, "select coupond.coupon_claimers($1, 0, 3)", name), []string{name, "second", "third"})
		equal(t, "the name", list[string](s, "select name from coupond.get_coupon($1)", name), []string{name})
	}
}

// is_valid_name and Go agree on White_Space for every code point.
func TestIsValidName_whiteSpace(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	blank := list[int32](s, `
		select c
		from generate_series(1, 1114111) as c
		where c not between 55296 and 57343 -- surrogates are not characters
		  and not coupond.is_valid_name(chr(c))`)
	equal(t, "invalid names of one character", blank, whiteSpace)

	// A name of several characters is blank only if each of them is.
	if n := get[int](s, `
		select count(*)
		from unnest($1::integer[]) as a
		cross join unnest($1::integer[]) as b
		where coupond.is_valid_name(chr(a) || chr(b))
		  or not coupond.is_valid_name(chr(a) || 'x' || chr(b))`, whiteSpace); n != 0 {
		t.Errorf("wrong for %d pairs of white space characters", n)
	}
}

// By hand, the owner cannot change the amount of a coupon without its remaining_amount.
func TestGuards_amountByHand(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.create("lamp", 5)
	s.create("chair", 5)
	s.claimCoupons([]string{"ann", "bob"}, "lamp")
	for _, sql := range []string{
		"update coupond.coupons set amount = 9 where name = 'lamp'",
		"update coupond.coupons set amount = 4 where name = 'lamp'",
		"update coupond.coupons set amount = 9, remaining_amount = 9 where name = 'lamp'",
		"update coupond.coupons set amount = 9 where name = 'chair'",
		"update coupond.coupons set amount = 9, name = 'sofa' where name = 'chair'",
	} {
		if err := onlyError(s.Exec(bounded(t), sql)); sqlstate(t, err) != "23514" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	s.exec(`
		update coupond.coupons set amount = amount + 4, remaining_amount = remaining_amount + 4;
		update coupond.coupons set amount = amount - 1, remaining_amount = remaining_amount - 1`)
	equal(t, "users of the coupon", s.claims("lamp"), []string{"ann", "bob"})
}

// The schema has the rule for coupon names, too, because claim_coupon checks the name only of a
// coupon that does not exist.
func TestGuards_namesByHand(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	s.create("lamp", 5)
	for _, name := range []string{"", " ", "\u00a0", strings.Repeat("x", 256)} {
		for _, sql := range []string{
			"insert into coupond.coupons (name, amount, remaining_amount) values ($1, 1, 1)",
			"update coupond.coupons set name = $1 where name = 'lamp'",
		} {
			if err := onlyError(s.Exec(bounded(t), sql, name)); sqlstate(t, err) != "23514" {
				t.Errorf("%s with %q: %v", sql, name, err)
			}
		}
	}
}
