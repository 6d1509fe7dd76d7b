-- Who has a coupon, in claim order, page by page: claims p_after + 1 to p_upto.
begin;
select plan(8);

select public.create_coupon('lamp', 100);
select public.create_coupon('chair', 100);
select public.claim_coupons(array['zoe', 'ann', 'bob', 'eve', 'joe'], 'lamp');
select public.claim_coupons(array['ann', 'zoe'], 'chair');

select results_eq(
  $$ select public.coupon_claimers('lamp', 0, 5) $$,
  $$ values ('zoe'), ('ann'), ('bob'), ('eve'), ('joe') $$,
  'in the order of the claims, of this coupon only');
select results_eq(
  $$ select public.coupon_claimers('lamp', 0, 2) $$,
  $$ values ('zoe'), ('ann') $$,
  'the first page of two');
select results_eq(
  $$ select public.coupon_claimers('lamp', 2, 4) $$,
  $$ values ('bob'), ('eve') $$,
  'the second');
select results_eq(
  $$ select public.coupon_claimers('lamp', 4, 6) $$,
  $$ values ('joe') $$,
  'the last one has less');
select is_empty($$ select public.coupon_claimers('lamp', 5, 10) $$, 'behind the last claim there is nothing');
select is_empty($$ select public.coupon_claimers('lamp', 2, 2) $$, 'a page of none');
select is_empty($$ select public.coupon_claimers('table', 0, 10) $$, 'an unknown coupon has no claimers');
select results_eq(
  $$ select public.coupon_claimers('chair', 0, 2147483647) $$,
  $$ values ('ann'), ('zoe') $$,
  'all of them at once');

select * from finish();
rollback;
