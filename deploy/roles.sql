-- What an administrator creates once, before the first `coupond migrate`, with psql 15 or newer:
--
--   psql --no-psqlrc --file=deploy/roles.sql postgres://…
--
-- The login of this session is a superuser, or has CREATEROLE and CREATEDB. It creates a database,
-- two roles that cannot log in (docs/dba.md, Privileges and the owner), and two logins:
--
--   coupond_owner  owns the database and the schema; for coupond migrate
--   coupond        may call the functions; for coupond serve
--
-- Neither has CREATEROLE, which is nearly superuser on PostgreSQL 15. They have no password yet:
-- \password coupond_owner, \password coupond. For a script: -v passwords=FOLDER, a folder that has
-- the passwords in the files owner and service.
--
-- Other names: -v database=… -v owner=… -v login=… Roles that exist are used as they are.
\set ON_ERROR_STOP on
\set VERBOSITY terse
\if :{?database}
\else
\set database coupond
\endif
\if :{?owner}
\else
\set owner coupond_owner
\endif
\if :{?login}
\else
\set login coupond
\endif

-- No statement goes to the server's log, because some contain a password.
select rolsuper as is_superuser
from pg_catalog.pg_roles
where rolname = current_user
\gset
\if :is_superuser
set log_statement = none;
set log_min_error_statement = panic;
set log_min_duration_statement = -1;
\endif

select format('create role %I %s', r.name, r.attribute)
from (
  values
    ('coupon_service', 'nologin'),
    ('coupon_monitor', 'nologin'),
    (:'owner', 'login'),
    (:'login', 'login')
) as r (name, attribute)
where not exists (select from pg_catalog.pg_roles where rolname = r.name)
\gexec
grant coupon_service to :"owner", :"login";

\if :{?passwords}
\set complete `test -s :'passwords'/owner && test -s :'passwords'/service && echo true || echo false`
\if :complete
\else
do $$ begin raise exception 'the folder passwords has no file owner or service, or it is empty'; end; $$;
\endif
\set password `cat :'passwords'/owner`
alter role :"owner" password :'password';
\set password `cat :'passwords'/service`
alter role :"login" password :'password';
\unset password
\endif

\if :is_superuser
\else
-- Only a member can give a database to a role.
grant :"owner" to current_user;
\endif
create database :"database" owner :"owner" encoding 'UTF8' template template0;
\connect :"database"

-- The service needs no temporary tables. This database has no other programs that could.
revoke temporary on database :"database" from public;
\if :is_superuser
-- Nor does it need large objects, or advisory locks, with which it could keep migrations waiting.
select
  format('revoke execute on function %s from public', oid::regprocedure),
  format('grant execute on function %s to %I', oid::regprocedure, :'owner')
from pg_catalog.pg_proc
where pronamespace = 'pg_catalog'::regnamespace
  and (proname ~ '^pg_(try_)?advisory_' or proname in ('lo_creat', 'lo_create', 'lo_from_bytea'))
\gexec
\endif
