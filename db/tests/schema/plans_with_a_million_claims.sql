-- With a million claims stored every call still probes the indexes for a handful of rows. (What sessions do that made their
-- plans before is in db/plans_test.go.)
begin;
select plan(14);

-- The foreign key is kept here, and checking it would take most of the time.
set local session_replication_role = replica;
insert into public.coupons (name, amount, remaining_amount)
values ('hot', 1000000, 400000), ('sold', 1, 0);
insert into public.coupons (name, amount, remaining_amount)
select 'cold ' || i, 2, 1
from generate_series(1, 400000) as i;
insert into public.claims (coupon_name, claim_number, user_id)
select 'hot', i, 'hot ' || i
from generate_series(1, 600000) as i;
insert into public.claims (coupon_name, claim_number, user_id)
select 'cold ' || i, 1, 'collector'
from generate_series(1, 400000) as i;
set local session_replication_role = origin;
analyze public.coupons, public.claims;

-- What this transaction has read so far: sequential scans, and rows fetched through an index.
create temporary view reads as
  select
    sum(seq_scan) as scans,
    sum(idx_tup_fetch) as fetched
  from pg_stat_xact_user_tables
  where schemaname = 'public';
create temporary table seen as
  table reads;
create function pg_temp.cost() returns text language sql as $$
  with now as (
    select
      r.scans - s.scans as scans,
      r.fetched - s.fetched as fetched
    from reads as r
    cross join seen as s
  ),
  kept as (
    update seen
    set
      scans = seen.scans + n.scans,
      fetched = seen.fetched + n.fetched
    from now as n
    returning n.scans, n.fetched
  )
  select
    case
      when scans = 0 and fetched <= 40 then 'a few rows, by index'
      else format('%s scans, %s rows by index', scans, fetched)
    end
  from kept
$$;

select is(public.claim_coupon('hot 600000', 'hot'), 'already_claimed', 'the last of 600,000 claimers asks again:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(public.claim_coupon('collector', 'cold 399999'), 'already_claimed', 'the user with 400,000 coupons asks for one of the last again:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(public.claim_coupon('nobody', 'hot'), 'claimed', 'a newcomer claims:');
select is(pg_temp.cost(), 'a few rows, by index');
select is(
  public.claim_coupons(array['collector', 'hot 599999', 'somebody'], 'hot'), '{claimed,already_claimed,claimed}', 'a crowd claims:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$
    select *
    from public.claim_batch(array['hot 1', 'collector', 'hot 1', 'hot 2'], array['hot', 'cold 5', 'cold 5', 'sold'], array[1, 2, 3, 4])
  $$,
  $$ values (1, 'already_claimed'::public.claim_status), (2, 'already_claimed'), (3, 'claimed'), (4, 'out_of_stock') $$,
  'a mixed crowd claims:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$ select remaining_amount from public.get_coupon('hot') $$, $$ values (399997) $$, 'the coupon is read:');
select is(pg_temp.cost(), 'a few rows, by index');
select results_eq(
  $$ select public.coupon_claimers('hot', 300000, 300010) $$,
  $$ select 'hot ' || i from generate_series(300001, 300010) as i $$,
  'ten claimers are read from the middle:');
select is(pg_temp.cost(), 'a few rows, by index');

select * from finish();
rollback;
