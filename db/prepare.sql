{{- /*
Apply and the script for psql run this before the first migration. It refuses a database that they
must not change. It leaves the schema coupond with one owner, which is then the current role, and
with a version table that has one row. It reads the catalogs by name, because to_regclass() fails without
USAGE on the schema. The session's settings are pinned (pins.sql).

Apply recognises a refusal by its SQLSTATE, UC001 and so on (refusals in apply.go), and logs what was
repaired from the setting coupond.repaired.
*/ -}}
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
  v_stranger record;
  v_repaired text := '';
{{- if not .Proxy}}
  v_owner constant name := coalesce(
    (select pg_get_userbyid(nspowner) from pg_namespace where oid = v_schema),
    current_user
  );
  -- Since PostgreSQL 16, membership in a role does not always allow SET ROLE to it.
  v_may_set_role constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
  v_given integer := 0;
  v_givers name[] := '{}';
  v_recorded integer;
  v_installed integer;
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
    select pg_describe_object(o.class, o.id, 0) as name
    into v_stranger
    from (
      select 'pg_class'::regclass as class, oid as id from pg_class where relnamespace = v_schema
      union all
      select 'pg_proc'::regclass, oid from pg_proc where pronamespace = v_schema
      union all
      select 'pg_type'::regclass, oid from pg_type where typnamespace = v_schema
    ) as o
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

{{- if .Proxy}}

  if v_schema is null then
    create schema coupond;
  end if;
{{- else}}

  -- Whoever may create a schema could otherwise become the owner of the tables.
  if v_table is null
    and v_schema is not null
    and v_owner not in (current_user, (select pg_get_userbyid(datdba) from pg_database where datname = current_database()))
  then
    raise exception 'the schema coupond is empty and belongs to %', quote_ident(v_owner)
      using errcode = 'UC004', hint = 'Install as that role or as the owner of the database, or drop the schema.';
  end if;

  -- 2. One owner for all objects, so that the functions, which run as their owner, can use the
  --    tables: the owner of the schema, whichever login installs a new version.
  if not pg_has_role(current_user, v_owner, v_may_set_role) then
    raise exception 'the login % may not act as %, the owner of the schema coupond', current_user, quote_ident(v_owner)
      using errcode = 'UC005',
        hint = format('Log in as %1$s, as a member of that role or as a superuser. To make another role the '
          'owner: alter schema coupond owner to <role>, then migrate as a superuser.', quote_ident(v_owner));
  end if;

  for v_stranger in
    select i.type, i.identity, pg_get_userbyid(o.owner) as owner
    from (
      select 'pg_class'::regclass as class, c.oid as id, c.relowner as owner
      from pg_class as c
      where c.relnamespace = v_schema
        and c.relkind in ('r', 'p', 'f', 'v', 'm', 'S')
      union all
      select 'pg_proc'::regclass, p.oid, p.proowner
      from pg_proc as p
      where p.pronamespace = v_schema
      union all
      -- Not the types of tables and arrays: their owner changes with that of the table or type.
      select 'pg_type'::regclass, t.oid, t.typowner
      from pg_type as t
      left join pg_class as c
        on c.oid = t.typrelid
      where t.typnamespace = v_schema
        and t.typtype <> 'm'
        and coalesce(c.relkind, 'c') = 'c'
        and not exists (select from pg_type as e where e.typarray = t.oid)
    ) as o
    cross join lateral pg_identify_object(o.class, o.id, 0) as i
    where o.owner <> (select r.oid from pg_roles as r where r.rolname = v_owner)
      -- Neither a member of an extension nor the sequence of a column.
      and not exists (
        select
        from pg_depend as d
        where d.classid = o.class
          and d.objid = o.id
          and (d.deptype = 'e' or (d.deptype in ('a', 'i') and d.refobjsubid > 0))
      )
    order by i.identity
  loop
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
  end loop;
  if v_given > 0 then
    v_repaired := format(E'\n%s objects of %s now belong to %I, the owner of the schema coupond',
      v_given, array_to_string(v_givers, ', '), v_owner);
  end if;

  if v_owner <> current_user then
    perform set_config('role', v_owner, false);
  end if;

  -- 3. The version table. Its row is data, which TRUNCATE removes and a data-only restore replaces.
  --    Its comment is part of the schema, so that knows which objects are there.
  if v_schema is null then
    create schema coupond;
  end if;
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
    v_installed := substring(obj_description(v_table, 'pg_class') from '^{{.VersionComment}}(\d{1,9})$');

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
      execute format('comment on table coupond.schema_version is %L', '{{.VersionComment}}' || v_installed);
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
{{- end}}

  perform set_config('coupond.repaired', ltrim(v_repaired, E'\n'), false);
  if v_repaired <> '' then
    raise notice '%', ltrim(v_repaired, E'\n');
  end if;
end;
$$;
