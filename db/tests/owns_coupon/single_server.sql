-- On a single server, every coupon is at home.
begin;
select plan(2);

select is_empty('select from public.shard', 'nothing says that this is one server of several');
select ok(bool_and(public.owns_coupon('coupon-' || n)), 'so it owns whatever it is asked for')
from generate_series(1, 1000) as n;

select * from finish();
rollback;
