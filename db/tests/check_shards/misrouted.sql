-- A call for a coupon that another server owns is refused with SQLSTATE SC421, not
-- coupon_not_found, and stores nothing.
begin;
select plan(15);

-- One coupon of each partition. Both exist: the rows of a partition that was moved are still
-- stored.
create temporary table name as
select
  min('coupon-' || n) filter (where hashtext('coupon-' || n) & 1 = 0) as ours,
  min('coupon-' || n) filter (where hashtext('coupon-' || n) & 1 = 1) as theirs
from generate_series(1, 100) as n;
select coupond.create_coupon(ours, 5), coupond.create_coupon(theirs, 5) from name;
insert into coupond.shard (partitions, owned) values (2, '{0}');

select throws_ok(
  $$ select coupond.claim_coupon('ann', theirs) from name $$,
  'SC421', 'this server does not own the coupon', 'claim_coupon');
select throws_ok(
  $$ select coupond.claim_coupons(array['ann', 'bob'], theirs) from name $$,
  'SC421', 'this server does not own the coupon', 'claim_coupons');
select throws_ok(
  $$ select b.* from name, coupond.claim_batch(array['ann', 'ann'], array[ours, theirs], array[1, 2]) as b $$,
  'SC421', 'this server does not own the coupon', 'claim_batch, though it owns the other one');
select throws_ok(
  $$ select coupond.create_coupon(theirs, 5) from name $$,
  'SC421', 'this server does not own the coupon', 'create_coupon, though the name is taken');
select throws_ok(
  $$ select c.* from name, coupond.get_coupon(theirs) as c $$,
  'SC421', 'this server does not own the coupon', 'get_coupon');
select throws_ok(
  $$ select coupond.coupon_claimers(theirs, 0, 10) from name $$,
  'SC421', 'this server does not own the coupon', 'coupon_claimers');
select throws_ok(
  $$ select coupond.locked_coupons(array[ours, theirs]) from name $$,
  'SC421', 'this server does not own the coupon', 'locked_coupons');
select throws_ok(
  $$ select coupond.claim_coupon('ann', n) from (select 'none-' || n as n from generate_series(1, 100) as n) as u $$,
  'SC421', null, 'a coupon that does not exist');
select throws_ok(
  $$ select coupond.claim_coupon('ann', '') $$,
  '22023', null, 'an invalid argument takes precedence');
select is_empty('select from coupond.claims', 'no claim is stored');

select is(coupond.claim_coupon('ann', ours), 'claimed', 'an owned coupon can be claimed') from name;
select is((select remaining_amount from coupond.get_coupon(ours)), 4, 'and read') from name;
select results_eq(
  $$ select status from name, coupond.claim_batch(array['bob'], array[ours], array[1]) $$,
  $$ values ('claimed'::coupond.claim_status) $$, 'and claimed in a batch');

delete from coupond.shard;
select is(coupond.claim_coupon('ann', theirs), 'claimed', 'a single server owns both') from name;
insert into coupond.shard (partitions, owned) values (64, '{0,5,17,63}');
create function pg_temp.refused(p_coupon text) returns boolean language plpgsql as $$
begin
  perform coupond.check_shards(array[p_coupon]);
  return false;
exception when sqlstate 'SC421' then
  return true;
end
$$;
select ok(
  bool_and(pg_temp.refused('coupon-' || n) <> coupond.owns_coupon('coupon-' || n)),
  'check_shards and owns_coupon apply the same rule')
from generate_series(1, 1000) as n;

select * from finish();
rollback;
