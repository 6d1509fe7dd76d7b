{{- /*
Apply and the script for psql run this before the first migration. It refuses a database that they
must not change. It leaves the schema coupond with one owner, which is then the current role, and
with a version table that has one row. It reads the catalogs by name, because to_regclass() fails without
USAGE on the schema. The session's settings are pinned (pins.sql).

A refusal has a SQLSTATE of class UC. Apply reads the version from the setting coupond.version, and
what was repaired from coupond.repaired.
*/ -}}
{{define "version comment" -}}
One row: the number of the newest migration that is installed. If the row is lost, coupond migrate restores it from this comment: version {{end -}}
do $$
declare
  v_schema constant oid := (select oid from pg_namespace where nspname = 'coupond');
  -- A version table of another program has no column "singleton".
  v_table constant oid := (
    select c.oid
    from pg_class as c
    join pg_attribute as a
      on a.attrelid = c.oid
    where c.relnamespace = v_schema
      and c.relname = 'schema_version'
      and c.relkind = 'r'
      and a.attname = 'singleton'
  );
  v_is_proxy constant boolean := exists (
    select
    from pg_proc as p
    join pg_language as l
      on l.oid = p.prolang
    where p.pronamespace = v_schema
      and p.proname = 'claim_coupons'
      and l.lanname = 'plproxy'
  );
  v_owner constant name := coalesce(
    (select pg_get_userbyid(nspowner) from pg_namespace where oid = v_schema),
    current_user
  );
  v_stranger record;
  v_command text;
  v_repaired text := '';
  v_installed integer := 0;
{{- if not .Proxy}}
  -- Since PostgreSQL 16, membership in a role does not always allow SET ROLE to it.
  v_may_set_role constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
  v_given integer := 0;
  v_givers name[] := '{}';
  v_recorded integer;
{{- end}}
begin
  -- 1. Is it our database?
  if v_table is null and exists (
    select
    from pg_proc as p
    join pg_namespace as n
      on n.oid = p.pronamespace
    join pg_language as l
      on l.oid = p.prolang
    where n.nspname = 'public'
      and p.proname = 'claim_coupons'
      and oidvectortypes(p.proargtypes) = 'text[], text'
      and (
        l.lanname = 'plproxy'
        or exists (select from pg_class as c where c.relnamespace = n.oid and c.relname = 'claims')
      )
  ) then
    raise exception 'the database has the tables or functions of an older coupond in the schema public'
      using errcode = 'UC001',
        hint = 'That version was never released and cannot be migrated. Use a new database; if this is the one '
          'of `coupond dev` or `make run`, delete its folder .coupond.';
  end if;

{{- if .Proxy}}

  if v_table is not null then
    raise exception 'the database has coupons of its own: a proxy stores none'
      using errcode = 'UC002', hint = 'Use an empty database.';
  end if;
{{- else}}

  if v_is_proxy then
    raise exception 'the database is a proxy'
      using errcode = 'UC003', hint = 'Update it with coupond migrate --proxy.';
  end if;
{{- end}}

  if v_table is null and not v_is_proxy then
    -- Whatever kind of object it is.
    select pg_describe_object(classid, objid, 0) as name
    into v_stranger
    from pg_depend
    where refclassid = 'pg_namespace'::regclass
      and refobjid = v_schema
      and deptype = 'n'
    order by 1
    limit 1;

    if found then
      raise exception 'the schema coupond belongs to another program: it has the %, and no version table of coupond',
          v_stranger.name
        using errcode = 'UC004', hint = 'Use another database, or rename that schema.';
    end if;
  end if;

  -- An owner could make a superuser who installs a new version run the owner's code.
  if v_table is not null and (
    exists (select from pg_trigger where tgrelid = v_table and not tgisinternal)
    or exists (select from pg_rewrite where ev_class = v_table)
    or exists (select from pg_policy where polrelid = v_table)
    or exists (select from pg_index where indrelid = v_table and not indisprimary)
    or exists (
      select
      from pg_constraint
      where conrelid = v_table
        and contype = 'c'
        and pg_get_constraintdef(oid) not in ('CHECK (singleton)', 'CHECK ((version >= 0))')
    )
    or exists (select from pg_attrdef where adrelid = v_table and pg_get_expr(adbin, adrelid) <> 'true')
  ) then
    raise exception 'the table coupond.schema_version has a trigger, rule, policy, index, check or default that is not ours'
      using errcode = 'UC004', hint = 'Drop it.';
  end if;

