-- The role the service works as: it may EXECUTE the functions and nothing else (the grants stand beside each function).
--
-- A role belongs to the cluster, not to this database: another database may have made it already, or is making it at this
-- very moment. Advisory locks are per database and cannot order the two, so the loser of the race looks again.
do $$
declare
  -- From PostgreSQL 16 on, being a member of a role and being allowed to SET ROLE to it are two things.
  v_may_set_role constant text :=
    case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
begin
  for v_attempt in 1 .. 20 loop
    begin
      if not exists (select from pg_catalog.pg_roles where rolname = 'coupon_service') then
        create role coupon_service nologin;
      end if;

      -- The login that owns the schema is often the login of the service, too (one DATABASE_URL): it must be able to
      -- put its rights down and become coupon_service.
      if not pg_catalog.pg_has_role(current_user, 'coupon_service', v_may_set_role) then
        grant coupon_service to current_user;
      end if;

      exit;
    exception
      when duplicate_object or unique_violation or internal_error then
        -- internal_error is "tuple concurrently updated": two grants of the same role at once.
        if v_attempt = 20 then
          raise;
        end if;
        perform pg_catalog.pg_sleep(0.05);
    end;
  end loop;
end;
$$;

grant usage on schema public to coupon_service;
