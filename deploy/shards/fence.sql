-- Stops writes to a partition on its old server, after the new server has copied it:
--   psql "$OLD" -v partition=5 -f fence.sql
--
-- After the first commit this server refuses the partition's coupons (SC421). Calls that checked
-- the ownership before may still be running. Each holds a virtual transaction ID, and the script
-- waits for them, at most for statement_timeout. It prints the WAL position that the new server
-- must have received.
set synchronous_commit = on;
begin;
update coupond.shard set owned = array_remove(owned, :partition);
commit;
do $$
declare
  v_old text[];
  v_prepared text[];
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

  -- One of them may have been prepared (PREPARE TRANSACTION): it has no virtual transaction ID any
  -- more and can still commit its claims.
  select array_agg(p.gid)
  into v_prepared
  from pg_catalog.pg_prepared_xacts as p
  where p.database = pg_catalog.current_database()
    and exists (
      select
      from pg_catalog.pg_locks as x
      join pg_catalog.pg_locks as l on l.virtualtransaction = x.virtualtransaction
      where x.transactionid = p.transaction
        and l.relation in ('coupond.coupons'::regclass, 'coupond.claims'::regclass)
    );

  while exists (
    select
    from pg_catalog.pg_prepared_xacts as p
    where p.gid = any (v_prepared)
  ) loop
    perform pg_catalog.pg_sleep(0.01);
  end loop;
end;
$$;
-- The commits of those transactions are inserted into the WAL, but with synchronous_commit = off
-- they may not be written or flushed. This record is behind them, and its commit flushes all of it.
select pg_catalog.pg_logical_emit_message(true, 'coupond', '');
