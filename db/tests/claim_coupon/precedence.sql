-- If several statuses are true, the first of these is returned: coupon_not_found, already_claimed,
-- out_of_stock.
begin;
select plan(3);

select coupond.create_coupon('lamp', 1);
select coupond.claim_coupon('ann', 'lamp');

select is(coupond.claim_coupon('ann', 'lamp'), 'already_claimed', 'sold out, but ann has it: already_claimed');
select is(coupond.claim_coupon('bob', 'lamp'), 'out_of_stock', 'sold out, and bob does not have it: out_of_stock');
select is(coupond.claim_coupon('ann', 'chair'), 'coupon_not_found', 'unknown coupon, although ann has another: coupon_not_found');

select * from finish();
rollback;
