-- coupon_service is the role of the service: it may EXECUTE the functions and nothing else.
-- coupon_monitor may read the view sale_progress and nothing else; it has no members, and an
-- administrator grants it to the monitoring login. An administrator creates both
-- (deploy/roles.sql), or this does, if it may. It runs on every deploy and is not a migration,
-- because a dump that is restored into another cluster has no roles. It runs in the transaction of
-- prepare.sql, so that nothing is left behind if the roles are missing.
--
-- A role belongs to the cluster, not to this database: another database of the cluster may be
-- creating it concurrently. Advisory locks are per database and cannot order the two, so the one
-- that fails tries again. to_regrole asks the session's cache, as GRANT does: a query of pg_roles can
-- see a role that the cache does not have yet.
--
-- They are created by the owner of the schema, which is the current role, or if it may not do that,
-- by the login that installs.
do $$
declare
  v_owner constant name := current_user;
  v_hint constant text := pg_catalog.format(
    'An administrator does it once: create role coupon_service nologin; create role coupon_monitor nologin; '
    'grant coupon_service to %I.', v_owner);
  -- Since PostgreSQL 16, membership in a role does not always allow SET ROLE to it.
  v_may_set_role constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
begin
  for v_attempt in 1 .. 20 loop
    begin
      if pg_catalog.to_regrole('coupon_service') is null then
        create role coupon_service nologin;
      end if;

      -- The login that owns the schema is often the login of the service too (one DATABASE_URL). It
      -- must be able to drop its privileges with SET ROLE coupon_service.
      if not pg_catalog.pg_has_role(v_owner, 'coupon_service', v_may_set_role) then
        execute pg_catalog.format('grant coupon_service to %I', v_owner);
      end if;

      exit;
    exception
      when insufficient_privilege then
        if current_user = session_user then
          raise exception 'the login % may not create or grant the roles of coupond: %', session_user, sqlerrm
            using errcode = 'UC005', hint = v_hint;
        end if;
        perform pg_catalog.set_config('role', 'none', true);
      when duplicate_object or unique_violation or internal_error then
        -- internal_error is "tuple concurrently updated": two concurrent grants of the same role.
        if v_attempt = 20 then
          raise;
        end if;
        perform pg_catalog.pg_sleep(0.05);
    end;
  end loop;

  while pg_catalog.to_regrole('coupon_monitor') is null loop
    begin
      create role coupon_monitor nologin;
    exception
      when insufficient_privilege then
        if current_user = session_user then
          raise exception 'the login % may not create or grant the roles of coupond: %', session_user, sqlerrm
            using errcode = 'UC005', hint = v_hint;
        end if;
        perform pg_catalog.set_config('role', 'none', true);
      when duplicate_object or unique_violation then
        null;
    end;
  end loop;

  if current_user <> v_owner then
    perform pg_catalog.set_config('role', v_owner, true);
  end if;
end;
$$;
