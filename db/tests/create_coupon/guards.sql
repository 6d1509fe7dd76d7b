-- An invalid argument raises SQLSTATE 22023 with a message that begins with the argument's name.
begin;
select plan(11);

select throws_ok(
  $$ select coupond.create_coupon(null, 1) $$,
  '22023', 'p_coupon must not be null', 'no name');
select throws_ok(
  $$ select coupond.create_coupon('', 1) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'an empty name');
select throws_ok(
  $$ select coupond.create_coupon(U&' \2009 ', 1) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank name');
select throws_ok(
  $$ select coupond.create_coupon(repeat('x', 256), 1) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a name of 256 characters');
select throws_ok(
  $$ select coupond.create_coupon('lamp', null) $$,
  '22023', 'p_amount must be a whole number from 1 to 2147483647', 'no amount');
select throws_ok(
  $$ select coupond.create_coupon('lamp', 0) $$,
  '22023', 'p_amount must be a whole number from 1 to 2147483647', 'an amount of 0');
select throws_ok(
  $$ select coupond.create_coupon('lamp', -1) $$,
  '22023', 'p_amount must be a whole number from 1 to 2147483647', 'a negative amount');
select throws_ok(
  $$ select coupond.create_coupon('lamp', 2147483648) $$,
  '22023', 'p_amount must be a whole number from 1 to 2147483647', 'more than the largest integer');
select throws_ok(
  $$ select coupond.create_coupon('lamp', 1.5) $$,
  '42883', null, 'a fraction: no such function');

select is_empty('select from coupond.coupons', 'nothing was created');
select is(coupond.create_coupon(repeat(U&'\+01F3AB', 255), 1), 'created', 'a name may have 255 characters of four bytes');

select * from finish();
rollback;
