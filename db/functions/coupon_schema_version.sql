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
  'The number of the newest migration installed here. The service asks it before it calls itself ready.';

revoke all on function public.coupon_schema_version() from public;
grant execute on function public.coupon_schema_version() to coupon_service;
