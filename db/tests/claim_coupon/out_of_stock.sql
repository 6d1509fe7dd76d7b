-- When nothing is left, nobody gets anything any more.
begin;
select plan(5);

select public.create_coupon('lamp', 1);
select public.claim_coupon('ann', 'lamp');

select is(public.claim_coupon('bob', 'lamp'), 'out_of_stock', 'the only lamp is ann''s');
select is(public.claim_coupon('bob', 'lamp'), 'out_of_stock', 'and stays hers');
select is(public.claim_coupon('eve', 'lamp'), 'out_of_stock', 'for everybody');
select is((select count(*) from public.claims), 1::bigint, 'no claim was added');
select is((select remaining_amount from public.coupons where name = 'lamp'), 0, 'the stock stays at nothing');

select * from finish();
rollback;
