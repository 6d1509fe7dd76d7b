-- When the stock is 0, all further claims get out_of_stock.
begin;
select plan(5);

select coupond.create_coupon('lamp', 1);
select coupond.claim_coupon('ann', 'lamp');

select is(coupond.claim_coupon('bob', 'lamp'), 'out_of_stock', 'ann has the only lamp');
select is(coupond.claim_coupon('bob', 'lamp'), 'out_of_stock', 'a second claim gets the same status');
select is(coupond.claim_coupon('eve', 'lamp'), 'out_of_stock', 'and so does another user');
select is((select count(*) from coupond.claims), 1::bigint, 'no claim is stored');
select is((select remaining_amount from coupond.coupons where name = 'lamp'), 0, 'the stock is still 0');

select * from finish();
rollback;
