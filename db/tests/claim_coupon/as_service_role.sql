-- The service's role can claim without privileges on the tables.
begin;
set local role coupon_service;
select plan(10);

select is(coupond.create_coupon('lamp', 2), 'created', 'the role creates a coupon');
select is(coupond.claim_coupon('ann', 'lamp'), 'claimed', 'claims a coupon');
select is(coupond.claim_coupons(array['ann', 'bob'], 'lamp'), '{already_claimed,claimed}', 'claims one coupon for a batch of users');
select results_eq(
  $$ select * from coupond.claim_batch(array['eve'], array['lamp'], array[7]) $$,
  $$ values (7, 'out_of_stock'::coupond.claim_status) $$,
  'claims a batch over coupons');
select results_eq(
  $$ select * from coupond.get_coupon('lamp') $$,
  $$ values ('lamp', 2, 0) $$,
  'reads the coupon');
select results_eq(
  $$ select coupond.coupon_claimers('lamp', 0, 10) $$,
  $$ values ('ann'), ('bob') $$,
  'reads the claimers');
select is_empty($$ select coupond.locked_coupons(array['lamp']) $$, 'asks which coupons are locked');
select ok(coupond.coupon_schema_version() > 0, 'reads the schema version');

select throws_ok('select from coupond.claims', '42501', 'permission denied for table claims', 'but cannot read the claims');
select throws_ok(
  $$ update coupond.coupons set remaining_amount = amount $$,
  '42501', 'permission denied for table coupons', 'and cannot change the stock');

select * from finish();
rollback;
