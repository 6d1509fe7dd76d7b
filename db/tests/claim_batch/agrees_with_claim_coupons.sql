-- The rule is said twice, for one coupon and for many. The same crowd gets the same answers and leaves the same claims.
-- (db/agreement_test.go draws crowds at random.)
begin;
select plan(3);

create temporary table crowd as
  select
    i as place,
    'user ' || i * 7919 % 97 as user_id,
    'coupon ' || i * 104729 % 11 as coupon_name
  from generate_series(1, 1500) as i;

-- Coupons 9 and 10 do not exist.
select public.create_coupon(way || 'coupon ' || i, 5 + i * 10)
from generate_series(0, 8) as i
cross join unnest(array['one:  ', 'many: ']) as way;

create temporary table by_coupon as
  select
    a.place,
    a.status
  from (
    select
      array_agg(user_id order by place) as users,
      array_agg(place order by place) as places,
      coupon_name
    from crowd
    group by coupon_name
  ) as c
  cross join lateral unnest(c.places, public.claim_coupons(c.users, 'one:  ' || c.coupon_name)) as a (place, status);

create temporary table by_sets as
  select
    a.position as place,
    a.status
  from (
    select
      array_agg(user_id order by place) as users,
      array_agg('many: ' || coupon_name order by place) as coupons,
      array_agg(place order by place) as places
    from crowd
  ) as c
  cross join lateral public.claim_batch(c.users, c.coupons, c.places) as a;

select results_eq(
  'select place, status from by_coupon order by place',
  'select place, status from by_sets order by place',
  'equal answers');
select is(
  (select count(distinct status) from by_sets), 4::bigint,
  'all four of them');
select results_eq(
  $$ select substr(coupon_name, 7), claim_number, user_id from public.claims where coupon_name like 'one:  %' order by 1, 2 $$,
  $$ select substr(coupon_name, 7), claim_number, user_id from public.claims where coupon_name like 'many: %' order by 1, 2 $$,
  'equal claims');

select * from finish();
rollback;
