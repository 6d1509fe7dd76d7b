-- The answers come in the order of the crowd because the function says so, not because the join of today's plan happens to keep
-- it: without hash joins the answers are merged in the order of the user ids.
begin;
select plan(2);

alter function public.claim_coupons(text[], text)
set enable_hashjoin = off;

select public.create_coupon('lamp', 3);
select public.claim_coupon('m', 'lamp');

select is(
  public.claim_coupons(array['z', 'm', 'b', 'z', 'a'], 'lamp'),
  array['claimed', 'already_claimed', 'claimed', 'already_claimed', 'out_of_stock']::public.claim_status[],
  'each answer in the place of its user');
select is(
  array(select user_id::text from public.claims order by claim_number),
  array['m', 'z', 'b'],
  'the stock in the order of the crowd');

select * from finish();
rollback;
