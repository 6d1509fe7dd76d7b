-- Stops writes to a partition on its old server, after the new server has copied it:
--   psql "$OLD" -v partition=5 -f fence.sql
--
-- After the first commit this server refuses the partition's coupons (SC421). Calls that checked
-- the ownership before may still be running. Each holds a virtual transaction ID, and the script
-- waits for them, at most for statement_timeout. It prints the WAL position that the new server
-- must have received.
begin;
update coupond.shard set owned = array_remove(owned, :partition);
commit;
do $$
declare
  v_old text[];
begin
  -- Sessions in other databases do not call our functions, and neither do autovacuum workers and
  -- walsenders, which may run for hours. Sessions that begin later see the commit.
  select array_agg(l.virtualxid)
  into v_old
  from pg_catalog.pg_locks as l
  join pg_catalog.pg_stat_activity as a on a.pid = l.pid
  where l.locktype = 'virtualxid'
    and l.granted
    and l.pid <> pg_catalog.pg_backend_pid()
    and a.datname = pg_catalog.current_database()
    and a.backend_type not in ('autovacuum worker', 'walsender');

  while exists (
    select
    from pg_catalog.pg_locks as l
    where l.locktype = 'virtualxid'
      and l.granted
      and l.virtualxid = any (v_old)
  ) loop
    perform pg_catalog.pg_sleep(0.01);
  end loop;
end;
$$;
select pg_catalog.pg_current_wal_lsn();
