-- The service's role may EXECUTE nine functions and nothing else, the monitor's role may read one
-- view, and PUBLIC has no privileges.
begin;
select plan(21);

select has_role('coupon_service');
select isnt_superuser('coupon_service');
select results_eq(
  $$ select rolcanlogin, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls from pg_roles where rolname = 'coupon_service' $$,
  $$ values (false, false, false, false, false) $$,
  'coupon_service cannot log in and has no attributes');
select is_empty(
  $$ select from pg_auth_members where member = 'coupon_service'::regrole $$,
  'and is not a member of other roles');

prepare executable(name) as
  select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' collate "default"
  from pg_proc as p
  where p.pronamespace = 'coupond'::regnamespace
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
      ('get_coupon(p_coupon text)'),
      ('locked_coupons(p_coupons text[])'),
      ('session_problem()')
  $$,
  'coupon_service may execute these functions, and not the internal ones');
select is_empty($$ execute executable('public') $$, 'PUBLIC may execute no function');
select functions_are(
  'coupond',
  array[
    'claim_batch', 'claim_coupon', 'claim_coupons', 'coupon_claimers', 'coupon_schema_version', 'create_coupon', 'get_coupon',
    'locked_coupons', 'session_problem',
    'check_name', 'check_names', 'check_shard', 'check_shards', 'find_claim', 'is_valid_name', 'owns_coupon',
    'check_claims', 'protect_coupons'],
  'other functions do not exist');

select table_privs_are('coupond', 'coupons', 'coupon_service', array[]::text[]);
select table_privs_are('coupond', 'claims', 'coupon_service', array[]::text[]);
select table_privs_are('coupond', 'shard', 'coupon_service', array[]::text[]);
select table_privs_are('coupond', 'schema_version', 'coupon_service', array[]::text[]);
select is_empty(
  $$
    select
      attrelid::regclass,
      attname
    from pg_attribute as a
    join pg_class as c
      on c.oid = a.attrelid
    where c.relnamespace = 'coupond'::regnamespace
      and a.attacl is not null
  $$,
  'no privileges on single columns');
select table_privs_are('coupond', 'sale_progress', 'coupon_service', array[]::text[]);
select schema_privs_are('coupond', 'coupon_service', array['USAGE'], 'coupon_service may use the schema, but not create objects in it');
select is(
  has_schema_privilege('public', 'coupond', 'create, usage'), false,
  'and PUBLIC may do neither');

-- The monitor's role.
select is_empty(
  $$ select from pg_roles where rolname = 'coupon_monitor' and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb) $$,
  'coupon_monitor cannot log in and has no attributes');
select is_empty($$ execute executable('coupon_monitor') $$, 'coupon_monitor may execute no function');
select table_privs_are('coupond', 'sale_progress', 'coupon_monitor', array['SELECT'], 'coupon_monitor may read the view');
select table_privs_are('coupond', 'coupons', 'coupon_monitor', array[]::text[]);
select table_privs_are('coupond', 'claims', 'coupon_monitor', array[]::text[]);
select schema_privs_are('coupond', 'coupon_monitor', array['USAGE']);

select * from finish();
rollback;
