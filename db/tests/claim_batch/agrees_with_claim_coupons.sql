-- claim_coupons and claim_batch implement the same rule: the same requests get the same statuses
-- and leave the same claims. (db/agreement_test.go tests random batches.)
begin;
select plan(3);

create temporary table request as
  select
    i as position,
    'user ' || i * 7919 % 97 as user_id,
    'coupon ' || i * 104729 % 11 as coupon_name
  from generate_series(1, 1500) as i;

-- Coupons 9 and 10 do not exist.
select coupond.create_coupon(prefix || 'coupon ' || i, 5 + i * 10)
from generate_series(0, 8) as i
cross join unnest(array['one:  ', 'many: ']) as prefix;

create temporary table claim_coupons_result as
  select
    s.position,
    s.status
  from (
    select
      array_agg(user_id order by position) as users,
      array_agg(position order by position) as positions,
      coupon_name
    from request
    group by coupon_name
  ) as r
  cross join lateral unnest(r.positions, coupond.claim_coupons(r.users, 'one:  ' || r.coupon_name)) as s (position, status);

create temporary table claim_batch_result as
  select
    s.position,
    s.status
  from (
    select
      array_agg(user_id order by position) as users,
      array_agg('many: ' || coupon_name order by position) as coupons,
      array_agg(position order by position) as positions
    from request
  ) as r
  cross join lateral coupond.claim_batch(r.users, r.coupons, r.positions) as s;

select results_eq(
  'select position, status from claim_coupons_result order by position',
  'select position, status from claim_batch_result order by position',
  'equal statuses');
select is(
  (select count(distinct status) from claim_batch_result), 4::bigint,
  'all four statuses occur');
select results_eq(
  $$ select substr(coupon_name, 7), claim_number, user_id from coupond.claims where coupon_name like 'one:  %' order by 1, 2 $$,
  $$ select substr(coupon_name, 7), claim_number, user_id from coupond.claims where coupon_name like 'many: %' order by 1, 2 $$,
  'equal claims');

select * from finish();
rollback;
