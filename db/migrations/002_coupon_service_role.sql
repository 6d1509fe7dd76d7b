-- The role of the service: it may EXECUTE the functions and nothing else (each function's file has
-- its grants).
--
-- A role belongs to the cluster, not to this database: a migration of another database may have
-- created it, or may be creating it concurrently. Advisory locks are per database and cannot order
-- the two, so the one that fails tries again.
do $$
declare
  -- Since PostgreSQL 16, membership in a role does not always allow SET ROLE to it.
  v_may_set_role constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
begin
  for v_attempt in 1 .. 20 loop
    begin
      if not exists (select from pg_catalog.pg_roles where rolname = 'coupon_service') then
        create role coupon_service nologin;
      end if;

      -- The login that owns the schema is often the login of the service too (one DATABASE_URL). It
      -- must be able to drop its privileges with SET ROLE coupon_service.
      if not pg_catalog.pg_has_role(current_user, 'coupon_service', v_may_set_role) then
        grant coupon_service to current_user;
      end if;

      exit;
    exception
      when duplicate_object or unique_violation or internal_error then
        -- internal_error is "tuple concurrently updated": two concurrent grants of the same role.
        if v_attempt = 20 then
          raise;
        end if;
        perform pg_catalog.pg_sleep(0.05);
    end;
  end loop;
end;
$$;

grant usage on schema public to coupon_service;
