-- 5,000 claims for 10 coupons of 50 pieces: of each coupon the first 50 users win.
begin;
select plan(5);

select public.create_coupon('coupon ' || i, 50)
from generate_series(0, 9) as i;

create temporary table answer as
  select
    a.position,
    a.status
  from public.claim_batch(
    array(select 'user ' || i from generate_series(1, 5000) as i),
    array(select 'coupon ' || i % 10 from generate_series(1, 5000) as i),
    array(select i from generate_series(1, 5000) as i)) as a;

select results_eq(
  $$ select status::text, count(*), min(position), max(position) from answer group by status order by status $$,
  $$ values ('claimed', 500::bigint, 1, 500), ('out_of_stock', 4500, 501, 5000) $$,
  'the first 500 have won, 50 of each coupon, nobody else');
select is((select sum(remaining_amount) from public.coupons), 0::bigint, 'nothing is left');
select is_empty(
  $$
    select coupon_name
    from public.claims
    group by coupon_name
    having count(*) <> 50
      or min(claim_number) <> 1
      or max(claim_number) <> 50
  $$,
  'of each coupon the claim numbers are 1 to 50');
select is((select count(distinct coupon_name) from public.claims), 10::bigint, 'and all ten are claimed');
select is_empty(
  $$
    select
    from public.claims
    where user_id <> 'user ' || ((claim_number - 1) * 10 + case when coupon_name = 'coupon 0' then 10 else right(coupon_name, 1)::integer end)
  $$,
  'in the order of the crowd');

select * from finish();
rollback;
