-- A user who has the coupon never gets a second one.
begin;
select plan(5);

select public.create_coupon('lamp', 2);
select public.create_coupon('chair', 1);
select public.claim_coupon('ann', 'lamp');

select is(public.claim_coupon('ann', 'lamp'), 'already_claimed', 'ann has the lamp already');
select is(public.claim_coupon('ann', 'lamp'), 'already_claimed', 'however often she asks');
select is((select count(*) from public.claims), 1::bigint, 'no claim was added');
select is((select remaining_amount from public.coupons where name = 'lamp'), 1, 'nothing was taken from the stock');
select is(public.claim_coupon('ann', 'chair'), 'claimed', 'another coupon is another matter');

select * from finish();
rollback;
