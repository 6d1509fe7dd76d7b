-- The tables refuse what the functions never write, even from the owner.
begin;
select plan(25);

insert into coupond.coupons (name, amount, remaining_amount)
values ('lamp', 2, 1);
insert into coupond.claims (coupon_name, claim_number, user_id)
values ('lamp', 1, 'ann');

-- Stock.
select throws_ok(
  $$ update coupond.coupons set remaining_amount = -1 $$,
  '23514', null, 'a negative remaining amount');
select throws_ok(
  $$ update coupond.coupons set remaining_amount = 3 $$,
  '23514', null, 'a remaining amount above the amount');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('chair', 0, 0) $$,
  '23514', null, 'an amount of 0');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('chair', -1, -1) $$,
  '23514', null, 'a negative amount');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('chair', 1, null) $$,
  '23502', null, 'a null remaining amount');

-- Names.
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('lamp', 1, 1) $$,
  '23505', null, 'the same name twice');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values ('', 1, 1) $$,
  '23514', null, 'a coupon without a name');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values (repeat('x', 256), 1, 1) $$,
  '23514', null, 'a name of 256 characters');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values (E' \u00a0', 1, 1) $$,
  '23514', null, 'a name that is all white space');
select throws_ok(
  $$ update coupond.coupons set name = ' ' $$,
  '23514', null, 'a renamed coupon whose name is all white space');
select throws_ok(
  $$ insert into coupond.coupons (name, amount, remaining_amount) values (null, 1, 1) $$,
  '23502', null, 'a null name');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, '') $$,
  '23514', null, 'an empty user id');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, repeat('x', 256)) $$,
  '23514', null, 'a user id of 256 characters');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, null) $$,
  '23502', null, 'a null user id');

-- Claims.
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, 'ann') $$,
  '23505', null, 'the same user and coupon twice');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 1, 'bob') $$,
  '23505', null, 'the same claim number twice');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 0, 'bob') $$,
  '23514', null, 'claim number 0');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('chair', 1, 'bob') $$,
  '23503', null, 'a claim for a coupon that does not exist');
select throws_ok(
  $$ delete from coupond.coupons where name = 'lamp' $$,
  '23503', null, 'deleting a coupon that has claims');
select throws_ok(
  $$ update coupond.coupons set name = 'chair' where name = 'lamp' $$,
  '23503', null, 'renaming a coupon that has claims');
select throws_ok(
  $$ truncate coupond.coupons $$,
  '23503', null, 'truncating the coupons');
select throws_ok(
  $$ insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 3, 'bob') $$,
  '23503', null, 'a claim number above the amount');
select throws_ok(
  $$ update coupond.coupons set amount = 1, remaining_amount = 0; insert into coupond.claims (coupon_name, claim_number, user_id) values ('lamp', 2, 'bob') $$,
  '23503', null, 'selling more than the amount');
select throws_ok(
  $$ insert into coupond.schema_version (version) values (99) $$,
  '23505', null, 'a second version');
select throws_ok(
  $$ insert into coupond.schema_version (version, singleton) values (99, false) $$,
  '23514', null, 'or a row that is not the only one');

select * from finish();
rollback;
