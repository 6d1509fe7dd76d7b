-- The sessions that block the one with this process ID, as text, and their transactions. What only
-- a superuser may see of other sessions is left out. Process 0 stands for all prepared transactions.
with blocker as (
  select distinct pid
  from unnest(pg_blocking_pids($1)) as pid
)
select
  coalesce(string_agg(
    case
      when b.pid = 0 then concat('a prepared transaction (', (
        select string_agg(format('%L by %I since %s', gid, owner, date_trunc('second', prepared)), ', ')
        from pg_prepared_xacts
        where database = current_database()
      ), ')')
      else format('process %s (%s)', b.pid, concat_ws(
        ', ',
        'application ' || quote_literal(nullif(a.application_name, '')),
        nullif(a.backend_type, 'client backend'),
        'user ' || quote_ident(a.usename),
        a.state,
        'transaction since ' || date_trunc('second', a.xact_start)
      ))
    end, ' and ' order by b.pid), ''),
  array(
    select distinct virtualtransaction
    from pg_locks
    where coalesce(pid, 0) in (select pid from blocker)
  )
from blocker as b
left join pg_stat_activity as a
  on a.pid = b.pid;
