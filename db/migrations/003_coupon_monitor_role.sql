-- The role of those who watch a sale: it may read the view public.sale_progress and nothing else (the grant stands beside the
-- view, in db/functions). Nobody is a member by it: whoever looks after the server grants it to the login of the monitoring.
--
-- A role belongs to the cluster, not to this database (see 002): another database may have made it already, or is making it at
-- this very moment. The loser of that race gets unique_violation when the winner has committed, and tries again: only a
-- duplicate_object says that this session's cache has heard of the role, too, so that the grant below finds it.
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
