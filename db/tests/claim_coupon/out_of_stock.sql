-- When the stock is 0, all further claims get out_of_stock.
begin;
select plan(5);

select public.create_coupon('lamp', 1);
select public.claim_coupon('ann', 'lamp');

select is(public.claim_coupon('bob', 'lamp'), 'out_of_stock', 'ann has the only lamp');
select is(public.claim_coupon('bob', 'lamp'), 'out_of_stock', 'a second claim gets the same status');
select is(public.claim_coupon('eve', 'lamp'), 'out_of_stock', 'and so does another user');
select is((select count(*) from public.claims), 1::bigint, 'no claim is stored');
select is((select remaining_amount from public.coupons where name = 'lamp'), 0, 'the stock is still 0');

select * from finish();
rollback;
