-- An empty batch returns no statuses and changes nothing.
begin;
select plan(4);

select coupond.create_coupon('lamp', 1);
select is(coupond.claim_coupons('{}', 'lamp'), '{}', 'no users, no statuses');
select is(coupond.claim_coupons('{}', 'chair'), '{}', 'not for an unknown coupon either');
select is((select remaining_amount from coupond.coupons), 1, 'the stock is unchanged');
select throws_ok(
  $$ select coupond.claim_coupons('{}', null) $$,
  '22023', 'p_coupon must not be null', 'the coupon name is still checked');

select * from finish();
rollback;
