-- 5,000 claims for 10 coupons with a stock of 50 each: the first 50 users per coupon succeed.
begin;
select plan(5);

select coupond.create_coupon('coupon ' || i, 50)
from generate_series(0, 9) as i;

create temporary table result as
  select
    b.position,
    b.status
  from coupond.claim_batch(
    array(select 'user ' || i from generate_series(1, 5000) as i),
    array(select 'coupon ' || i % 10 from generate_series(1, 5000) as i),
    array(select i from generate_series(1, 5000) as i)) as b;

select results_eq(
  $$ select status::text, count(*), min(position), max(position) from result group by status order by status $$,
  $$ values ('claimed', 500::bigint, 1, 500), ('out_of_stock', 4500, 501, 5000) $$,
  'the first 500 claims succeed, 50 per coupon, and no others');
select is((select sum(remaining_amount) from coupond.coupons), 0::bigint, 'the stock of all coupons is 0');
select is_empty(
  $$
    select coupon_name
    from coupond.claims
    group by coupon_name
    having count(*) <> 50
      or min(claim_number) <> 1
      or max(claim_number) <> 50
  $$,
  'the claim numbers of each coupon are 1 to 50');
select is((select count(distinct coupon_name) from coupond.claims), 10::bigint, 'all ten coupons are claimed');
select is_empty(
  $$
    select
    from coupond.claims
    where user_id <> 'user ' || ((claim_number - 1) * 10 + case when coupon_name = 'coupon 0' then 10 else right(coupon_name, 1)::integer end)
  $$,
  'claim numbers are in the order of the batch');

select * from finish();
rollback;
