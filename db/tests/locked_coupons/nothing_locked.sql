-- Coupons that no other transaction keeps locked are not returned. (db/locks_test.go tests locks of
-- other sessions.)
begin;
select plan(6);

select is_empty($$ select coupond.locked_coupons('{}') $$, 'no coupons, no rows');
select is_empty($$ select coupond.locked_coupons(array['lamp']) $$, 'a coupon that does not exist');
select coupond.create_coupon('lamp', 3);
select coupond.create_coupon('chair', 1);
select coupond.claim_coupon('ann', 'chair');
select is_empty($$ select coupond.locked_coupons(array_fill('lamp'::text, array[512])) $$, 'a coupon, 512 times');
select is_empty($$ select coupond.locked_coupons('[5:6]={lamp,chair}') $$, 'a coupon with stock and one without');
select is_empty(
  $$ select coupond.locked_coupons(array['lamp', 'LAMP'] collate "en-x-icu") $$, 'names of another collation');
select results_eq(
  $$ select name, remaining_amount from coupond.coupons order by name $$,
  $$ values ('chair' collate "C", 0), ('lamp', 3) $$,
  'the stock is unchanged');

select * from finish();
rollback;
