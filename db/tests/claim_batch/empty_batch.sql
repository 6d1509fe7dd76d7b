-- An empty batch returns no rows and changes nothing.
begin;
select plan(2);

select coupond.create_coupon('lamp', 1);
select is_empty($$ select * from coupond.claim_batch('{}', '{}', '{}') $$, 'no claims, no rows');
select is((select remaining_amount from coupond.coupons), 1, 'the stock is unchanged');

select * from finish();
rollback;
