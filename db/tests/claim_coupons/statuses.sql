-- One status for each user of the crowd, in the order of the crowd.
begin;
select plan(7);

select public.create_coupon('lamp', 3);

select is(public.claim_coupons(array['ann', 'bob'], 'lamp'), '{claimed,claimed}', 'claimed');
select is(public.claim_coupons(array['ann', 'eve', 'bob'], 'lamp'), '{already_claimed,claimed,already_claimed}', 'already_claimed');
select is(public.claim_coupons(array['joe', 'ann', 'sue'], 'lamp'), '{out_of_stock,already_claimed,out_of_stock}', 'out_of_stock');
select is(public.claim_coupons(array['ann', 'zoe'], 'chair'), '{coupon_not_found,coupon_not_found}', 'coupon_not_found');
select is(public.claim_coupons(array['eve'], 'lamp'), '{already_claimed}', 'a crowd of one');
select is(
  (select remaining_amount from public.coupons where name = 'lamp'), 0, 'the stock is less by the number of claimed');
select results_eq(
  $$ select claim_number, user_id from public.claims order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'bob'), (3, 'eve') $$,
  'claim numbers are in the order of the crowds, and in each of its users');

select * from finish();
rollback;
