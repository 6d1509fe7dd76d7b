-- Returns the number of the newest migration, which the service's role cannot read itself.
begin;
select plan(3);

select is(
  coupond.coupon_schema_version(),
  (select version from coupond.schema_version),
  'the number that the migrator stores');
update coupond.schema_version
set version = 41;
select is(coupond.coupon_schema_version(), 41, 'the current one');
select isnt(
  has_table_privilege('coupon_service', 'coupond.schema_version', 'select'),
  true,
  'the role cannot read the table');

select * from finish();
rollback;