{{- if not .Proxy}}

  -- 2. One owner for all objects, so that the functions, which run as their owner, can use the
  --    tables: the owner of the schema, whichever login installs a new version.
  if not pg_has_role(current_user, v_owner, v_may_set_role) then
    raise exception 'the login % may not act as %, the owner of the schema coupond', current_user, quote_ident(v_owner)
      using errcode = 'UC005',
        hint = format('Log in as %1$s, as a member of that role or as a superuser. To make another role the '
          'owner: alter schema coupond owner to <role>, then migrate as a superuser.', quote_ident(v_owner));
  end if;
{{- end}}

  -- Whoever may create a schema could otherwise have this one before us, and be the owner of the
  -- tables and functions. (A superuser may act as every role, so that it must have been meant.)
  if exists (
    select
    from pg_roles as o
    join pg_roles as me
      on me.rolname = current_user
    where o.rolname = v_owner
      and o.oid <> me.oid
      and me.rolsuper
      and not o.rolsuper
      and o.oid <> (select datdba from pg_database where datname = current_database())
      and not exists (select from pg_auth_members where roleid = o.oid and member = me.oid)
  ) then
    raise exception 'the schema coupond belongs to %, which does not own this database', quote_ident(v_owner)
      using errcode = 'UC004',
        hint = format('If it may own the coupons: grant %s to %I. Otherwise, drop the schema.', quote_ident(v_owner), current_user);
  end if;

  -- From now on nobody else can create objects there. Default privileges may have allowed it.
  if v_schema is null then
    create schema coupond;
  end if;
  for v_command in
    select distinct
      format(
        'revoke %s on schema coupond from %s cascade', a.privilege_type,
        case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
    from pg_namespace as n
    cross join aclexplode(n.nspacl) as a
    left join pg_roles as r
      on r.oid = a.grantee
    where n.nspname = 'coupond'
      and a.grantee <> n.nspowner
      and (a.privilege_type = 'CREATE' or coalesce(r.rolname not in ('coupon_service', 'coupon_monitor', 'coupon_proxy'), true))
  loop
    execute v_command;
  end loop;

  -- What others have created before is not ours, unless they may act as the owner: a function could
  -- be called instead of ours, with the owner's privileges.
  for v_stranger in
    select i.type, i.identity, pg_get_userbyid(o.owner) as owner, pg_has_role(o.owner, v_owner, 'member') as may_be_owner
    from (
      select 'pg_class'::regclass as class, c.oid as id, c.relnamespace as namespace, c.relowner as owner
      from pg_class as c
      where c.relkind in ('r', 'p', 'f', 'v', 'm', 'S')
      union all
      -- Not the types of tables and arrays: their owner changes with that of the table or type.
      select 'pg_type'::regclass, t.oid, t.typnamespace, t.typowner
      from pg_type as t
      left join pg_class as c
        on c.oid = t.typrelid
      where t.typtype <> 'm'
        and coalesce(c.relkind, 'c') = 'c'
        and not exists (select from pg_type as e where e.typarray = t.oid)
      union all
      select 'pg_proc'::regclass, oid, pronamespace, proowner from pg_proc
      union all
      select 'pg_operator'::regclass, oid, oprnamespace, oprowner from pg_operator
      union all
      select 'pg_opclass'::regclass, oid, opcnamespace, opcowner from pg_opclass
      union all
      select 'pg_opfamily'::regclass, oid, opfnamespace, opfowner from pg_opfamily
      union all
      select 'pg_collation'::regclass, oid, collnamespace, collowner from pg_collation
      union all
      select 'pg_conversion'::regclass, oid, connamespace, conowner from pg_conversion
      union all
      select 'pg_ts_config'::regclass, oid, cfgnamespace, cfgowner from pg_ts_config
      union all
      select 'pg_ts_dict'::regclass, oid, dictnamespace, dictowner from pg_ts_dict
    ) as o
    cross join lateral pg_identify_object(o.class, o.id, 0) as i
    where o.namespace = v_schema
      and o.owner <> (select r.oid from pg_roles as r where r.rolname = v_owner)
{{- if .Proxy}}
      and pg_get_userbyid(o.owner) <> 'coupon_proxy'
{{- end}}
      -- Neither a member of an extension nor the sequence of a column.
      and not exists (
        select
        from pg_depend as d
        where d.classid = o.class
          and d.objid = o.id
          and (d.deptype = 'e' or (d.deptype in ('a', 'i') and d.refobjsubid > 0))
      )
    order by may_be_owner, i.identity
  loop
    if not v_stranger.may_be_owner then
      raise exception 'the % % belongs to %, and the schema coupond to %: it is not ours',
          v_stranger.type, v_stranger.identity, quote_ident(v_stranger.owner), quote_ident(v_owner)
        using errcode = 'UC004',
          hint = format('Look at it. Then drop it, or: alter %s %s owner to %I.', v_stranger.type, v_stranger.identity, v_owner);
    end if;
{{- if not .Proxy}}

    begin
      execute format('alter %s %s owner to %I', v_stranger.type, v_stranger.identity, v_owner);
    exception
      when insufficient_privilege then
        raise exception 'the % % belongs to %, and the schema coupond to %: all of it must have one owner',
            v_stranger.type, v_stranger.identity, quote_ident(v_stranger.owner), quote_ident(v_owner)
          using errcode = 'UC005',
            hint = format('Migrate once as a superuser, which gives it to %s.', quote_ident(v_owner));
    end;
    v_given := v_given + 1;
    if v_stranger.owner <> all (v_givers) then
      v_givers := v_givers || v_stranger.owner;
    end if;
{{- end}}
  end loop;
{{- if not .Proxy}}

  if v_given > 0 then
    v_repaired := format(E'\n%s objects of %s now belong to %I, the owner of the schema coupond',
      v_given, array_to_string(v_givers, ', '), v_owner);
  end if;

  if v_owner <> current_user then
    perform set_config('role', v_owner, false);
  end if;

  -- Even the owner may have lost a privilege.
  if not has_schema_privilege('coupond', 'create') or not has_schema_privilege('coupond', 'usage') then
    execute format('grant all on schema coupond to %I', v_owner);
  end if;
  if v_table is not null then
    execute format('grant all on coupond.schema_version to %I', v_owner);
  end if;

  -- 3. The version table. Its row is data, which TRUNCATE removes and a data-only restore replaces.
  --    Its comment is part of the schema, so that knows which objects are there.
  if v_table is null then
    create table coupond.schema_version (
      version int4 not null,
      singleton boolean not null default true,
      constraint schema_version_pkey
        primary key (singleton),
      constraint schema_version_has_one_row
        check (singleton),
      constraint schema_version_is_not_negative
        check (version >= 0)
    );
    insert into coupond.schema_version (version) values (0);
  else
    v_recorded := (select version from coupond.schema_version);
    v_installed := substring(obj_description(v_table, 'pg_class') from '^{{template "version comment"}}(\d{1,9})$');

    if greatest(v_recorded, v_installed) > {{.Version}} then
      raise exception 'the schema is newer than this {{.Program}}: the database has version %, this {{.Program}} installs version {{.Version}}',
          greatest(v_recorded, v_installed)
        using errcode = 'UC006', hint = 'Run the newer program''s migrate, or its install.sql.';
    end if;

    if v_installed is null then
      v_installed := v_recorded;
      if not exists (select from pg_class where relnamespace = v_schema and relname = 'coupons') then
        v_installed := 0;
      end if;
      execute format('comment on table coupond.schema_version is %L', '{{template "version comment"}}' || v_installed);
    end if;
    if v_installed is null then
      raise exception 'the table coupond.schema_version is empty, and its comment does not have the version either'
        using errcode = 'UC007',
          hint = format('If the schema was made by a program of version {{.Version}}, as `coupond version` prints: '
            'insert into coupond.schema_version (version) values ({{.Version}}).');
    end if;

    if v_recorded is distinct from v_installed then
      insert into coupond.schema_version (version)
      values (v_installed)
      on conflict (singleton) do update
      set version = excluded.version;
      v_repaired := v_repaired || format(E'\nthe table coupond.schema_version had %s; it now has %s, the version of the other objects',
        coalesce('version ' || v_recorded, 'no row'), v_installed);
    end if;
  end if;
{{- else}}

  if to_regprocedure('coupond.coupon_schema_version()') is not null then
    v_installed := coupond.coupon_schema_version();
  end if;
  if v_installed > {{.Version}} then
    raise exception 'the schema is newer than this program: the database has version %, this program installs version {{.Version}}', v_installed
      using errcode = 'UC006', hint = 'Run the newer program''s migrate --proxy.';
  end if;
{{- end}}

  perform set_config('coupond.version', v_installed::text, false);
  perform set_config('coupond.repaired', ltrim(v_repaired, E'\n'), false);
  if v_repaired <> '' then
    raise notice '%', ltrim(v_repaired, E'\n');
  end if;
end;
$$;
{{- if not .Proxy}}

{{template "roles.sql" .}}
{{- end}}
