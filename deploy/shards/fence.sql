-- On the server that gives a partition away, when the new one has copied it:
--   psql "$OLD" -v partition=5 -f fence.sql
--
-- From the first commit on its coupons are refused here (SC421). Calls that had asked before may still be under way: they
-- hold a virtual transaction id, and are waited for, for as long as statement_timeout allows. What is printed is how far the new
-- server must have read.
begin;
update public.shard set owned = array_remove(owned, :partition);
commit;
do $$
declare
  v_old text[];
begin
  -- Nobody calls from another database. An autovacuum worker or a walsender calls nothing, but can take hours over a big table.
  -- Who connects while this is read begins after the commit.
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
