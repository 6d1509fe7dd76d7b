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

// Every function checks each of its names, and stores nothing if one is invalid. (The pgTAP tests
// guards.sql test other invalid arguments.)
func TestGuards(t *testing.T) {
	t.Parallel()
	s := service(t, pgtest.New(t))
	s.create("good", 5)
	const invalid = " must have 1 to 255 characters that are not all white space"
	for _, value := range []string{"", "\u3000", string(whiteSpace), strings.Repeat(" ", 256), strings.Repeat("x", 256), strings.Repeat("🎫", 256)} {
		for _, c := range []struct{ argument, call string }{
			{"p_user", "claim_coupon($1, 'good')"},
			{"p_coupon", "claim_coupon('u', $1)"},
			{"p_users[1]", "claim_coupons(array[$1, 'u'], 'good')"},
			{"p_users[3]", "claim_coupons(array['u', 'v', $1, $1], 'good')"},
			{"p_coupon", "claim_coupons(array['u'], $1)"},
			{"p_users[2]", "claim_batch(array['u', $1], array['good', 'good'], array[1, 2])"},
			{"p_coupons[2]", "claim_batch(array['u', 'v'], array['good', $1], array[1, 2])"},
			{"p_coupon", "create_coupon($1, 1)"},
			{"p_coupon", "get_coupon($1)"},
			{"p_coupon", "coupon_claimers($1, 0, 1)"},
			{"p_coupons[2]", "locked_coupons(array['good', $1])"},
		} {
			err := onlyError(s.Exec(bounded(t), "select coupond."+c.call, value))
			pgErr, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || pgErr.Code != "22023" || pgErr.Message != c.argument+invalid {
				t.Errorf("%s %q\n got: %v\nwant: %s (SQLSTATE 22023)", c.call, value, err, c.argument+invalid)
			}
		}
	}
	equal(t, "claimers", list[string](s, "select coupond.coupon_claimers('good', 0, 5)"), nil)
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

// is_valid_name and Go agree on White_Space for every code point of the first two planes. (Go's
// tables have none in the others.)
func TestIsValidName_whiteSpace(t *testing.T) {
	t.Parallel()
	s := owner(t, pgtest.New(t))
	blank := list[int32](s, `
		select c
		from generate_series(1, 131071) as c
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
		s.fails("23514", sql)
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
			s.fails("23514", sql, name)
		}
	}
}
