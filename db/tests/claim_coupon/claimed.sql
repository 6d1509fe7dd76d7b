-- A user that does not have the coupon gets it while there is stock.
begin;
select plan(5);

select coupond.create_coupon('lamp', 3);

select is(coupond.claim_coupon('ann', 'lamp'), 'claimed', 'the first user gets the coupon');
select is(coupond.claim_coupon('bob', 'lamp'), 'claimed', 'and so does the second');

select results_eq(
  $$ select coupon_name, claim_number::integer, user_id::text from coupond.claims order by claim_number $$,
  $$ values ('lamp' collate "C", 1, 'ann' collate "C"), ('lamp', 2, 'bob') $$,
  'the claims are stored, numbered in the order in which they were made');
select is(
  (select remaining_amount from coupond.coupons where name = 'lamp'),
  1,
  'the stock is smaller by the number of claims');
select ok(
  (select bool_and(claimed_at between now() and clock_timestamp()) from coupond.claims),
  'each claim has the time when it was made');

select * from finish();
rollback;
