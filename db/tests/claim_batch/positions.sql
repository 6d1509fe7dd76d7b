-- Each row has the position that the caller gave the claim, so that a proxy can split the arrays
-- and join the rows.
begin;
select plan(4);

select coupond.create_coupon('lamp', 2);

select results_eq(
  $$ select * from coupond.claim_batch(array['ann', 'bob', 'ann'], array['lamp', 'lamp', 'lamp'], array[30, 10, 20]) $$,
  $$ values (30, 'claimed'::coupond.claim_status), (10, 'claimed'), (20, 'already_claimed') $$,
  'rows are in the order of the arrays and have the given positions');
select results_eq(
  $$ select user_id::text from coupond.claims order by claim_number $$,
  $$ values ('ann' collate "C"), ('bob') $$,
  'claim numbers follow the order of the arrays, not the positions');
select results_eq(
  $$ select * from coupond.claim_batch(array['ann', 'bob'], array['lamp', 'lamp'], array[0, 0]) $$,
  $$ values (0, 'already_claimed'::coupond.claim_status), (0, 'already_claimed') $$,
  'positions may repeat');
select results_eq(
  $$ select * from coupond.claim_batch('[5:6]={ann,eve}', '[0:1]={lamp,lamp}', '[-1:0]={-7,2147483647}') $$,
  $$ values (-7, 'already_claimed'::coupond.claim_status), (2147483647, 'out_of_stock') $$,
  'arrays may have any lower bound');

select * from finish();
rollback;
