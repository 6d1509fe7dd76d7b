-- claims_per_second is exactly the number of claims of the last ten seconds, divided by ten.
begin;
select plan(2);

-- Of the n claims of coupon n/l, the last l are a second old and the others a day. Foreign keys hold
-- here, and checking them would take most of the time.
set local session_replication_role = replica;
insert into coupond.coupons (name, amount, remaining_amount)
select format('%s/%s', n, l), 1000, 1000 - n
from generate_series(0, 70) as n
cross join generate_series(0, 70) as l
where l <= n;
insert into coupond.claims (coupon_name, claim_number, user_id, claimed_at)
select
  format('%s/%s', n, l), i, i::text,
  case
    when i <= n - l then statement_timestamp() - interval '1 day' + i * interval '1 second'
    else statement_timestamp() - interval '1 second' + i * interval '1 millisecond'
  end
from generate_series(0, 70) as n
cross join generate_series(0, 70) as l
cross join generate_series(1, n) as i
where l <= n;
set local session_replication_role = origin;

select is_empty(
  $$
    select name, claims_per_second
    from coupond.sale_progress
    where claims_per_second is distinct from split_part(name, '/', 2)::integer / 10.0
  $$,
  'for 0 to 70 claims, any number of them in the last ten seconds');
select results_eq(
  $$ select count(*)::integer, max(claims_per_second) from coupond.sale_progress $$,
  $$ values (2556, 7.0) $$,
  'and all coupons were compared');

select * from finish();
rollback;
