-- coupon_service is the role of the service, as on a single server. coupon_proxy owns the functions and so, as they are
-- SECURITY DEFINER, is who PL/Proxy looks a user mapping up for: nobody logs in as it, and nobody else can use the mapping.
create extension if not exists plproxy with schema pg_catalog;

do $$
declare
  v_role text;
begin
  foreach v_role in array array['coupon_service', 'coupon_proxy'] loop
    -- The loser of a race with another database of this server tries again (db/migrations/003 says why).
    while not exists (select from pg_catalog.pg_roles where rolname = v_role) loop
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object then
          exit;
        when unique_violation then
          null;
      end;
    end loop;
  end loop;
end;
$$;

grant usage on schema public to coupon_service;
grant usage on schema public to coupon_proxy;
