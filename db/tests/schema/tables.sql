-- The state: two tables, their keys, and how names compare.
begin;
select plan(17);

select tables_are('public', array['coupons', 'claims', 'shard', 'schema_version'], 'the tables, and no others');
select views_are('public', array['sale_progress'], 'the view, and no others');
select columns_are('public', 'coupons', array['name', 'amount', 'remaining_amount', 'created_at']);
select columns_are('public', 'claims', array['coupon_name', 'claim_number', 'user_id', 'claimed_at']);

select col_is_pk('public', 'coupons', 'name', 'a coupon is identified by its name');
select col_is_pk(
  'public', 'claims', array['coupon_name', 'claim_number'],
  'no unit of stock can be claimed twice');
select col_is_unique('public', 'claims', array['coupon_name', 'user_id'], 'a user has a coupon at most once');
select fk_ok('public', 'claims', 'coupon_name', 'public', 'coupons', 'name', 'a claim''s coupon exists');
select indexes_are('public', 'claims', array['claims_pkey', 'claims_user_has_coupon_once'], 'other indexes do not exist, because each claim would have to update them');
select indexes_are('public', 'coupons', array['coupons_pkey']);

select col_type_is('public', 'coupons', 'amount', 'integer', 'amount is at most 2147483647');
select col_type_is('public', 'coupons', 'remaining_amount', 'integer', 'and so is remaining_amount');
select col_type_is('public', 'claims', 'claim_number', 'integer', 'and claim_number');
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
  'all columns are not null');
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
  'no triggers');
select is_empty('select from public.coupons union all select from public.claims', 'the tables are empty');

select * from finish();
rollback;
