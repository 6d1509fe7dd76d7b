-- A bad argument is a fault of the caller's: SQLSTATE 22023, and a message with the argument's name and the place in it.
begin;
select plan(14);

select public.create_coupon('lamp', 5);

select throws_ok(
  $$ select public.claim_coupons(null, 'lamp') $$,
  '22023', 'p_users must not be null', 'no crowd');
select throws_ok(
  $$ select public.claim_coupons(array['ann'], null) $$,
  '22023', 'p_coupon must not be null', 'no coupon');
select throws_ok(
  $$ select public.claim_coupons(array['ann'], U&'\00a0') $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a blank coupon');
select throws_ok(
  $$ select public.claim_coupons(array['ann'], repeat('x', 256)) $$,
  '22023', 'p_coupon must have 1 to 255 characters that are not all white space', 'a coupon of 256 characters');
select throws_ok(
  $$ select public.claim_coupons(array['ann', null, ''], 'lamp') $$,
  '22023', 'p_users[2] must not be null', 'a null in the crowd: the first bad place is told');
select throws_ok(
  $$ select public.claim_coupons(array['ann', 'bob', ''], 'lamp') $$,
  '22023', 'p_users[3] must have 1 to 255 characters that are not all white space', 'an empty user in the crowd');
select throws_ok(
  $$ select public.claim_coupons(array[E'\t', 'bob'], 'lamp') $$,
  '22023', 'p_users[1] must have 1 to 255 characters that are not all white space', 'a blank user in the crowd');
select throws_ok(
  $$ select public.claim_coupons(array['ann', repeat('x', 256)], 'lamp') $$,
  '22023', 'p_users[2] must have 1 to 255 characters that are not all white space', 'a user of 256 characters');
select throws_ok(
  $$ select public.claim_coupons(array[['ann', 'bob'], ['eve', 'joe']], 'lamp') $$,
  '22023', 'p_users must be an array of one dimension', 'a table of users');
select throws_ok(
  $$ select public.claim_coupons('[7:8]={ann,NULL}', 'lamp') $$,
  '22023', 'p_users[2] must not be null', 'places are counted from 1, however the array counts');
select throws_ok(
  $$ select public.claim_coupons(array['ann', null], 'chair') $$,
  '22023', 'p_users[2] must not be null', 'the coupon need not exist to be asked for wrongly');

select is_empty('select from public.claims', 'one bad user, and none of the crowd claims');
select is((select remaining_amount from public.coupons), 5, 'nor is anything taken');
select is(public.claim_coupons('[7:8]={ann,bob}', 'lamp'), '{claimed,claimed}', 'an array that counts from 7 is a crowd like any other');

select * from finish();
rollback;
