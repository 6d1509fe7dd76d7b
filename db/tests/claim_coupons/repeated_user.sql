-- A user that is in the batch several times gets the coupon at most once.
begin;
select plan(4);

select coupond.create_coupon('lamp', 3);
select is(
  coupond.claim_coupons(array['ann', 'ann', 'bob', 'ann', 'bob'], 'lamp'),
  '{claimed,already_claimed,claimed,already_claimed,already_claimed}',
  'the first request is claimed, the others are already_claimed');
select is((select remaining_amount from coupond.coupons where name = 'lamp'), 1, 'repeats do not decrement the stock');

select coupond.create_coupon('chair', 1);
select is(
  coupond.claim_coupons(array['ann', 'bob', 'bob', 'ann'], 'chair'),
  '{claimed,out_of_stock,out_of_stock,already_claimed}',
  'if the batch exhausts the stock, repeats get already_claimed or out_of_stock');
select is((select count(*) from coupond.claims), 3::bigint, 'three claims are stored');

select * from finish();
rollback;
