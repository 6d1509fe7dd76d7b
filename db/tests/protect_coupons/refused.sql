-- A coupon that has claims is not deleted or renamed, and its amount is not below its claims.
begin;
select plan(22);

select coupond.create_coupon('lamp', 5), coupond.create_coupon('chair', 5), coupond.create_coupon('lamp 2', 5);
select coupond.claim_coupons(array['ann', 'bob', 'eve'], 'lamp');
select coupond.claim_coupon('ann', 'lamp 2');

select throws_ok($$ delete from coupond.coupons where name = 'lamp' $$, '23503', 'the coupon ''lamp'' has claims', 'deleting it');
select throws_ok($$ delete from coupond.coupons $$, '23503', null, 'deleting all');
select throws_ok(
  $$ update coupond.coupons set name = 'sofa' where name = 'lamp' $$,
  '23503', 'the coupon ''lamp'' has claims', 'renaming it');
select throws_ok(
  $$ update coupond.coupons set amount = 2, remaining_amount = 0 where name = 'lamp' $$,
  '23514', 'the coupon ''lamp'' has 3 claims', 'lowering its amount below its claims');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('lamp', 1, 1) on conflict (name) do update set amount = 1, remaining_amount = 1 $$,
  '23514', null, 'in an upsert');
select throws_ok(
  $$ truncate coupond.coupons $$,
  '23503', 'the coupons have claims', 'truncating the coupons');
select throws_ok(
  $$ update coupond.coupons set amount = 9 where name = 'lamp' $$,
  '23514', 'the coupon ''lamp'' has 3 claims', 'raising its amount without its remaining_amount');
select throws_ok(
  $$ update coupond.coupons set amount = 9 where name = 'chair' $$,
  '23514', 'the coupon ''chair'' has 0 claims', 'that of a coupon without claims');
select throws_ok(
  $$ update coupond.coupons set amount = 4 where name = 'lamp' $$,
  '23514', 'the coupon ''lamp'' has 3 claims', 'lowering it without its remaining_amount');
select throws_ok(
  $$ update coupond.coupons set amount = 9, remaining_amount = 9 where name = 'lamp' $$,
  '23514', 'the coupon ''lamp'' has 3 claims', 'as if it had no claims');

select lives_ok($$ update coupond.coupons set amount = 3, remaining_amount = 0 where name = 'lamp' $$, 'lowering its amount to its claims');
select lives_ok($$ update coupond.coupons set amount = 9, remaining_amount = 6 where name = 'lamp' $$, 'raising its amount');
select lives_ok(
  $$ update coupond.coupons set remaining_amount = 9 where name = 'lamp'; update coupond.coupons set amount = 9, remaining_amount = 6 where name = 'lamp' $$,
  'a wrong remaining_amount is repaired');
select lives_ok($$ update coupond.coupons set name = 'lamp' where name = 'lamp' $$, 'the same name');
select lives_ok($$ update coupond.coupons set name = 'sofa', amount = 1, remaining_amount = 1 where name = 'chair' $$, 'a coupon without claims is renamed and lowered');
select lives_ok($$ delete from coupond.coupons where name = 'sofa' $$, 'and deleted');

savepoint s;
delete from coupond.claims where coupon_name = 'lamp';
select lives_ok($$ delete from coupond.coupons where name = 'lamp' $$, 'without its claims it can be deleted');
rollback to savepoint s;
select lives_ok($$ truncate coupond.coupons, coupond.claims $$, 'truncating both tables');
select lives_ok($$ truncate coupond.coupons $$, 'truncating coupons without claims');
commit;

-- A snapshot that is older than the statement may not have the newest claims.
begin isolation level repeatable read;
select coupond.create_coupon('lamp', 5);
select throws_ok(
  $$ delete from coupond.coupons $$,
  '0A000', 'a coupon can be deleted, renamed or lowered in its amount only under READ COMMITTED', 'deleting at another isolation level');
select throws_ok($$ truncate coupond.coupons $$, '0A000', null, 'truncating at another isolation level');
select lives_ok($$ update coupond.coupons set amount = 6, remaining_amount = 6 $$, 'raising the amount is possible at each');

select * from finish();
rollback;
