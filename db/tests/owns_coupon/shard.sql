-- A shard owns the coupons of its partitions, and no others.
begin;
select plan(10);

insert into coupond.shard (partitions, owned) values (4, '{1,3}');
select results_eq(
  $$ select n from generate_series(1, 1000) as n where coupond.owns_coupon('coupon-' || n) $$,
  $$ select n from generate_series(1, 1000) as n where hashtext('coupon-' || n) & 3 in (1, 3) $$,
  'the partition is hashtext & (partitions - 1)');
select results_eq(
  $$ select count(distinct hashtext('coupon-' || n) & 3)::integer from generate_series(1, 1000) as n $$,
  $$ values (4) $$,
  'every partition has coupons');

update coupond.shard set owned = '{}';
select is(bool_or(coupond.owns_coupon('coupon-' || n)), false, 'a server without partitions owns nothing')
from generate_series(1, 1000) as n;
update coupond.shard set owned = '{0,1,2,3}';
select is(bool_and(coupond.owns_coupon('coupon-' || n)), true, 'a server with all partitions owns everything')
from generate_series(1, 1000) as n;

select throws_ok('insert into coupond.shard (partitions, owned) values (4, ''{}'')', '23505', null, 'the table has one row');
select throws_ok('update coupond.shard set singleton = false', '23514', null, 'and no other');
select throws_ok('update coupond.shard set partitions = 6', '23514', null, 'the number of partitions is a power of two');
select throws_ok('update coupond.shard set owned = ''{4}''', '23514', null, 'a partition is less than their number');
select throws_ok('update coupond.shard set owned = ''{-1}''', '23514', null, 'a partition is not negative');
select throws_ok('update coupond.shard set owned = ''{1,null}''', '23514', null, 'a partition is not null');

select * from finish();
rollback;
