-- A user who stands in the crowd several times gets one piece at most.
begin;
select plan(4);

select public.create_coupon('lamp', 3);
select is(
  public.claim_coupons(array['ann', 'ann', 'bob', 'ann', 'bob'], 'lamp'),
  '{claimed,already_claimed,claimed,already_claimed,already_claimed}',
  'the first request is the claim, the others find it');
select is((select remaining_amount from public.coupons where name = 'lamp'), 1, 'repeats take nothing from the stock');

select public.create_coupon('chair', 1);
select is(
  public.claim_coupons(array['ann', 'bob', 'bob', 'ann'], 'chair'),
  '{claimed,out_of_stock,out_of_stock,already_claimed}',
  'sold out on the way: a loser loses each time, the winner has it');
select is((select count(*) from public.claims), 3::bigint, 'three claims in all');

select * from finish();
rollback;
