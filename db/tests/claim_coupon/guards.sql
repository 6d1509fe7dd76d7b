-- An invalid argument raises SQLSTATE 22023 with a message that begins with the argument's name.
begin;
select plan(13);

select coupond.create_coupon('lamp', 5);

select throws_ok(
  $$ select coupond.claim_coupon(null, 'lamp') $$,
  '22023', 'p_user must not be null', 'no user');
select throws_ok(
  $$ select coupond.claim_coupon('ann', null) $$,
  '22023', 'p_coupon must not be null', 'no coupon');
select throws_ok(
  $$ select coupond.claim_coupon(null, null) $$,
  '22023', 'p_user must not be null', 'the first of two invalid arguments is named');
select throws_ok(
  $$ select coupond.claim_coupon('', 'lamp') $$,
  '22023', 'p_user must have 1 to 255 characters that are not all white space', 'an empty user');
select throws_ok(
  $$ select coupond.claim_coupon('ann', '') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'an empty coupon');
select throws_ok(
  $$ select coupond.claim_coupon(E' \t\n', 'lamp') $$,
  '22023', 'p_user must have 1 to 255 characters that are not all white space', 'a blank user');
select throws_ok(
  $$ select coupond.claim_coupon('ann', U&'\3000\2003') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a coupon that is blank in Unicode');
select throws_ok(
  $$ select coupond.claim_coupon(repeat('x', 256), 'lamp') $$,
  '22023', 'p_user must have 1 to 255 characters that are not all white space', 'a user of 256 characters');
select throws_ok(
  $$ select coupond.claim_coupon('ann', repeat('x', 256)) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a coupon of 256 characters');

select is_empty('select from coupond.claims', 'a refused call stores no claim');
select is((select remaining_amount from coupond.coupons), 5, 'and leaves the stock unchanged');

select is(coupond.claim_coupon(repeat(U&'\+01F3AB', 255), 'lamp'), 'claimed', 'a user id may have 255 characters of four bytes');
select coupond.create_coupon(repeat(U&'\+01F3AB', 255), 1);
select is(
  coupond.claim_coupon(repeat(U&'\+01F3AB', 255), repeat(U&'\+01F3AB', 255)), 'claimed',
  'and so may a coupon name: together they fit the indexes');

select * from finish();
rollback;
