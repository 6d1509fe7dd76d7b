-- On a shard: the coupons of the partitions that it owns, and no others.
begin;
select plan(10);

insert into public.shard (partitions, owned) values (4, '{1,3}');
select results_eq(
  $$ select n from generate_series(1, 1000) as n where public.owns_coupon('coupon-' || n) $$,
  $$ select n from generate_series(1, 1000) as n where hashtext('coupon-' || n) & 3 in (1, 3) $$,
  'the partition is hashtext & (partitions - 1)');
select results_eq(
  $$ select count(distinct hashtext('coupon-' || n) & 3)::integer from generate_series(1, 1000) as n $$,
  $$ values (4) $$,
  'every partition has coupons');

update public.shard set owned = '{}';
select is(bool_or(public.owns_coupon('coupon-' || n)), false, 'a server whose last partition has moved away owns nothing')
from generate_series(1, 1000) as n;
update public.shard set owned = '{0,1,2,3}';
select is(bool_and(public.owns_coupon('coupon-' || n)), true, 'and one that has all of them owns all')
from generate_series(1, 1000) as n;

select throws_ok('insert into public.shard (partitions, owned) values (4, ''{}'')', '23505', null, 'there is one row');
select throws_ok('update public.shard set singleton = false', '23514', null, 'and no other');
select throws_ok('update public.shard set partitions = 6', '23514', null, 'partitions are a power of two');
select throws_ok('update public.shard set owned = ''{4}''', '23514', null, 'numbered from 0');
select throws_ok('update public.shard set owned = ''{-1}''', '23514', null, 'not below it');
select throws_ok('update public.shard set owned = ''{1,null}''', '23514', null, 'and known');

select * from finish();
rollback;
