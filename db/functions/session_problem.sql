-- The settings that the promises of the other functions rest on and that they cannot set for
-- themselves. The service sets them on each connection, but a pooler, or ALTER ROLE on a server
-- behind a proxy, can undo that. It is SECURITY INVOKER and sets nothing, so it sees the caller's
-- settings.
create or replace function coupond.session_problem()
returns text
language sql
stable
as $$
  select
    case
      when pg_catalog.pg_is_in_recovery() then
        'the server is a standby (pg_is_in_recovery() is true): it stores no claims; connect to the primary'
      when pg_catalog.current_setting('transaction_read_only') <> 'off' then
        'transaction_read_only is on: no claim can be stored; set default_transaction_read_only = off'
      when pg_catalog.current_setting('client_encoding') <> 'UTF8' then
        pg_catalog.format(
          'client_encoding is %s: names would be stored as other characters; set client_encoding = UTF8',
          pg_catalog.current_setting('client_encoding'))
      when pg_catalog.current_setting('client_min_messages') = 'error' then
        'client_min_messages is error: the warning that a claim has not reached the standby would be hidden; '
        'set client_min_messages = warning'
      when pg_catalog.current_setting('synchronous_commit') not in ('on', 'remote_apply') then
        pg_catalog.format(
          'synchronous_commit is %s: a claim could be lost in a crash; set synchronous_commit = on',
          pg_catalog.current_setting('synchronous_commit'))
      when pg_catalog.current_setting('default_transaction_isolation') <> 'read committed' then
        pg_catalog.format(
          'default_transaction_isolation is %s: concurrent claims would fail (40001); '
          'set default_transaction_isolation = ''read committed''',
          pg_catalog.current_setting('default_transaction_isolation'))
      when pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
        pg_catalog.format(
          'transaction_isolation is %s: concurrent claims would fail (40001); use read committed',
          pg_catalog.current_setting('transaction_isolation'))
    end
$$;

comment on function coupond.session_problem() is
  'Null, or a sentence that names the first setting of the calling session that breaks a promise of the service.';
