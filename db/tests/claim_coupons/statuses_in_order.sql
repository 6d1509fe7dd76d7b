-- Statuses are in the order of the users because the function sorts them, not because the plan
-- happens to preserve the order: without hash joins, the plan merges by user id.
begin;
select plan(2);

alter function coupond.claim_coupons(text[], text)
set enable_hashjoin = off;

select coupond.create_coupon('lamp', 3);
select coupond.claim_coupon('m', 'lamp');

select is(
  coupond.claim_coupons(array['z', 'm', 'b', 'z', 'a'], 'lamp'),
  array['claimed', 'already_claimed', 'claimed', 'already_claimed', 'out_of_stock']::coupond.claim_status[],
  'each status is at the index of its user');
select is(
  array(select user_id::text from coupond.claims order by claim_number),
  array['m', 'z', 'b'],
  'claim numbers are in the order of the batch');

select * from finish();
rollback;
