-- The current state of the coupon, or no row.
begin;
select plan(5);

select is_empty($$ select * from coupond.get_coupon('lamp') $$, 'no coupon, no row');
select coupond.create_coupon('lamp', 3);
select results_eq(
  $$ select * from coupond.get_coupon('lamp') $$,
  $$ values ('lamp', 3, 3) $$,
  'name, amount, remaining_amount');
select coupond.claim_coupons(array['ann', 'bob'], 'lamp');
select results_eq(
  $$ select * from coupond.get_coupon('lamp') $$,
  $$ values ('lamp', 3, 1) $$,
  'claims reduce remaining_amount');
select is_empty($$ select * from coupond.get_coupon('LAMP') $$, 'names are case-sensitive');
select is(
  (select amount - remaining_amount from coupond.get_coupon('lamp')),
  (select count(*)::integer from coupond.coupon_claimers('lamp', 0, 2147483647)),
  'amount - remaining_amount is the number of claims');

select * from finish();
rollback;
