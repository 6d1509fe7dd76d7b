-- What Ready can find out by reading:
--
--   - the schema version
--   - the role, because a pooler may drop the parameter that sets it, and the session would have
--     the privileges of the login
--   - the settings of the session (session_problem), for the same reason, and whether the server
--     can write
--   - whether all functions that we call are there, because a newer schema may have dropped one
--   - whether the owners of the functions can use the tables and the other functions: different
--     logins may have installed them. A proxy has no tables.
with expected (signature) as (
  values
    ('coupond.claim_coupon(text, text)'),
    ('coupond.claim_coupons(text[], text)'),
    ('coupond.claim_batch(text[], text[], integer[])'),
    ('coupond.create_coupon(text, bigint)'),
    ('coupond.get_coupon(text)'),
    ('coupond.locked_coupons(text[])'),
    ('coupond.coupon_claimers(text, integer, integer)')
), installed as (
  select p.oid, p.proname, p.proowner, p.pronamespace, p.prosecdef, p.prorettype, l.lanname
  from pg_catalog.pg_proc as p
  join pg_catalog.pg_language as l
    on l.oid = p.prolang
  where p.pronamespace = pg_catalog.to_regnamespace('coupond')
), owners as (
  select pg_catalog.min(proname) as proname, proowner
  from installed
  where prosecdef
    and not exists (select from installed where lanname = 'plproxy')
  group by proowner
), missing_privileges (proname, proowner, privilege, object) as (
  select o.proname, o.proowner, n.privilege, n.relation
  from owners as o
  cross join (
    values
      ('coupond.coupons', 'SELECT'),
      ('coupond.coupons', 'INSERT'),
      ('coupond.coupons', 'UPDATE'),
      ('coupond.claims', 'SELECT'),
      ('coupond.claims', 'INSERT'),
      ('coupond.shard', 'SELECT')
  ) as n (relation, privilege)
  where pg_catalog.has_table_privilege(o.proowner, pg_catalog.to_regclass(n.relation), n.privilege) is not true
  union all
  select o.proname, o.proowner, 'EXECUTE', i.proname
  from owners as o
  join installed as i
    on i.prorettype <> 'trigger'::pg_catalog.regtype
  where not pg_catalog.has_function_privilege(o.proowner, i.oid, 'execute')
)
select
  coupond.coupon_schema_version(),
  current_user = 'coupon_service',
  coupond.session_problem(),
  not exists (
    select from expected
    where pg_catalog.has_function_privilege(pg_catalog.to_regprocedure(signature), 'execute') is not true
  ),
  (
    select pg_catalog.format('%s, the owner of %s, lacks %s on %s', proowner::pg_catalog.regrole, proname, privilege, object)
    from missing_privileges
    limit 1
  )
