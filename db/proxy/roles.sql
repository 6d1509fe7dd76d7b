-- coupon_service is the role of the service, as on a single server. coupon_proxy owns the
-- functions. As they are SECURITY DEFINER, PL/Proxy uses the user mapping of coupon_proxy, which
-- cannot log in; no other role can use that mapping.
create extension if not exists plproxy with schema pg_catalog;

do $$
declare
  v_role text;
begin
  foreach v_role in array array['coupon_service', 'coupon_proxy'] loop
    -- Another database of this cluster may create the role concurrently; then try again. For
    -- to_regrole see db/roles.sql.
    while pg_catalog.to_regrole(v_role) is null loop
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then
          null;
      end;
    end loop;
  end loop;
end;
$$;
