-- A bad argument is a fault of the caller's: SQLSTATE 22023, and a message that begins with the argument's name.
begin;
select plan(7);

select public.create_coupon('lamp', 1);

select throws_ok(
  $$ select public.coupon_claimers(null, 0, 1) $$,
  '22023', 'p_coupon must not be null', 'no coupon');
select throws_ok(
  $$ select public.coupon_claimers(' ', 0, 1) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank coupon');
select throws_ok(
  $$ select public.coupon_claimers('lamp', null, 1) $$,
  '22023', 'p_after must be a claim number of 0 or more', 'no beginning');
select throws_ok(
  $$ select public.coupon_claimers('lamp', -1, 1) $$,
  '22023', 'p_after must be a claim number of 0 or more', 'a beginning before the first');
select throws_ok(
  $$ select public.coupon_claimers('lamp', 0, null) $$,
  '22023', 'p_upto must be a claim number not below p_after', 'no end');
select throws_ok(
  $$ select public.coupon_claimers('lamp', 2, 1) $$,
  '22023', 'p_upto must be a claim number not below p_after', 'an end before the beginning');
select is_empty(
  $$ select public.coupon_claimers('lamp', 2147483647, 2147483647) $$,
  'the greatest numbers are numbers');

select * from finish();
rollback;
