-- One row per coupon, from what is stored at this moment.
begin;
select plan(7);

select is_empty('select from coupond.sale_progress', 'no coupon, no row');
select columns_are(
  'coupond', 'sale_progress', array['name', 'amount', 'remaining_amount', 'first_claim_at', 'last_claim_at', 'claims_per_second']);
select coupond.create_coupon('lamp', 3);
select coupond.create_coupon('chair', 1);
select results_eq(
  $$
    select name, amount::integer, remaining_amount, first_claim_at, last_claim_at, claims_per_second
    from coupond.sale_progress
    where name = 'lamp'
  $$,
  $$ values ('lamp' collate "C", 3, 3, null::timestamptz, null::timestamptz, 0.0) $$,
  'no claim yet');

select coupond.claim_coupons(array['ann', 'bob'], 'lamp');
update coupond.claims
set claimed_at = '2020-11-27 10:00:00+00'
where (coupon_name, claim_number) = ('lamp', 1);
update coupond.claims
set claimed_at = '2020-11-27 10:00:07+00'
where (coupon_name, claim_number) = ('lamp', 2);
select results_eq(
  $$
    select name, amount::integer, remaining_amount, first_claim_at, last_claim_at, claims_per_second
    from coupond.sale_progress
    where name = 'lamp'
  $$,
  $$ values ('lamp' collate "C", 3, 1, '2020-11-27 10:00:00+00'::timestamptz, '2020-11-27 10:00:07+00'::timestamptz, 0.0) $$,
  'the first and the last claim, neither of the last ten seconds');
select results_eq(
  $$ select name from coupond.sale_progress order by name $$,
  $$ values ('chair' collate "C"), ('lamp') $$,
  'one row per coupon');
select isnt(obj_description('coupond.sale_progress'::regclass), null, 'the view has a comment');

set local role coupon_monitor;
select tap.results_eq(
  $$ select name, remaining_amount from coupond.sale_progress where name = 'lamp' $$,
  $$ values ('lamp' collate "C", 1) $$,
  'the monitoring role reads the same');
reset role;

select * from finish();
rollback;
