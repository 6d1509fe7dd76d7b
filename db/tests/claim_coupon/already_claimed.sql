-- A user that has the coupon never gets a second one.
begin;
select plan(5);

select coupond.create_coupon('lamp', 2);
select coupond.create_coupon('chair', 1);
select coupond.claim_coupon('ann', 'lamp');

select is(coupond.claim_coupon('ann', 'lamp'), 'already_claimed', 'a second claim');
select is(coupond.claim_coupon('ann', 'lamp'), 'already_claimed', 'a third claim');
select is((select count(*) from coupond.claims), 1::bigint, 'no claim is stored');
select is((select remaining_amount from coupond.coupons where name = 'lamp'), 1, 'the stock is unchanged');
select is(coupond.claim_coupon('ann', 'chair'), 'claimed', 'the user can claim another coupon');

select * from finish();
rollback;
