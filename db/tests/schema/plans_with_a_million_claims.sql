-- With a million claims stored, every call still probes the indexes for a few rows.
-- (db/plans_test.go tests sessions that cached their plans before.)
begin;
select plan(16);

-- The coupons exist, and to check that would take most of the time.
set local session_replication_role = replica;
insert into coupond.coupons (name, amount, remaining_amount)
values ('hot', 1000000, 400000), ('sold', 1, 0);
insert into coupond.coupons (name, amount, remaining_amount)
select 'cold ' || i, 2, 1
from generate_series(1, 400000) as i;
insert into coupond.claims (coupon_name, claim_number, user_id)
select 'hot', i, 'hot ' || i
from generate_series(1, 600000) as i;
insert into coupond.claims (coupon_name, claim_number, user_id)
select 'cold ' || i, 1, 'collector'
from generate_series(1, 400000) as i;
set local session_replication_role = origin;
analyze coupond.coupons, coupond.claims;

-- What this transaction has read so far: sequential scans, and rows fetched through an index.
create temporary view reads as
  select
    sum(seq_scan) as scans,
    sum(idx_tup_fetch) as fetched
  from pg_stat_xact_user_tables
  where schemaname = 'coupond';
create temporary table previous_reads as
  table reads;
create function pg_temp.cost() returns text language sql as $$
  with since as (
    select
      r.scans - p.scans as scans,
      r.fetched - p.fetched as fetched
    from reads as r
    cross join previous_reads as p
  ),
  updated as (
    update previous_reads as p
    set
      scans = p.scans + s.scans,
      fetched = p.fetched + s.fetched
    from since as s
    returning s.scans, s.fetched
  )
  select
    case
      when scans = 0 and fetched <= 40 then 'a few rows, by index'
      else format('%s scans, %s rows by index', scans, fetched)
    end
  from updated
$$;

select is(coupond.claim_coupon('hot 600000', 'hot'), 'already_claimed', 'a repeated claim by the last of 600,000 users:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(coupond.claim_coupon('collector', 'cold 399999'), 'already_claimed', 'a repeated claim by the user with 400,000 coupons:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(coupond.claim_coupon('new 1', 'hot'), 'claimed', 'a new claim:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(
  coupond.claim_coupons(array['collector', 'hot 599999', 'new 2'], 'hot'), '{claimed,already_claimed,claimed}', 'a batch for one coupon:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$
    select *
    from coupond.claim_batch(array['hot 1', 'collector', 'hot 1', 'hot 2'], array['hot', 'cold 5', 'cold 5', 'sold'], array[1, 2, 3, 4])
  $$,
  $$ values (1, 'already_claimed'::coupond.claim_status), (2, 'already_claimed'), (3, 'claimed'), (4, 'out_of_stock') $$,
  'a batch for several coupons:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$ select remaining_amount from coupond.get_coupon('hot') $$, $$ values (399997) $$, 'reading the coupon:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$ select coupond.coupon_claimers('hot', 300000, 300010) $$,
  $$ select 'hot ' || i from generate_series(300001, 300010) as i $$,
  'reading a page of ten claimers:');
select is(pg_temp.cost(), 'a few rows, by index');
select is_empty(
  $$ select coupond.locked_coupons(array['hot', 'cold 7', 'cold 399999', 'sold', 'none', 'hot']) $$,
  'asking which of five coupons are locked:');
select is(pg_temp.cost(), 'a few rows, by index');

select * from finish();
rollback;
