-- check_shard applies the rule of check_shards to one coupon.
begin;
select plan(4);

select lives_ok($$ select coupond.check_shard('lamp') $$, 'a single server owns every coupon');

insert into coupond.shard (partitions, owned)
values (2, array[hashtext('lamp') & 1]);
select lives_ok($$ select coupond.check_shard('lamp') $$, 'a shard owns the coupons of its partitions');

update coupond.shard set owned = array[1 - (hashtext('lamp') & 1)];
select throws_ok(
  $$ select coupond.check_shard('lamp') $$,
  'SC421', 'this server does not own the coupon', 'and no others');
create function pg_temp.detail() returns text language plpgsql as $$
declare
  v_detail text;
begin
  perform coupond.check_shard('lamp');
exception when sqlstate 'SC421' then
  get stacked diagnostics v_detail = pg_exception_detail;
  return v_detail;
end
$$;
select is(pg_temp.detail(), 'It is ''lamp''.', 'the error names the coupon');

select * from finish();
rollback;
