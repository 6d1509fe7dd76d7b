{{- /*
Apply and the script for psql execute this first: is it a database for the schema? Then it takes the
lock that makes all installations in this database wait for each other, whichever program runs them,
and that they hold until the end: a newer program could otherwise install its migrations and
functions between two steps of an older one, which would then replace the functions.
*/ -}}
{{define "lock"}}2611230107433187{{end -}}
do $$
begin
  if current_setting('server_version_num')::integer < 150000 then
    raise exception 'PostgreSQL is too old: version %; use 15 or newer', current_setting('server_version')
      using errcode = 'UC008';
  end if;
  if current_setting('server_encoding') <> 'UTF8' then
    raise exception 'the database is not encoded in UTF8 but in %', current_setting('server_encoding')
      using errcode = 'UC009', hint = 'Names may contain any text, so create the database with encoding ''UTF8''.';
  end if;

  perform pg_advisory_lock({{template "lock"}});
exception
  when lock_not_available then
    raise exception 'another session installs in this database: process %', (
        select string_agg(l.pid || coalesce(' (' || nullif(a.application_name, '') || ')', ''), ', ')
        from pg_locks as l
        left join pg_stat_activity as a
          on a.pid = l.pid
        where l.locktype = 'advisory'
          and l.granted
          and (l.classid::bigint << 32) + l.objid::bigint = {{template "lock"}}
          and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      )
      using errcode = 'lock_not_available', hint = 'Nothing was changed. Run this script again.';
end;
$$;
