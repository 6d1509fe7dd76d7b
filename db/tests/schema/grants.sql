-- The service's role may EXECUTE seven functions and touch nothing else, the monitor's may read one view; PUBLIC may
-- do nothing at all.
begin;
select plan(21);

select has_role('coupon_service');
select isnt_superuser('coupon_service');
select results_eq(
  $$ select rolcanlogin, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls from pg_roles where rolname = 'coupon_service' $$,
  $$ values (false, false, false, false, false) $$,
  'the role is a set of rights, and no login');
select is_empty(
  $$ select from pg_auth_members where member = 'coupon_service'::regrole $$,
  'and has no rights of other roles');

prepare executable(name) as
  select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' collate "default"
  from pg_proc as p
  where p.pronamespace = 'public'::regnamespace
    and has_function_privilege($1, p.oid, 'execute')
  order by 1;
select results_eq(
  $$ execute executable('coupon_service') $$,
  $$
    values
      ('claim_batch(p_users text[], p_coupons text[], p_positions integer[])'),
      ('claim_coupon(p_user text, p_coupon text)'),
      ('claim_coupons(p_users text[], p_coupon text)'),
      ('coupon_claimers(p_coupon text, p_after integer, p_upto integer)'),
      ('coupon_schema_version()'),
      ('create_coupon(p_coupon text, p_amount bigint)'),
      ('get_coupon(p_coupon text)')
  $$,
  'these functions, and not those for internal use');
select is_empty($$ execute executable('public') $$, 'PUBLIC may execute none');
select functions_are(
  'public',
  array[
    'claim_batch', 'claim_coupon', 'claim_coupons', 'coupon_claimers', 'coupon_schema_version', 'create_coupon', 'get_coupon',
    'guard_name', 'guard_names', 'guard_ownership', 'is_valid_name', 'owns_coupon'],
  'there are no other functions');

select table_privs_are('public', 'coupons', 'coupon_service', array[]::text[]);
select table_privs_are('public', 'claims', 'coupon_service', array[]::text[]);
select table_privs_are('public', 'shard', 'coupon_service', array[]::text[]);
select table_privs_are('public', 'schema_version', 'coupon_service', array[]::text[]);
select is_empty(
  $$
    select
      attrelid::regclass,
      attname
    from pg_attribute as a
    join pg_class as c
      on c.oid = a.attrelid
    where c.relnamespace = 'public'::regnamespace
      and a.attacl is not null
  $$,
  'no column is granted by itself');
select table_privs_are('public', 'sale_progress', 'coupon_service', array[]::text[]);
select schema_privs_are('public', 'coupon_service', array['USAGE'], 'the role may look a function up, and create nothing');
select is(
  has_schema_privilege('public', 'public', 'create'), false,
  'nor may PUBLIC: nobody can put a function beside ours');

-- Who watches a sale.
select is_empty(
  $$ select from pg_roles where rolname = 'coupon_monitor' and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb) $$,
  'coupon_monitor is a set of rights, too');
select is_empty($$ execute executable('coupon_monitor') $$, 'it may execute none of the functions');
select table_privs_are('public', 'sale_progress', 'coupon_monitor', array['SELECT'], 'it may read the view');
select table_privs_are('public', 'coupons', 'coupon_monitor', array[]::text[]);
select table_privs_are('public', 'claims', 'coupon_monitor', array[]::text[]);
select schema_privs_are('public', 'coupon_monitor', array['USAGE']);

select * from finish();
rollback;
