-- A single server owns every coupon.
begin;
select plan(2);

select is_empty('select from coupond.shard', 'coupond.shard is empty');
select ok(bool_and(coupond.owns_coupon('coupon-' || n)), 'every coupon is owned')
from generate_series(1, 1000) as n;

select * from finish();
rollback;
