-- A batch of any size updates the coupon's row once, because every update leaves a dead version
-- that later lookups must skip.
begin;
select plan(3);

select coupond.create_coupon('lamp', 1000);
create temporary table updates (amount integer);
create function pg_temp.record_update() returns trigger language plpgsql as $$
begin
  insert into pg_temp.updates values (old.remaining_amount - new.remaining_amount);
  return new;
end;
$$;
create trigger record_update
  before update on coupond.coupons
  for each row
  execute function pg_temp.record_update();

select coupond.claim_coupons(array(select 'user ' || i from generate_series(1, 300) as i), 'lamp');
select results_eq('select amount from updates', 'values (300)', 'claim_coupons decrements by 300 at once');

delete from updates;
select count(*)
from coupond.claim_batch(
  array(select 'another ' || i from generate_series(1, 200) as i), array_fill('lamp'::text, array[200]), array_fill(0, array[200]));
select results_eq('select amount from updates', 'values (200)', 'claim_batch decrements by 200 at once');

delete from updates;
select coupond.claim_coupons(array['user 1', 'user 2'], 'lamp');
select is_empty('select from updates', 'rejections update nothing');

select * from finish();
rollback;
