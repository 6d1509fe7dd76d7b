-- What the functions would never write, the tables refuse from everybody: also from the owner, by hand.
begin;
select plan(19);

insert into public.coupons (name, amount, remaining_amount)
values ('lamp', 2, 1);
insert into public.claims (coupon_name, claim_number, user_id)
values ('lamp', 1, 'ann');

-- Stock.
select throws_ok(
  $$ update public.coupons set remaining_amount = -1 $$,
  '23514', null, 'less than nothing is left');
select throws_ok(
  $$ update public.coupons set remaining_amount = 3 $$,
  '23514', null, 'more is left than there ever was');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values ('chair', 0, 0) $$,
  '23514', null, 'a coupon without stock');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values ('chair', -1, -1) $$,
  '23514', null, 'a coupon with less than none');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values ('chair', 1, null) $$,
  '23502', null, 'a stock that nobody knows');

-- Names.
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values ('lamp', 1, 1) $$,
  '23505', null, 'the same name twice');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values ('', 1, 1) $$,
  '23514', null, 'a coupon without a name');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values (repeat('x', 256), 1, 1) $$,
  '23514', null, 'a name of 256 characters');
select throws_ok(
  $$ insert into public.coupons (name, amount, remaining_amount) values (null, 1, 1) $$,
  '23502', null, 'null for a name');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 2, '') $$,
  '23514', null, 'a claim of nobody');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 2, repeat('x', 256)) $$,
  '23514', null, 'a user of 256 characters');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 2, null) $$,
  '23502', null, 'null for a user');

-- Claims.
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 2, 'ann') $$,
  '23505', null, 'one user, the same coupon twice');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 1, 'bob') $$,
  '23505', null, 'two users, the same piece');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('lamp', 0, 'bob') $$,
  '23514', null, 'the piece before the first');
select throws_ok(
  $$ insert into public.claims (coupon_name, claim_number, user_id) values ('chair', 1, 'bob') $$,
  '23503', null, 'a piece of a coupon that does not exist');
select throws_ok(
  $$ delete from public.coupons where name = 'lamp' $$,
  '23503', null, 'a coupon taken away from those who have it');
select throws_ok(
  $$ update public.coupons set name = 'chair' where name = 'lamp' $$,
  '23503', null, 'or renamed under their feet');
select throws_ok(
  $$ truncate public.coupons $$,
  '0A000', null, 'or all of them at once');

select * from finish();
rollback;
