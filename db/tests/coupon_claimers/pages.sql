-- The users that have a coupon, in claim order, page by page: claims p_after + 1 to p_upto.
begin;
select plan(8);

select coupond.create_coupon('lamp', 100);
select coupond.create_coupon('chair', 100);
select coupond.claim_coupons(array['zoe', 'ann', 'bob', 'eve', 'joe'], 'lamp');
select coupond.claim_coupons(array['ann', 'zoe'], 'chair');

select results_eq(
  $$ select coupond.coupon_claimers('lamp', 0, 5) $$,
  $$ values ('zoe'), ('ann'), ('bob'), ('eve'), ('joe') $$,
  'in claim order, of this coupon only');
select results_eq(
  $$ select coupond.coupon_claimers('lamp', 0, 2) $$,
  $$ values ('zoe'), ('ann') $$,
  'the first page of two');
select results_eq(
  $$ select coupond.coupon_claimers('lamp', 2, 4) $$,
  $$ values ('bob'), ('eve') $$,
  'the second page');
select results_eq(
  $$ select coupond.coupon_claimers('lamp', 4, 6) $$,
  $$ values ('joe') $$,
  'the last page is shorter');
select is_empty($$ select coupond.coupon_claimers('lamp', 5, 10) $$, 'a page after the last claim is empty');
select is_empty($$ select coupond.coupon_claimers('lamp', 2, 2) $$, 'an empty range');
select is_empty($$ select coupond.coupon_claimers('table', 0, 10) $$, 'an unknown coupon has no claimers');
select results_eq(
  $$ select coupond.coupon_claimers('chair', 0, 2147483647) $$,
  $$ values ('ann'), ('zoe') $$,
  'all claims in one page');

select * from finish();
rollback;
