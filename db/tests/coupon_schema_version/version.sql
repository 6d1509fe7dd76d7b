-- The service's role may ask which migration is the newest here.
begin;
select plan(3);

select is(
  public.coupon_schema_version(),
  (select version from public.schema_version),
  'it is the number that the migrator keeps');
update public.schema_version
set version = 41;
select is(public.coupon_schema_version(), 41, 'at this instant');
select isnt(
  has_table_privilege('coupon_service', 'public.schema_version', 'select'),
  true,
  'the role could not look for itself');

select * from finish();
rollback;
