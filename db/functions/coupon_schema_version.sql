create or replace function public.coupon_schema_version()
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.version
  from public.schema_version as v
$$;

comment on function public.coupon_schema_version() is
  'The number of the newest migration that is installed. The service checks it before it reports that it '
  'is ready.';

revoke all on function public.coupon_schema_version() from public;
grant execute on function public.coupon_schema_version() to coupon_service;
