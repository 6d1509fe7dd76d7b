-- A user who asks for the same coupon several times in one call gets one piece at most.
begin;
select plan(3);

select public.create_coupon('lamp', 2);
select public.create_coupon('chair', 1);

select results_eq(
  $$
    select status::text
    from public.claim_batch(
      array['ann', 'ann', 'ann', 'bob', 'ann', 'bob', 'eve'],
      array['lamp', 'chair', 'lamp', 'chair', 'chair', 'chair', 'lamp'],
      array[1, 2, 3, 4, 5, 6, 7])
  $$,
  $$
    values ('claimed'), ('claimed'), ('already_claimed'), ('out_of_stock'), ('already_claimed'), ('out_of_stock'), ('claimed')
  $$,
  'the first request is the claim; a winner has it ever after, a loser loses each time');
select is((select count(*) from public.claims), 3::bigint, 'three claims');
select is((select sum(remaining_amount) from public.coupons), 0::bigint, 'three pieces');

select * from finish();
rollback;
