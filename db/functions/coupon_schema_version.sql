create or replace function coupond.coupon_schema_version()
returns integer
language sql
stable
security definer
set search_path = pg_catalog, coupond, pg_temp
set plan_cache_mode = force_generic_plan
as $$
  select version
  from schema_version
$$;

comment on function coupond.coupon_schema_version() is
  'The number of the newest migration that is installed. The service checks it before it reports that it '
  'is ready.';
