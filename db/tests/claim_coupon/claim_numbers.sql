-- The claims of a coupon are numbered 1, 2, 3 … without gaps.
begin;
select plan(3);

select public.create_coupon('lamp', 5);
select public.create_coupon('chair', 5);

select public.claim_coupon('ann', 'lamp');
select public.claim_coupon('ann', 'lamp');
select public.claim_coupon('ann', 'chair');

savepoint before_rollback;
select public.claim_coupon('bob', 'lamp');
select public.claim_coupons(array['eve', 'joe'], 'lamp');
rollback to savepoint before_rollback;

select public.claim_coupon('joe', 'lamp');
select public.claim_coupons(array['ann', 'sue', 'joe', 'tom'], 'lamp');
select public.claim_coupon('zoe', 'chair');

select results_eq(
  $$ select claim_number, user_id from public.claims where coupon_name = 'lamp' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'joe'), (3, 'sue'), (4, 'tom') $$,
  'repeats, other coupons and rolled back claims leave no gap');
select results_eq(
  $$ select claim_number, user_id from public.claims where coupon_name = 'chair' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'zoe') $$,
  'each coupon has its own numbers');
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
  'the highest number, the number of claims and amount - remaining_amount are equal');

select * from finish();
rollback;
