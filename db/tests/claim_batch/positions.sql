-- A claim is answered under the position that the caller gives it, so that a proxy may split the arrays and join the answers.
begin;
select plan(4);

select public.create_coupon('lamp', 2);

select results_eq(
  $$ select * from public.claim_batch(array['ann', 'bob', 'ann'], array['lamp', 'lamp', 'lamp'], array[30, 10, 20]) $$,
  $$ values (30, 'claimed'::public.claim_status), (10, 'claimed'), (20, 'already_claimed') $$,
  'answers come in the order of the arrays, under the positions');
select results_eq(
  $$ select user_id from public.claims order by claim_number $$,
  $$ values ('ann' collate "C"), ('bob') $$,
  'the order of the arrays counts for the claims, not the positions');
select results_eq(
  $$ select * from public.claim_batch(array['ann', 'bob'], array['lamp', 'lamp'], array[0, 0]) $$,
  $$ values (0, 'already_claimed'::public.claim_status), (0, 'already_claimed') $$,
  'positions are the caller''s: they may repeat');
select results_eq(
  $$ select * from public.claim_batch('[5:6]={ann,eve}', '[0:1]={lamp,lamp}', '[-1:0]={-7,2147483647}') $$,
  $$ values (-7, 'already_claimed'::public.claim_status), (2147483647, 'out_of_stock') $$,
  'and arrays may count from anywhere');

select * from finish();
rollback;
