-- The claims of a coupon are numbered 1, 2, 3 … without gaps.
begin;
select plan(3);

select coupond.create_coupon('lamp', 5);
select coupond.create_coupon('chair', 5);

select coupond.claim_coupon('ann', 'lamp');
select coupond.claim_coupon('ann', 'lamp');
select coupond.claim_coupon('ann', 'chair');

savepoint before_rollback;
select coupond.claim_coupon('bob', 'lamp');
select coupond.claim_coupons(array['eve', 'joe'], 'lamp');
rollback to savepoint before_rollback;

select coupond.claim_coupon('joe', 'lamp');
select coupond.claim_coupons(array['ann', 'sue', 'joe', 'tom'], 'lamp');
select coupond.claim_coupon('zoe', 'chair');

select results_eq(
  $$ select claim_number::integer, user_id::text from coupond.claims where coupon_name = 'lamp' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'joe'), (3, 'sue'), (4, 'tom') $$,
  'repeats, other coupons and rolled back claims leave no gap');
select results_eq(
  $$ select claim_number::integer, user_id::text from coupond.claims where coupon_name = 'chair' order by claim_number $$,
  $$ values (1, 'ann' collate "C"), (2, 'zoe') $$,
  'each coupon has its own numbers');
select is_empty(
  $$
    select c.name
    from coupond.coupons as c
    left join coupond.claims as k
      on k.coupon_name = c.name
    group by c.name
    having c.amount - c.remaining_amount <> count(k.claim_number)
      or max(k.claim_number) <> count(k.claim_number)
  $$,
  'the highest number, the number of claims and amount - remaining_amount are equal');

select * from finish();
rollback;
