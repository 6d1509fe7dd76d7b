-- A name that is taken stays with the coupon that has it, which does not change.
begin;
select plan(4);

select public.create_coupon('lamp', 3);
select public.claim_coupon('ann', 'lamp');

select is(public.create_coupon('lamp', 5), 'coupon_exists', 'the name is taken');
select is(public.create_coupon('lamp', 3), 'coupon_exists', 'for the same amount, too: there is no telling two creators apart');
select results_eq(
  $$ select amount, remaining_amount from public.coupons $$,
  $$ values (3, 2) $$,
  'the coupon is as it was');
select is((select count(*) from public.claims), 1::bigint, 'and so are its claims');

select * from finish();
rollback;
