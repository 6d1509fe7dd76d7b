-- The state: two tables, their keys, and how names compare.
begin;
select plan(17);

select tables_are('public', array['coupons', 'claims', 'shard', 'schema_version'], 'two tables, what this server owns, and the one that the migrator keeps');
select views_are('public', array['sale_progress'], 'and one view');
select columns_are('public', 'coupons', array['name', 'amount', 'remaining_amount', 'created_at']);
select columns_are('public', 'claims', array['coupon_name', 'claim_number', 'user_id', 'claimed_at']);

select col_is_pk('public', 'coupons', 'name', 'a coupon is its name');
select col_is_pk(
  'public', 'claims', array['coupon_name', 'claim_number'],
  'a claim is a piece of stock: the same one cannot be claimed twice');
select col_is_unique('public', 'claims', array['coupon_name', 'user_id'], 'a user has a coupon once');
select fk_ok('public', 'claims', 'coupon_name', 'public', 'coupons', 'name', 'claims are of coupons that exist');
select indexes_are('public', 'claims', array['claims_pkey', 'claims_user_has_coupon_once'], 'no index that a claim would pay for in vain');
select indexes_are('public', 'coupons', array['coupons_pkey']);

select col_type_is('public', 'coupons', 'amount', 'integer', 'amount: up to 2147483647 pieces');
select col_type_is('public', 'coupons', 'remaining_amount', 'integer', 'remaining_amount: likewise');
select col_type_is('public', 'claims', 'claim_number', 'integer', 'claim_number: likewise');
select is_empty(
  $$
    select
      attrelid::regclass,
      attname
    from pg_attribute
    where attrelid in ('public.coupons'::regclass, 'public.claims'::regclass)
      and attnum > 0
      and not attnotnull
  $$,
  'no column is ever null');
select results_eq(
  $$
    select a.attname::text collate "default"
    from pg_attribute as a
    where a.attrelid in ('public.coupons'::regclass, 'public.claims'::regclass)
      and a.attnum > 0
      and a.atttypid = 'text'::regtype
      and a.attcollation = '"C"'::regcollation
    order by 1
  $$,
  $$ values ('coupon_name'), ('name'), ('user_id') $$,
  'all text compares as bytes');

select is_empty(
  $$
    select from pg_trigger
    where tgrelid in ('public.coupons'::regclass, 'public.claims'::regclass)
      and not tgisinternal
  $$,
  'no trigger does anything behind the functions'' back');
select is_empty('select from public.coupons union all select from public.claims', 'and nothing is on sale yet');

select * from finish();
rollback;
