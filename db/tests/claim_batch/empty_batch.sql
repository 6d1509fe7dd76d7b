-- An empty batch returns no rows and changes nothing.
begin;
select plan(2);

select public.create_coupon('lamp', 1);
select is_empty($$ select * from public.claim_batch('{}', '{}', '{}') $$, 'no claims, no rows');
select is((select remaining_amount from public.coupons), 1, 'the stock is unchanged');

select * from finish();
rollback;
