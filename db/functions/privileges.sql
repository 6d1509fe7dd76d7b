-- Who may do what: coupon_service executes the functions that the service calls, coupon_monitor
-- reads the view, and no other role does anything. The rights that the objects have now do not
-- matter: default privileges may have given some to other roles, and a restore without them gives
-- EXECUTE to PUBLIC. So the catalogs are read, and everything is revoked first. (An extension in the
-- schema may have another owner; its objects are not ours.)
do $$
declare
  v_owner constant regrole := (select nspowner from pg_catalog.pg_namespace where nspname = 'coupond');
  v_command text;
begin
  for v_command in
    with objects (object, owner, acl) as (
      select format('schema %I', nspname), nspowner, coalesce(nspacl, acldefault('n', nspowner))
      from pg_catalog.pg_namespace
      where nspname = 'coupond'
      union all
      select
        format('%s %s', case relkind when 'S' then 'sequence' else 'table' end, oid::regclass),
        relowner,
        coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
      from pg_catalog.pg_class
      where relnamespace = 'coupond'::regnamespace
        and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      union all
      -- Who loses a privilege on a table loses it on the columns too.
      select format('table %s', r.oid::regclass), r.relowner, a.attacl
      from pg_catalog.pg_attribute as a
      join pg_catalog.pg_class as r
        on r.oid = a.attrelid
      where r.relnamespace = 'coupond'::regnamespace
        and a.attacl is not null
      union all
      select format('routine %s', oid::regprocedure), proowner, coalesce(proacl, acldefault('f', proowner))
      from pg_catalog.pg_proc
      where pronamespace = 'coupond'::regnamespace
      union all
      select format('type %s', oid::regtype), typowner, coalesce(typacl, acldefault('T', typowner))
      from pg_catalog.pg_type
      where typnamespace = 'coupond'::regnamespace
        and typtype in ('d', 'e')
    )
    select format('revoke all on %s from %s cascade', o.object, a.role)
    from objects as o
    cross join lateral (
      select distinct case grantee when 0 then 'public' else grantee::regrole::text end as role
      from aclexplode(o.acl)
      where grantee <> o.owner
    ) as a
    where o.owner = v_owner
    union all
    -- A privilege on a column that a role has passed on goes only with that role's own privilege on
    -- the column, which it need not have if it has one on the table.
    select distinct
      format(
        'grant all (%1$I) on %2$s to %3$s with grant option; revoke all (%1$I) on %2$s from %3$s cascade',
        a.attname, r.oid::regclass, x.grantor::regrole)
    from pg_catalog.pg_attribute as a
    join pg_catalog.pg_class as r
      on r.oid = a.attrelid
    cross join aclexplode(a.attacl) as x
    where r.relnamespace = 'coupond'::regnamespace
      and r.relowner = v_owner
      and x.grantor <> r.relowner
    union all
    -- Even the owner may have lost a privilege, without which no function works.
    select distinct format('grant all on %s to %s', o.object, v_owner)
    from objects as o
    where o.owner = v_owner
  loop
    execute v_command;
  end loop;
end;
$$;

grant usage on schema coupond to coupon_service, coupon_monitor;
grant usage on type coupond.claim_status, coupond.create_status to coupon_service;
grant execute on function
  coupond.claim_batch(text[], text[], integer[]),
  coupond.claim_coupon(text, text),
  coupond.claim_coupons(text[], text),
  coupond.coupon_claimers(text, integer, integer),
  coupond.coupon_schema_version(),
  coupond.create_coupon(text, bigint),
  coupond.get_coupon(text),
  coupond.locked_coupons(text[]),
  coupond.session_problem()
to coupon_service;

grant select on table coupond.sale_progress to coupon_monitor;
