-- Nobody wants anything: no answer, no change.
begin;
select plan(4);

select public.create_coupon('lamp', 1);
select is(public.claim_coupons('{}', 'lamp'), '{}', 'no users, no statuses');
select is(public.claim_coupons('{}', 'chair'), '{}', 'of an unknown coupon, too');
select is((select remaining_amount from public.coupons), 1, 'the stock is whole');
select throws_ok(
  $$ select public.claim_coupons('{}', null) $$,
  '22023', 'p_coupon must not be null', 'the coupon must be a name all the same');

select * from finish();
rollback;
