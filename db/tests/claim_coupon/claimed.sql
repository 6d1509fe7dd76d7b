-- A user who does not have the coupon, while there is stock, gets one piece.
begin;
select plan(5);

select public.create_coupon('lamp', 3);

select is(public.claim_coupon('ann', 'lamp'), 'claimed', 'the first user gets a piece');
select is(public.claim_coupon('bob', 'lamp'), 'claimed', 'and so does the second');

select results_eq(
  $$ select coupon_name, claim_number, user_id from public.claims order by claim_number $$,
  $$ values ('lamp' collate "C", 1, 'ann' collate "C"), ('lamp', 2, 'bob') $$,
  'the claims are stored, numbered in the order in which they were made');
select is(
  (select remaining_amount from public.coupons where name = 'lamp'),
  1,
  'the stock is less by as many');
select ok(
  (select bool_and(claimed_at between now() and clock_timestamp()) from public.claims),
  'each claim says when it was made');

select * from finish();
rollback;
