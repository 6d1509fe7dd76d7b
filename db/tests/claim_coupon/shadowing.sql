-- A caller's temporary objects, search_path and settings do not affect the functions, because every
-- name in them is qualified or pinned.
begin;
set local role coupon_service;
select plan(8);

create temporary table coupons (name text, amount integer, remaining_amount integer);
create temporary table claims (coupon_name text, claim_number integer, user_id text);
insert into pg_temp.coupons values ('lamp', 9, 9);
create function pg_temp.check_name(text, text) returns void language sql as '';
create function pg_temp.check_shard(text) returns void language sql as '';
create function pg_temp.find_claim(text, text) returns setof boolean language sql as 'select true';
create function pg_temp.is_valid_name(text) returns boolean language sql as 'select true';
create function pg_temp.char_length(text) returns integer language sql as 'select 1';
create function pg_temp.never(text, text) returns boolean language sql as 'select false';
create operator pg_temp.= (leftarg = text, rightarg = text, function = pg_temp.never);
set local search_path = pg_temp, tap, coupond, pg_catalog;
set local plpgsql.extra_errors = 'all';
set local standard_conforming_strings = off;

select is(coupond.claim_coupon('ann', 'lamp'), 'coupon_not_found', 'the caller''s table coupons is not read');
select is(coupond.create_coupon('lamp', 1), 'created', 'nor does it occupy a name');
select is(coupond.claim_coupon('ann', 'lamp'), 'claimed', 'a claim is made');
select is(coupond.claim_coupon('ann', 'lamp'), 'already_claimed', 'and found again');
select is(coupond.claim_coupon('bob', 'lamp'), 'out_of_stock', 'and counted');
select results_eq(
  $$ select coupond.coupon_claimers('lamp', 0, 10)::pg_catalog.text $$,
  $$ values ('ann'::pg_catalog.text) $$,
  'and listed');
select throws_ok(
  $$ select coupond.claim_coupon('', 'lamp') $$,
  '22023', 'p_user must have 1 to 255 characters that are not all white space', 'the guards are not replaced');
select ok(not exists (select from pg_temp.claims), 'nothing is written to the caller''s tables');

select * from finish();
rollback;
