-- One status per user, in the order of the users.
begin;
select plan(7);

select coupond.create_coupon('lamp', 3);

select is(coupond.claim_coupons(array['ann', 'bob'], 'lamp'), '{claimed,claimed}', 'claimed');
select is(coupond.claim_coupons(array['ann', 'eve', 'bob'], 'lamp'), '{already_claimed,claimed,already_claimed}', 'already_claimed');
select is(coupond.claim_coupons(array['joe', 'ann', 'sue'], 'lamp'), '{out_of_stock,already_claimed,out_of_stock}', 'out_of_stock');
select is(coupond.claim_coupons(array['ann', 'zoe'], 'chair'), '{coupon_not_found,coupon_not_found}', 'coupon_not_found');
select is(coupond.claim_coupons(array['eve'], 'lamp'), '{already_claimed}', 'a batch of one');
select is(
  (select remaining_amount from coupond.coupons where name = 'lamp'), 0, 'the stock is smaller by the number of claims');
select results_eq(
  $$ select claim_number::integer, user_id::text from coupond.claims order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'bob'), (3, 'eve') $$,
  'claim numbers are in the order of the calls, and of the users in each call');

select * from finish();
rollback;
