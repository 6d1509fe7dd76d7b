-- A user that claims the same coupon several times in one call gets it at most once.
begin;
select plan(3);

select coupond.create_coupon('lamp', 2);
select coupond.create_coupon('chair', 1);

select results_eq(
  $$
    select status::text
    from coupond.claim_batch(
      array['ann', 'ann', 'ann', 'bob', 'ann', 'bob', 'eve'],
      array['lamp', 'chair', 'lamp', 'chair', 'chair', 'chair', 'lamp'],
      array[1, 2, 3, 4, 5, 6, 7])
  $$,
  $$
    values ('claimed'), ('claimed'), ('already_claimed'), ('out_of_stock'), ('already_claimed'), ('out_of_stock'), ('claimed')
  $$,
  'the first request counts; repeats get already_claimed if it succeeded, out_of_stock if not');
select is((select count(*) from coupond.claims), 3::bigint, 'three claims are stored');
select is((select sum(remaining_amount) from coupond.coupons), 0::bigint, 'the stock is smaller by three');

select * from finish();
rollback;
