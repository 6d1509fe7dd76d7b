-- The state: two tables, their keys, and how names compare.
begin;
select plan(23);

select tables_are('coupond', array['coupons', 'claims', 'shard', 'schema_version'], 'the tables, and no others');
select views_are('coupond', array['sale_progress'], 'the view, and no others');
select columns_are('coupond', 'coupons', array['name', 'amount', 'remaining_amount', 'created_at']);
select columns_are('coupond', 'claims', array['coupon_name', 'claim_number', 'user_id', 'claimed_at']);

select col_is_pk('coupond', 'coupons', 'name', 'a coupon is identified by its name');
select col_is_pk(
  'coupond', 'claims', array['coupon_name', 'claim_number'],
  'no unit of stock can be claimed twice');
select col_is_unique('coupond', 'claims', array['coupon_name', 'user_id'], 'a user has a coupon at most once');
select indexes_are('coupond', 'claims', array['claims_pkey', 'claims_user_has_coupon_once'], 'other indexes do not exist, because each claim would have to update them');
select indexes_are('coupond', 'coupons', array['coupons_pkey']);

select col_type_is('coupond', 'coupons', 'name', 'text', 'a row filter of a publication can use the name');
select col_type_is('coupond', 'claims', 'coupon_name', 'text', 'in both tables');
select col_type_is('coupond', 'claims', 'user_id', 'coupond', 'user_id', 'user ids have a domain');
select col_type_is('coupond', 'coupons', 'amount', 'coupond', 'positive_integer', 'amount is from 1 to 2147483647');
select col_type_is('coupond', 'coupons', 'remaining_amount', 'integer', 'remaining_amount may be 0');
select col_type_is('coupond', 'claims', 'claim_number', 'coupond', 'positive_integer', 'claim_number is from 1 to 2147483647');
select domain_type_is('coupond', 'user_id', 'pg_catalog', 'text', 'a user id is text');
select domain_type_is('coupond', 'positive_integer', 'pg_catalog', 'integer', 'as positive_integer is integer');
select domains_are('coupond', array['positive_integer', 'user_id'], 'other domains do not exist');
select is_empty(
  $$
    select
      attrelid::regclass,
      attname
    from pg_attribute
    where attrelid in ('coupond.coupons'::regclass, 'coupond.claims'::regclass)
      and attnum > 0
      and not attnotnull
  $$,
  'all columns are not null');
select results_eq(
  $$
    select a.attname::text collate "default"
    from pg_attribute as a
    where a.attrelid in ('coupond.coupons'::regclass, 'coupond.claims'::regclass)
      and a.attnum > 0
      and a.attcollation = '"C"'::regcollation
    order by 1
  $$,
  $$ values ('coupon_name'), ('name'), ('user_id') $$,
  'all text compares as bytes');

-- Instead of a foreign key: these triggers do what it would do (ADR 0018).
select is_empty(
  $$ select from pg_constraint where connamespace = 'coupond'::regnamespace and contype not in ('c', 'p', 'u') $$,
  'only checks, primary keys and unique constraints');
select results_eq(
  $$
    select pg_get_triggerdef(oid)
    from pg_trigger
    where tgrelid in (select oid from pg_class where relnamespace = 'coupond'::regnamespace)
      and not tgisinternal
    order by tgname
  $$,
  array[
    'CREATE TRIGGER claims_inserted AFTER INSERT ON coupond.claims REFERENCING NEW TABLE AS new_claims '
    'FOR EACH STATEMENT EXECUTE FUNCTION coupond.check_claims()',
    'CREATE TRIGGER claims_updated AFTER UPDATE ON coupond.claims REFERENCING NEW TABLE AS new_claims '
    'FOR EACH STATEMENT EXECUTE FUNCTION coupond.check_claims()',
    'CREATE TRIGGER coupons_changed AFTER INSERT OR DELETE OR UPDATE OF name, amount ON coupond.coupons '
    'FOR EACH ROW EXECUTE FUNCTION coupond.protect_coupons()',
    'CREATE TRIGGER coupons_truncated AFTER TRUNCATE ON coupond.coupons '
    'FOR EACH STATEMENT EXECUTE FUNCTION coupond.protect_coupons()'],
  'the triggers, none per claim');
select is_empty('select from coupond.coupons union all select from coupond.claims', 'the tables are empty');

select * from finish();
rollback;
