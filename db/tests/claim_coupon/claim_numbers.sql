-- Claims of a coupon are numbered 1, 2, 3 … without gaps, whatever happens in between.
begin;
select plan(3);

select public.create_coupon('lamp', 5);
select public.create_coupon('chair', 5);

select public.claim_coupon('ann', 'lamp');
select public.claim_coupon('ann', 'lamp');
select public.claim_coupon('ann', 'chair');

savepoint taken_back;
select public.claim_coupon('bob', 'lamp');
select public.claim_coupons(array['eve', 'joe'], 'lamp');
rollback to savepoint taken_back;

select public.claim_coupon('joe', 'lamp');
select public.claim_coupons(array['ann', 'sue', 'joe', 'tom'], 'lamp');
select public.claim_coupon('zoe', 'chair');

select results_eq(
  $$ select claim_number, user_id from public.claims where coupon_name = 'lamp' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'joe'), (3, 'sue'), (4, 'tom') $$,
  'repeats, other coupons and what was rolled back leave no gap');
select results_eq(
  $$ select claim_number, user_id from public.claims where coupon_name = 'chair' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'zoe') $$,
  'each coupon counts by itself');
select is_empty(
  $$
    select c.name
    from public.coupons as c
    left join public.claims as k
      on k.coupon_name = c.name
    group by c.name
    having c.amount - c.remaining_amount <> count(k.claim_number)
      or max(k.claim_number) <> count(k.claim_number)
  $$,
  'the highest number is how many are claimed, and how much the stock is less');

select * from finish();
rollback;
