-- Creating a coupon that exists changes nothing.
begin;
select plan(4);

select public.create_coupon('lamp', 3);
select public.claim_coupon('ann', 'lamp');

select is(public.create_coupon('lamp', 5), 'coupon_exists', 'the name exists');
select is(public.create_coupon('lamp', 3), 'coupon_exists', 'with the same amount too: two creators cannot be distinguished');
select results_eq(
  $$ select amount, remaining_amount from public.coupons $$,
  $$ values (3, 2) $$,
  'the coupon is unchanged');
select is((select count(*) from public.claims), 1::bigint, 'and so are its claims');

select * from finish();
rollback;
