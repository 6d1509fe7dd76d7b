-- The first users of the batch succeed, as many as the stock allows.
begin;
select plan(5);

select coupond.create_coupon('lamp', 1000);
create temporary table result as
  select
    ord,
    status
  from unnest(coupond.claim_coupons(array(select 'user ' || i from generate_series(1, 5000) as i), 'lamp'))
    with ordinality as s (status, ord);

select is((select count(*) from result), 5000::bigint, 'each user has a status');
select results_eq(
  $$ select status::text, count(*), min(ord), max(ord) from result group by status order by status $$,
  $$ values ('claimed', 1000::bigint, 1::bigint, 1000::bigint), ('out_of_stock', 4000, 1001, 5000) $$,
  'the first 1000 succeed, and no others');
select is((select remaining_amount from coupond.coupons), 0, 'the stock is 0');
select ok(
  (select count(*) = 1000 and min(claim_number) = 1 and max(claim_number) = 1000 from coupond.claims),
  'claim numbers are 1 to 1000');
select is_empty(
  $$ select from coupond.claims where user_id <> 'user ' || claim_number $$,
  'claim numbers are in the order of the batch');

select * from finish();
rollback;
