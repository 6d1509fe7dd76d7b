-- The role for monitoring: it may read the view public.sale_progress and nothing else (the view's
-- file in db/functions has the grant). It has no members: an administrator grants it to the
-- monitoring login.
--
-- A role belongs to the cluster, not to this database (see 002): a migration of another database
-- may be creating it concurrently. The one that comes second gets unique_violation when the first
-- has committed, and tries again: only duplicate_object proves that this session's cache has the
-- role, so that the grant below finds it.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'coupon_monitor') then
    loop
      begin
        create role coupon_monitor nologin;
        exit;
      exception
        when duplicate_object then
          exit;
        when unique_violation then
          null;
      end;
    end loop;
  end if;
end;
$$;

grant usage on schema public to coupon_monitor;
