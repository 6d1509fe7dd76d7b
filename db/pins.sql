{{- /*
The settings of a session that installs, whatever the database and the login have. A statement that
waits for a lock makes all later ones queue behind it, so it waits for a short time only.
*/ -}}
set statement_timeout = 0;
set client_encoding = 'UTF8';
set client_min_messages = notice;
set standard_conforming_strings = on;
set check_function_bodies = on;
set search_path = pg_catalog;
set default_transaction_isolation = 'read committed';
set default_transaction_read_only = off;
set lock_timeout = '500ms'; -- below the service's own, 750 ms by default
set idle_in_transaction_session_timeout = 0;
do $$
begin
  -- Since PostgreSQL 17.
  perform set_config('transaction_timeout', '0', false)
  from pg_settings
  where name = 'transaction_timeout';
end;
$$;
