-- coupon_proxy owns the functions and coupon_service executes them; no other role does anything,
-- whatever the default privileges of the database gave (see db/functions/privileges.sql).
do $$
declare
  v_command text;
begin
  for v_command in
    select format('alter routine %s owner to coupon_proxy', oid::regprocedure)
    from pg_catalog.pg_proc
    where pronamespace = 'coupond'::regnamespace
      and proowner <> 'coupon_proxy'::regrole
  loop
    execute v_command;
  end loop;

  for v_command in
    with objects (object, owner, acl) as (
      select format('schema %I', nspname), nspowner, coalesce(nspacl, acldefault('n', nspowner))
      from pg_catalog.pg_namespace
      where nspname = 'coupond'
      union all
      select format('routine %s', oid::regprocedure), proowner, coalesce(proacl, acldefault('f', proowner))
      from pg_catalog.pg_proc
      where pronamespace = 'coupond'::regnamespace
      union all
      select format('type %s', oid::regtype), typowner, coalesce(typacl, acldefault('T', typowner))
      from pg_catalog.pg_type
      where typnamespace = 'coupond'::regnamespace
        and typtype = 'e'
    )
    select distinct
      format(
        'revoke all on %s from %s cascade', o.object,
        case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
    from objects as o
    cross join aclexplode(o.acl) as a
    where a.grantee <> o.owner
  loop
    execute v_command;
  end loop;
end;
$$;

grant usage on schema coupond to coupon_service, coupon_proxy;
grant usage on type coupond.claim_status, coupond.create_status to coupon_service, coupon_proxy;
grant execute on all functions in schema coupond to coupon_service;
