-- One row per claim, in the order of the arrays: every status, over several coupons.
begin;
select plan(3);

select coupond.create_coupon('lamp', 2);
select coupond.create_coupon('chair', 1);
select coupond.create_coupon('sofa', 1);
select coupond.claim_coupon('ann', 'lamp');
select coupond.claim_coupon('ann', 'sofa');

select results_eq(
  $$
    select *
    from coupond.claim_batch(
      array['ann', 'bob', 'eve', 'ann', 'bob', 'ann', 'bob', 'joe'],
      array['lamp', 'lamp', 'lamp', 'chair', 'chair', 'sofa', 'sofa', 'table'],
      array[1, 2, 3, 4, 5, 6, 7, 8])
  $$,
  $$
    values
      (1, 'already_claimed'::coupond.claim_status),
      (2, 'claimed'),
      (3, 'out_of_stock'),
      (4, 'claimed'),
      (5, 'out_of_stock'),
      (6, 'already_claimed'),
      (7, 'out_of_stock'),
      (8, 'coupon_not_found')
  $$,
  'each claim gets the same status as in a call of its own');
select results_eq(
  $$ select coupon_name, claim_number::integer, user_id::text from coupond.claims order by coupon_name, claim_number $$,
  $$ values ('chair' collate "C", 1, 'ann' collate "C"), ('lamp', 1, 'ann'), ('lamp', 2, 'bob'), ('sofa', 1, 'ann') $$,
  'the claims are stored and numbered per coupon');
select results_eq(
  $$ select name, remaining_amount from coupond.coupons order by name $$,
  $$ values ('chair' collate "C", 0), ('lamp', 0), ('sofa', 0) $$,
  'each stock is smaller by the number of its claims');

select * from finish();
rollback;
