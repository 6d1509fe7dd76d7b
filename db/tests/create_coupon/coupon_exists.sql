-- Creating a coupon that exists changes nothing.
begin;
select plan(4);

select coupond.create_coupon('lamp', 3);
select coupond.claim_coupon('ann', 'lamp');

select is(coupond.create_coupon('lamp', 5), 'coupon_exists', 'the name exists');
select is(coupond.create_coupon('lamp', 3), 'coupon_exists', 'with the same amount too: two creators cannot be distinguished');
select results_eq(
  $$ select amount::integer, remaining_amount from coupond.coupons $$,
  $$ values (3, 2) $$,
  'the coupon is unchanged');
select is((select count(*) from coupond.claims), 1::bigint, 'and so are its claims');

select * from finish();
rollback;
