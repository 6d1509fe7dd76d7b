-- The service's role claims without any right on the tables.
begin;
set local role coupon_service;
select plan(9);

select is(public.create_coupon('lamp', 2), 'created', 'the role creates a coupon');
select is(public.claim_coupon('ann', 'lamp'), 'claimed', 'claims');
select is(public.claim_coupons(array['ann', 'bob'], 'lamp'), '{already_claimed,claimed}', 'claims for a crowd');
select results_eq(
  $$ select * from public.claim_batch(array['eve'], array['lamp'], array[7]) $$,
  $$ values (7, 'out_of_stock'::public.claim_status) $$,
  'claims for a mixed crowd');
select results_eq(
  $$ select * from public.get_coupon('lamp') $$,
  $$ values ('lamp', 2, 0) $$,
  'reads the coupon');
select results_eq(
  $$ select public.coupon_claimers('lamp', 0, 10) $$,
  $$ values ('ann'), ('bob') $$,
  'reads the claimers');
select ok(public.coupon_schema_version() > 0, 'reads the version of the schema');

select throws_ok('select from public.claims', '42501', 'permission denied for table claims', 'but does not see the claims');
select throws_ok(
  $$ update public.coupons set remaining_amount = amount $$,
  '42501', 'permission denied for table coupons', 'and cannot restock');

select * from finish();
rollback;
